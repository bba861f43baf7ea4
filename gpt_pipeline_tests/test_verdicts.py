from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.evaluation.result import BASE_LOSS, EvaluationResult
from gpt_pipeline.evaluation.verdicts import (
    FORGETTING_MARGIN,
    LOSS_MARGIN,
    forgetting_verdict,
    loss_verdict,
    output_verdict,
)
from gpt_pipeline_tests.test_mlflow_tracker import ANSWER, make_result


def judged(folder: Path, step: int, loss: float, **checkpoint: Any) -> EvaluationResult:
    result = make_result(folder, step=step)
    return dataclasses.replace(result, metrics={"val_loss": loss}, checkpoint={**result.checkpoint, **checkpoint})


def answering(folder: Path, *answers: dict[str, Any]) -> EvaluationResult:
    return dataclasses.replace(make_result(folder), answers=tuple({**ANSWER, **answer} for answer in answers))


@pytest.mark.parametrize(("loss", "passed"), [(1.5, True), (2 + LOSS_MARGIN - 1e-9, True), (2.2, False)])
def test_loss_verdict_goes_by_the_margin_above_the_best_so_far(tmp_path: Path, loss: float, passed: bool) -> None:
    others = [judged(tmp_path, 100, 3.0), judged(tmp_path, 200, 2.0)]
    finding = loss_verdict(judged(tmp_path, 300, loss), others)
    assert finding.passed is passed
    assert ("lower training.learning_rate" in finding.text) is not passed
    assert finding.facts["best_step"] == 200


def test_loss_verdict_compares_with_earlier_checkpoints_of_the_same_training_and_test_only(tmp_path: Path) -> None:
    early = judged(tmp_path, 100, 3.0)
    later, elsewhere = judged(tmp_path, 200, 1.0), judged(tmp_path, 50, 1.0, training_fingerprint="x")
    other_test = dataclasses.replace(judged(tmp_path, 50, 1.0), config={"max_length": 9})
    finding = loss_verdict(early, [early, later, elsewhere, other_test])
    assert finding.passed
    assert finding.text == "step 100: val_loss 3.0000 nats per token; no earlier checkpoint to compare with"


@pytest.mark.parametrize(("lost", "passed"), [(-0.3, True), (FORGETTING_MARGIN - 1e-9, True), (0.3, False)])
@pytest.mark.parametrize("key", ["val_loss", BASE_LOSS])
def test_forgetting_verdict_goes_by_the_margin_above_the_start(
    tmp_path: Path, key: str, lost: float, passed: bool
) -> None:
    other = {"val_loss": 9.0} if key == BASE_LOSS else {}
    start, later = (
        dataclasses.replace(judged(tmp_path, step, 0.0), metrics={**other, key: loss})
        for step, loss in ((0, 2.0), (100, 2.0 + lost))
    )
    finding = forgetting_verdict(later, [start, later], on_the_same_data=True)
    assert finding.passed is passed
    assert ("lower training.learning_rate" in finding.text) is not passed
    assert finding.facts["before"] == 2.0


def test_forgetting_verdict_without_the_start_says_so(tmp_path: Path) -> None:
    finding = forgetting_verdict(judged(tmp_path, 100, 3.0), [judged(tmp_path, 50, 1.0)], on_the_same_data=True)
    assert finding.passed
    assert "no evaluation to compare with" in finding.text


def test_forgetting_verdict_on_data_that_is_not_the_bases_measures_nothing(tmp_path: Path) -> None:
    start, later = judged(tmp_path, 0, 1.0), judged(tmp_path, 100, 9.0)
    finding = forgetting_verdict(later, [start], on_the_same_data=False)
    assert finding.passed
    assert "not measured" in finding.text


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (0.55, True), (0.3, False)])
def test_loss_verdict_of_right_answers_takes_more_for_better(tmp_path: Path, share: float, passed: bool) -> None:
    before, now = (
        dataclasses.replace(judged(tmp_path, step, 0.0), metrics={"val_loss": 1.0, "correct": right})
        for step, right in ((100, 0.6), (200, share))
    )
    finding = loss_verdict(now, [before], "error_rate")
    assert finding.passed is passed
    assert "nats" not in finding.text


GOOD: dict[str, Any] = {}
EMPTY = {"generated": " \n", "distinct_2": None}
CIRCLING = {"generated": "the same " * 20, "distinct_2": 0.05}
ENDLESS = {"ended": False, "new_tokens": 50, "reference_tokens": 20}
CUT_OFF = {"ended": False, "new_tokens": 50, "reference_tokens": 300}


@pytest.mark.parametrize("bad", [EMPTY, CIRCLING, ENDLESS], ids=["empty", "circling", "endless"])
def test_output_verdict_is_red_when_most_answers_are_degenerate(tmp_path: Path, bad: dict[str, Any]) -> None:
    assert output_verdict(answering(tmp_path, GOOD, bad)).passed
    red = output_verdict(answering(tmp_path, GOOD, bad, bad))
    assert not red.passed
    assert "read the answers" in red.text


def test_output_verdict_blames_no_answer_that_had_no_room_to_end(tmp_path: Path) -> None:
    assert output_verdict(answering(tmp_path, CUT_OFF, CUT_OFF, CUT_OFF)).passed


def test_output_verdict_without_questions_is_green(tmp_path: Path) -> None:
    assert output_verdict(answering(tmp_path)).passed

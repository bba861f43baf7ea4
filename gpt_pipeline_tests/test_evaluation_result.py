from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.document_loss import DocumentLoss, loss_metrics
from gpt_pipeline.evaluation.result import evaluation_fingerprint, exercise_names, rank_of, ranking_metric
from gpt_pipeline_tests.test_mlflow_tracker import make_result


def test_exercise_names_that_were_fine_are_as_they_were() -> None:
    kinds = {"math exercise": "math_exercise", "mcq": "mcq", "Rag": "rag", "a_b": "a_b", "": "unknown", "v1.2": "v1.2"}
    assert exercise_names(kinds) == kinds


@given(
    kinds=st.sets(st.text(max_size=4) | st.sampled_from(["Math", "math", "MATH", "a b", "a_b", ".", "..", "x" * 300]))
)
@example(kinds={"Math", "math"})
@example(kinds={"x" * 300, "X" * 300})
@example(kinds={"Math", "math", next(iter({*exercise_names(["Math", "math"]).values()}))})
def test_exercise_names_are_all_different_and_taken_by_mlflow(kinds: set[str]) -> None:
    names = exercise_names(kinds)
    assert len({name.lower() for name in names.values()}) == len(kinds)
    for name in names.values():
        for metric in ("val_loss", "answer_loss", "correct"):
            _validate_metric_name(f"{metric}/{name}")
            assert len(f"{metric}/{name}") <= MAX_ENTITY_KEY_LENGTH


@pytest.mark.parametrize(
    ("decides", "metric", "best"),
    [
        ("val_loss", "val_loss", 0),
        ("document_loss", "document_loss", 1),
        ("completion_loss", "val_loss", 0),  # which one of them does not have
        ("error_rate", "correct", 2),
    ],
)
def test_evaluations_are_ranked_by_what_their_training_brings_down(
    tmp_path: Path, decides: str, metric: str, best: int
) -> None:
    found = [
        {"val_loss": 1.0, "document_loss": 3.0, "completion_loss": 1.0, "correct": 0.1},
        {"val_loss": 2.0, "document_loss": 1.0, "completion_loss": 0.5, "correct": 0.2},
        {"val_loss": 3.0, "document_loss": 2.0, "correct": 0.3},
    ]
    results = [dataclasses.replace(make_result(tmp_path), metrics=each) for each in found]
    assert ranking_metric(results, decides) == metric
    assert min(range(3), key=lambda place: rank_of(results[place], metric)) == best


def test_evaluations_of_other_questions_are_not_ranked_by_right_answers(tmp_path: Path) -> None:
    few, many = (
        dataclasses.replace(
            make_result(tmp_path), metrics={"val_loss": 1.0, "correct": right}, config={"num_questions": asked}
        )
        for right, asked in ((1.0, 5), (0.8, 100))
    )
    assert ranking_metric([few, many], "error_rate") == "val_loss"
    assert ranking_metric([many, many], "error_rate") == "correct"


def test_loss_metrics_of_kinds_that_differ_in_case_keep_each_loss() -> None:
    losses = [
        DocumentLoss(exercise=kind, nats=nats, n_tokens=1, answer_nats=0.0, n_answer_tokens=1, truncated=False)
        for kind, nats in (("Math", 1.0), ("math", 2.0), ("..", 3.0))
    ]
    found = {name: value for name, value in loss_metrics(losses).items() if name.startswith("val_loss/")}
    assert sorted(found.values()) == pytest.approx([1.0, 2.0, 3.0])


def test_evaluation_fingerprint_tells_the_names_of_a_mixs_parts_and_stays_without_a_mix() -> None:
    def of(parts: dict[str, str] | None) -> str:
        return evaluation_fingerprint(
            EvaluationConfig(), weights_sha256="w", shards_fingerprint="s", max_length=8, parts=parts
        )

    assert of({}) == of(None)
    assert len({of(None), of({"a": "1", "b": "2"}), of({"a": "2", "b": "1"}), of({"a": "1", "c": "2"})}) == 4

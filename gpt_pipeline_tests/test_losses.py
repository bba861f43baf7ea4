"""The losses of a `metrics.jsonl` that grows while someone looks at it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from gpt_pipeline.progress.losses import losses_of


def _train(step: int, loss: float = 1.0) -> str:
    return json.dumps({"kind": "train", "step": step, "train_loss": loss}) + "\n"


def _validation(step: int, loss: float = 2.0) -> str:
    return json.dumps({"kind": "validation", "step": step, "val_loss": loss}) + "\n"


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def _append(metrics: Path, *lines: str) -> None:
    with metrics.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def test_losses_of_no_file_are_none_until_there_is_one(metrics: Path) -> None:
    assert losses_of(metrics).train == {}
    _append(metrics, _train(1, 5.0), _validation(1, 6.0))
    losses = losses_of(metrics)
    assert (losses.train, losses.validation) == ({1: 5.0}, {1: 6.0})


def test_losses_keep_each_estimate_apart(metrics: Path) -> None:
    packed = json.dumps({"kind": "validation", "step": 2, "val_loss": 3.0, "document_loss": 2.5}) + "\n"
    _append(metrics, _train(1), _validation(1, 4.0), _train(2), packed)
    assert losses_of(metrics).estimates == {"val_loss": {1: 4.0, 2: 3.0}, "document_loss": {2: 2.5}}
    _append(metrics, _train(1))  # back to the checkpoint of step 1
    assert losses_of(metrics).estimates == {"val_loss": {1: 4.0}, "document_loss": {}}


def test_losses_of_rewarded_answers_keep_rewards_of_the_same_steps_and_right_answers(metrics: Path) -> None:
    def rewarded(step: int, reward: float) -> str:
        return json.dumps({"kind": "train", "step": step, "train_loss": -0.1, "reward": reward}) + "\n"

    asked = json.dumps({"kind": "validation", "step": 2, "val_loss": 3.0, "pass_at_1": 0.25}) + "\n"
    _append(metrics, rewarded(1, 0.5), rewarded(2, 0.75), asked)
    losses = losses_of(metrics)
    assert (losses.rewards, losses.estimates["pass_at_1"]) == ({1: 0.5, 2: 0.75}, {2: 0.25})
    _append(metrics, rewarded(2, 0.25))  # again, after a resume
    assert losses_of(metrics).rewards == {1: 0.5, 2: 0.25}
    _append(metrics, *(rewarded(step, 1.0) for step in range(3, 1603)))
    losses = losses_of(metrics)
    assert list(losses.rewards) == list(losses.train)
    assert len(losses.train) <= 800


def test_losses_of_a_line_that_is_being_written_come_when_it_is_whole(metrics: Path) -> None:
    _append(metrics, _train(1), _train(2)[:20])
    assert list(losses_of(metrics).train) == [1]
    _append(metrics, _train(2)[20:])
    assert list(losses_of(metrics).train) == [1, 2]


def test_losses_read_only_what_was_appended(metrics: Path) -> None:
    _append(metrics, _train(1), json.dumps({"kind": "event", "step": 1, "message": "x" * 600}) + "\n")
    losses_of(metrics)
    content = metrics.read_bytes()
    metrics.write_bytes(content.replace(b"1.0", b"9.0"))
    _append(metrics, _train(2))
    assert losses_of(metrics).train == {1: 1.0, 2: 1.0}


def test_losses_of_another_file_in_its_place_are_read_from_its_beginning(metrics: Path) -> None:
    _append(metrics, _train(1), _train(2), _validation(2))
    losses_of(metrics)
    metrics.rename(metrics.with_name("previous.jsonl"))
    _append(metrics, _train(1, 7.0))
    losses = losses_of(metrics)
    assert (losses.train, losses.validation) == ({1: 7.0}, {})


def test_losses_of_a_longer_file_that_begins_alike_are_all_its_own(metrics: Path) -> None:
    _append(metrics, *(_train(step, 5.0) for step in range(1, 501)))
    losses_of(metrics)
    metrics.rename(metrics.with_name("previous.jsonl"))  # a training goes back to its step 200, and on from there
    _append(metrics, *(_train(step, 5.0 if step <= 200 else 3.0) for step in range(1, 601)))
    losses = losses_of(metrics).train
    assert len(losses) == 600
    assert {losses[step] for step in range(201, 601)} == {3.0}


def test_losses_after_a_return_to_a_checkpoint_are_those_of_the_newest_steps(metrics: Path) -> None:
    _append(metrics, *(_train(step) for step in range(1, 7)), _validation(4), _validation(6))
    _append(metrics, _train(5, 3.0))
    losses = losses_of(metrics)
    assert losses.train == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 3.0}
    assert losses.validation == {4: 2.0}


def test_losses_that_were_returned_stay_while_the_file_changes(metrics: Path) -> None:
    _append(metrics, *(_train(step) for step in range(1, 7)), _validation(4), _validation(6))
    before = losses_of(metrics)
    metrics.write_text(_train(1, 3.0), encoding="utf-8")
    assert losses_of(metrics).train == {1: 3.0}
    assert (max(before.train), max(before.validation)) == (6, 6)


def test_losses_of_many_lines_are_thinned_and_every_estimate_is_kept(metrics: Path) -> None:
    _append(metrics, *(_train(step) + (_validation(step) if step % 500 == 0 else "") for step in range(1, 20_001)))
    losses = losses_of(metrics)
    assert 400 <= len(losses.train) <= 800
    assert list(losses.train) == sorted(losses.train)
    assert max(losses.train) > 19_900
    assert list(losses.validation) == list(range(500, 20_001, 500))


def test_losses_of_few_updates_and_many_estimates_keep_updates_from_all_of_the_file(metrics: Path) -> None:
    _append(metrics, *(_train(step) + _validation(step) for step in range(10, 20_001, 10)))
    steps = list(losses_of(metrics).train)
    assert max(after - before for before, after in pairwise(steps)) <= 40
    assert steps[-1] > 19_900


def test_losses_pass_over_lines_that_are_no_record(metrics: Path) -> None:
    _append(metrics, "[]\n", '{"kind": "validation"}\n', "\x00\n", _train(3))
    assert losses_of(metrics).train == {3: 1.0}

"""What is told of a training that runs elsewhere, by the lines that it adds to `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.folder_watch import FolderWatch
from gpt_pipeline.training.observer import SilentObserver


class _Steps(SilentObserver):
    def __init__(self) -> None:
        self.told: list[int] = []

    def progress(self, record: Mapping[str, Any]) -> None:
        self.told.append(record["step"])


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    return ExperimentFolder(root=tmp_path)


def _lines(steps: Iterable[int], *, time: float = 1.0) -> str:
    records = ({"kind": "train", "step": step, "tokens_seen": step, "time": time + step} for step in steps)
    return "".join(json.dumps(record) + "\n" for record in records)


def _watch(folder: ExperimentFolder, observer: SilentObserver) -> FolderWatch:
    return FolderWatch(folder, observer, fingerprint="f", max_steps=100)


def test_watch_tells_what_comes_after_its_beginning_line_by_line(folder: ExperimentFolder) -> None:
    folder.metrics.write_text(_lines(range(5)), encoding="utf-8")
    watch = _watch(folder, steps := _Steps())
    watch.look()
    assert steps.told == []
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write(_lines([5]) + _lines([6])[:-9])
        file.flush()
        watch.look()
        assert steps.told == [5]
        file.write(_lines([6])[-9:])
    watch.look()
    assert steps.told == [5, 6]


@pytest.mark.parametrize("again", [[], [3, 4]])
def test_watch_after_a_return_to_a_checkpoint_tells_only_the_steps_that_follow_it(
    folder: ExperimentFolder, again: list[int]
) -> None:
    folder.metrics.write_text(_lines(range(10)), encoding="utf-8")
    watch = _watch(folder, steps := _Steps())
    folder.metrics.write_text(_lines(range(3)) + _lines(again, time=50.0), encoding="utf-8")
    watch.look()
    assert steps.told == again
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write(_lines([5, 6], time=60.0))
    watch.look()
    assert steps.told == [*again, 5, 6]


@pytest.mark.parametrize("count", [3, 20])
def test_watch_of_another_training_in_its_place_tells_all_of_it(folder: ExperimentFolder, count: int) -> None:
    folder.metrics.write_text(_lines(range(10)), encoding="utf-8")
    watch = _watch(folder, steps := _Steps())
    folder.metrics.unlink()
    watch.look()
    folder.metrics.write_text(_lines(range(count), time=90.0), encoding="utf-8")
    watch.look()
    assert steps.told == [*range(count)]

"""Power cuts at any moment of writing an artifact: what was not made durable is lost, and nothing torn counts.

Checkpoints have tests of their own beside those of their kills.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, find_evaluation, write_evaluation
from gpt_pipeline.storage.atomic import write_json, write_text
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import MANIFEST_NAME, finished, verify
from gpt_pipeline.training.finished import FinishedTraining
from gpt_pipeline_tests.crashing import PowerCut, World
from gpt_pipeline_tests.synth_rows import write_folder
from gpt_pipeline_tests.test_mlflow_tracker import make_result

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a folder cannot be made durable there")
_KINDS = (
    *("parts/document_index", "parts/english_documents", "parts/document_tokens"),
    *("raw_synth", "english_parquet", "token_shards"),
)


def _write_world(folder: Path, world: World) -> Path:
    folder.mkdir()
    for name, content in world.items():
        (folder / name).write_bytes(content)
    return folder


def _different(worlds: Iterable[World]) -> Iterable[World]:
    return {tuple(sorted(world.items())): world for world in worlds}.values()


def _prepare(config: DataConfig, data_folder: Path) -> None:
    english = prepare_documents(config, prepare_raw(config, data_folder), data_folder)
    prepare_shards(config, english, data_folder)


@pytest.mark.parametrize("kind", _KINDS)
def test_power_cut_at_any_moment_of_a_data_stage_leaves_it_finished_and_whole_or_not_finished(
    tmp_path: Path, kind: str
) -> None:
    source = write_folder(tmp_path / "synth", 60)
    config = DataConfig(num_samples=30, local_dataset_path=str(source), validation_fraction=0.3, max_length=16)
    _prepare(config, tmp_path / "before")
    (found,) = (tmp_path / "before").glob(f"{kind}-*/{MANIFEST_NAME}")
    fingerprint = json.loads(found.read_text())["fingerprint"]
    folder = tmp_path / "data" / found.parent.relative_to(tmp_path / "before")
    folder.mkdir(parents=True)
    with PowerCut(folder) as power:
        _prepare(config, tmp_path / "data")
        after = list(power.possible_now())
    states = set()
    for number, world in enumerate(_different(power.worlds)):
        stage = finished(_write_world(tmp_path / str(number), world), fingerprint)
        if stage is not None:
            verify(stage)
        states.add(stage is not None)
    assert states == {True, False}
    for number, world in enumerate(_different(after)):  # what was returned from is durable
        assert finished(_write_world(tmp_path / f"after{number}", world), fingerprint) is not None


@functools.cache
def _result(folder: Path) -> EvaluationResult:
    return make_result(folder, step=4, fingerprint="f" * 64)


def _write_evaluation(folder: Path, metric: int) -> None:
    result = _result(folder.parent / "elsewhere")
    path = evaluation_path(folder, result.key, result.fingerprint)
    write_evaluation(dataclasses.replace(result, metrics={"val_loss": float(metric)}, path=path))


def _read_evaluation(folder: Path) -> object:
    result = find_evaluation(folder, "f" * 64)
    return None if result is None else result.metrics["val_loss"]


def _training(step: int) -> FinishedTraining:
    return FinishedTraining(
        fingerprint="a" * 64, experiment_name="x", step=step, tokens_seen=1, train_loss=1.0, val_loss=1.0,
        best_val_loss=1.0, best_step=step, seconds=1.0, parameters=1, checkpoint="checkpoint_step_1.pt",
        weights_sha256="b" * 64, versions={}, created_at="2026-11-01T10:01:00Z",
    )  # fmt: skip


def _read_training(folder: Path) -> object:
    path = folder / "training.json"
    return json.loads(path.read_text())["step"] if path.is_file() else None


def _read_text(folder: Path) -> object:
    path = folder / "report.html"
    return path.read_text() if path.is_file() else None


def _read_note(folder: Path) -> object:
    path = folder / "metrics.sent.json"
    return json.loads(path.read_text())["sent"] if path.is_file() else None


_FILES: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], object]]] = {
    "evaluation": (_write_evaluation, _read_evaluation),
    "training": (lambda folder, n: _training(n).write(ExperimentFolder(root=folder)), _read_training),
    "report": (lambda folder, n: write_text(folder / "report.html", f"<html>{n}</html>"), _read_text),
    "note of what was sent": (lambda folder, n: write_json(folder / "metrics.sent.json", {"sent": n}), _read_note),
}


@pytest.mark.parametrize("kind", _FILES)
def test_power_cut_at_any_moment_of_writing_a_file_leaves_the_one_before_or_the_new_one(
    tmp_path: Path, kind: str
) -> None:
    write, read = _FILES[kind]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, 1)
    before = read(folder)
    with PowerCut(folder) as power:
        write(folder, 2)
        after = list(power.possible_now())
    new = read(folder)
    assert before != new
    during = {
        read(_write_world(tmp_path / f"during{number}", world)) for number, world in enumerate(_different(power.worlds))
    }
    assert during == {before, new}
    assert {
        read(_write_world(tmp_path / f"after{number}", world)) for number, world in enumerate(_different(after))
    } == {new}

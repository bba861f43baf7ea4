"""Whatever stands in a state file, its reader returns, or says what is wrong in a line for the user."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints, newer_manifests
from gpt_pipeline.data.sources.record import read_record
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.held_out import _read_choice
from gpt_pipeline.evaluation.questions import _read_questions
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.evaluation.unseen import _read_finding
from gpt_pipeline.exchange.benchmark import _read as read_benchmark
from gpt_pipeline.progress.evaluations import logged_marks
from gpt_pipeline.progress.losses import losses_of
from gpt_pipeline.progress.report import shown_fingerprint
from gpt_pipeline.progress.training import newest_records, training_progress
from gpt_pipeline.report.cost import cost_of, seconds_at
from gpt_pipeline.storage.atomic import parse_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import held_for
from gpt_pipeline.storage.manifest import StageResult, damaged_sizes, read_manifest
from gpt_pipeline.tracking.training_run import training_log_is_pending
from gpt_pipeline.training.decision import Demand
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.heartbeat import read_heartbeat, trainer_state
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics

_ARCHIVE = Path(__file__).parent / "fixtures" / "finished-775e92b.tar.xz"
_FINGERPRINT = "f" * 64


def _stage(path: Path) -> None:
    manifest = read_manifest(path.parent)
    if manifest is not None:
        list(damaged_sizes(StageResult(folder=path.parent, manifest=manifest, reused=True)))


def _checkpoints(path: Path) -> None:
    list_checkpoints(path.parent)
    best_checkpoint(path.parent)
    newer_manifests(path.parent)
    training_progress(ExperimentFolder(root=path.parent.parent), fingerprint=_FINGERPRINT, max_steps=12)


def _training(path: Path) -> None:
    folder = ExperimentFolder(root=path.parent)
    identity = str(json.loads(_KEPT[path.name])["fingerprint"])
    find_finished_training(folder, identity)
    training_log_is_pending(folder, identity)


def _evaluations(path: Path) -> None:
    for result in read_evaluations(path.parent):
        assert isinstance(result.step, int)


def _metrics(path: Path) -> None:
    folder = ExperimentFolder(root=path.parent)
    records = read_metrics(path)
    cost_of(records, checkpoints=folder.checkpoints, hardware={}, evaluation_seconds=0)
    seconds_at(records, 4)
    newest_records(path)
    losses_of(path)
    training_progress(folder, fingerprint=None, max_steps=None)


def _facts(path: Path) -> None:
    read_record(path.parent.parent).facts("2/synth_001.parquet")


def _identity(path: Path) -> str:
    return str(json.loads(_KEPT[path.name])["fingerprint"])


_KEPT: dict[str, str] = {}
"""What the files held before, by name."""

_READERS: dict[str, Callable[[Path], object]] = {
    "Kept muon/training.json": _training,
    "Kept muon/start.json": lambda path: Demand.read(ExperimentFolder(root=path.parent)),
    "Kept muon/job.json": TrainingJob.read,
    "Kept muon/report.json": lambda path: shown_fingerprint(path.parent),
    "Kept muon/metrics.jsonl": _metrics,
    "Kept muon/metrics.sent.json": lambda path: training_log_is_pending(
        ExperimentFolder(root=path.parent), _FINGERPRINT
    ),
    "Kept muon/heartbeat.json": lambda path: (read_heartbeat(path.parent), trainer_state(path.parent)),
    "Kept muon/benchmark.json": lambda path: read_benchmark(path, _FINGERPRINT),
    "Kept muon/.lock.json": lambda path: held_for(path.parent),
    "Kept muon/checkpoints/checkpoint_step_12.json": _checkpoints,
    "Kept muon/checkpoints/best_model.json": _checkpoints,
    "Kept muon/evaluations/step_00000012-2c45362a6e7c.json": _evaluations,
    "Kept muon/evaluations/logged/step_00000012-2c45362a6e7c.json": lambda path: logged_marks(
        ExperimentFolder(root=path.parent.parent.parent)
    ),
    "Kept muon/evaluations/questions/376cf505ac5e.json": lambda path: _read_questions(path, _identity(path)),
    "Kept muon/evaluations/questions/9b84976592f9.unseen.json": lambda path: _read_finding(path, _identity(path)),
    "Kept muon/evaluations/documents/0d9888b96f92.json": lambda path: _read_choice(path, _identity(path)),
    "data/token_shards-bf35190d7fe9/manifest.json": _stage,
    "data/token_shards-bf35190d7fe9/made.json": lambda path: (
        StageResult(
            folder=path.parent,
            manifest=read_manifest(path.parent),  # type: ignore[arg-type]
            reused=True,
        ).made
    ),
    "data/sources/sample-sample-af2bdbe1aa9b/source.json": lambda path: read_record(path.parent),
    "data/sources/sample-sample-af2bdbe1aa9b/files/2_synth_001_parquet-7d3b5f01.json": _facts,
}
_WRITTEN: dict[str, Any] = {  # by hand: the archive has none
    "heartbeat.json": {"process": {"host": "here", "pid": 1, "boot": "", "started": ""}, "run": "", "step": 3},
    ".lock.json": {"pid": 1, "host": "here", "purpose": "training", "since": "2026-01-01"},
    "benchmark.json": {
        "fingerprint": _FINGERPRINT,
        "step": 12,
        "weights_sha256": "",
        "scores": [{"task": "a", "metric": "acc", "value": 0.5, "stderr": None}],
        "samples": {"a": 1},
        "versions": {},
        "created_at": "",
    },
}

_ODD = [10**126, -1, 10**4000, 1e308, True, None, "", "\x00", "a" * 300, [], {}, [[1]], {"a": None}, [None], ["x", 2]]
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(_ODD)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    with tarfile.open(_ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    for name, value in _WRITTEN.items():
        (root / "storage" / "Kept muon" / name).write_text(json.dumps(value))
    return root / "storage"


def _read(storage: Path, name: str, damage: Callable[[str], bytes]) -> None:
    """Call the reader of the file `name` while that holds `damage` of its text; only errors for users may come."""
    path = storage / name
    before = path.read_bytes()
    _KEPT[path.name] = before.decode()
    path.write_bytes(damage(before.decode()))
    try:
        with suppress(UserError):
            _READERS[name](path)
    finally:
        path.write_bytes(before)


def _replaced(value: Any, places: Any, odd: Any) -> Any:
    """Return `value` with a part of it, drawn from `places`, replaced by `odd`, or left out."""
    if isinstance(value, dict) and value and places.draw(st.integers(0, 3)):
        key = places.draw(st.sampled_from(sorted(value)))
        if not places.draw(st.integers(0, 4)):
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _replaced(value[key], places, odd)}
    if isinstance(value, list) and value and places.draw(st.integers(0, 3)):
        place = places.draw(st.integers(0, len(value) - 1))
        return [*value[:place], _replaced(value[place], places, odd), *value[place + 1 :]]
    return odd


_quick = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
    derandomize=True,
)


def test_every_reader_reads_what_was_kept(storage: Path) -> None:
    for name, read in _READERS.items():
        path = storage / name
        _KEPT[path.name] = path.read_text()
        read(path)


@pytest.mark.parametrize("name", _READERS)
@_quick
@given(places=st.data(), odd=_json)
def test_reader_of_a_file_with_an_odd_value_succeeds_or_says_so(
    storage: Path, name: str, places: st.DataObject, odd: Any
) -> None:
    def damage(text: str) -> bytes:
        *lines, last = text.splitlines() if name.endswith(".jsonl") else [text]
        changed = json.dumps(_replaced(json.loads(last), places, odd))
        return "\n".join([*lines, changed, ""]).encode()

    _read(storage, name, damage)


@pytest.mark.parametrize("name", _READERS)
@_quick
@given(content=st.one_of(st.binary(max_size=40), _json.map(lambda value: json.dumps(value).encode())))
@example(b"[" * 100_000)
@example(b'{"a":' * 500 + b"1" + b"}" * 500)
@example(b'{"step": ' + b"9" * 5000 + b"}")
@example(b'{"step": 1e999}')
@example('{"step": 1}'.encode("utf-16"))
@example(b'"\\ud800"')
@example(b"NaN")
def test_reader_of_a_file_with_another_content_succeeds_or_says_so(storage: Path, name: str, content: bytes) -> None:
    _read(storage, name, lambda text: content)


@pytest.mark.parametrize("name", [name for name in _READERS if not name.endswith((".lock.json", ".jsonl"))])
def test_reader_of_a_folder_in_place_of_the_file_succeeds_or_says_so(storage: Path, name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(storage / Path(name).parts[0], tmp_path / Path(name).parts[0])
    path = folder.parent / name
    _KEPT[path.name] = path.read_text()
    path.unlink()
    path.mkdir()
    with suppress(UserError):
        _READERS[name](path)


@given(value=_json)
def test_parse_json_returns_what_can_be_written_again(value: Any) -> None:
    try:
        found = parse_json(json.dumps(value))
    except ValueError:
        return
    assert parse_json(json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8")) == found

"""Readers of files from outside, given what no writer made: they read it, or say so as a `UserError`.

The examples are the same each time. Experiment files are mutated beside the tests of their loader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, list_checkpoints, read_info, write_manifest
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.data.formats.text import TextFormat
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.import_model import convert_start
from gpt_pipeline.exchange.tokenizer_files import folder_tokenizer, write_tokenizer
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import MANIFEST_NAME, Manifest, finished, record_file
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline_tests.projects import TINY
from gpt_pipeline_tests.test_checkpoints import snapshot

_same_each_time = settings(derandomize=True, max_examples=60, phases=[Phase.generate])
_DEEP = "[" * 5000 + "]" * 5000
_LONG = "9" * 5000
_HOSTILE = st.sampled_from(
    [
        *(None, True, -1, 0, 10**30, 1.5, 1e308, float("inf")),
        *("", "x", "../x", "\ud800", "\x00", [], [[]], {}, {"": None}, _DEEP, _LONG),
    ]
)
"""Values to put in the place of another; the last two are written as they are: deep nesting, an endless integer."""


@st.composite
def _mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few bytes changed, removed, doubled or added."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        end = draw(st.integers(start, min(len(changed), start + draw(st.sampled_from([1, 8, len(content)])))))
        changed[start:end] = draw(st.sampled_from([b"", bytes(changed[start:end]) * 2])) + draw(st.binary(max_size=8))
    return bytes(changed)


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside nested containers; of a long one, its first few."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place, *(found for key, item in items[:20] for found in _places(item, (*place, key)))]


@st.composite
def _mutated_json(draw: st.DrawFn, value: Any) -> bytes:
    """The JSON text with a value removed or replaced, or with bytes changed."""
    if draw(st.booleans()):
        text = json.dumps(value).encode()
        return draw(_mutated_bytes(text)) if len(text) < 100_000 else text[: draw(st.integers(0, len(text) - 1))]
    changed = json.loads(json.dumps(value))
    *path, last = draw(st.sampled_from(_places(changed)[1:]))
    at = changed
    for key in path:
        at = at[key]
    hostile = draw(_HOSTILE)
    if draw(st.booleans()):
        at[last] = hostile
    else:
        del at[last]
    text = json.dumps(changed)
    return (text.replace(json.dumps(hostile), hostile) if hostile in (_DEEP, _LONG) else text).encode()


def _reads(read: Callable[[], object]) -> None:
    """Assert that the reader returns something, or complains to a person."""
    with contextlib.suppress(UserError):
        read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


@given(data=st.data())
@_same_each_time
def test_manifest_of_a_stage_in_any_state_is_read_or_set_aside(folder: Path, data: st.DataObject) -> None:
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    (stage / "a.bin").write_bytes(b"content")
    files = {"a.bin": record_file(stage / "a.bin")}
    manifest = Manifest(stage="raw", fingerprint="f" * 64, config={"n": 1}, files=files, facts={"documents": 3})
    manifest.write(stage)
    (stage / MANIFEST_NAME).write_bytes(data.draw(_mutated_json(dataclasses.asdict(manifest))))
    _reads(lambda: finished(stage, "f" * 64))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> CheckpointInfo:
    return save_checkpoint(folder / "checkpoints", snapshot(2, model={"weight": torch.ones(5)}))


@given(data=st.data())
@_same_each_time
def test_manifest_of_a_checkpoint_in_any_state_is_read_or_its_file_does_not_count(
    checkpoint: CheckpointInfo, data: st.DataObject
) -> None:
    write_manifest(checkpoint)
    path = checkpoint.path.with_suffix(".json")
    path.write_bytes(data.draw(_mutated_json(json.loads(path.read_text()))))
    _reads(lambda: list_checkpoints(path.parent))
    _reads(lambda: read_info(checkpoint.path))
    _reads(lambda: load_checkpoint(checkpoint.path))


@given(data=st.data())
@_same_each_time
def test_checkpoint_of_any_bytes_with_a_right_hash_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    info = save_checkpoint(folder / "foreign", snapshot(3, model={"weight": torch.ones(5)}))
    info.path.write_bytes(data.draw(_mutated_bytes(info.path.read_bytes())))
    size, digest = info.path.stat().st_size, sha256_of(info.path)
    write_manifest(dataclasses.replace(info, size=size, sha256=digest))
    _reads(lambda: load_checkpoint(info.path))
    info.path.unlink()


@pytest.fixture(scope="module")
def parquet(folder: Path) -> bytes:
    texts = [f"Text {number}." for number in range(50)]
    pq.write_table(pa.table({"text": texts, "words": list(range(50))}), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


@given(data=st.data())
@_same_each_time
def test_parquet_of_any_bytes_is_read_or_refused(folder: Path, parquet: bytes, data: st.DataObject) -> None:
    path = folder / "mutated.parquet"
    path.write_bytes(data.draw(_mutated_bytes(parquet)))
    _reads(lambda: [batch.num_rows for batch in read_rows(path, TextFormat(column="text").columns)])


_METRICS = [
    {"kind": "train", "step": 1, "tokens_seen": 64, "train_loss": 10.5, "seconds": 0.1, "time": "2026-11-01T10:00:00Z"},
    {"kind": "event", "step": 1, "event": "started", "message": "Training starts."},
    {"kind": "validation", "step": 2, "val_loss": 10.0, "is_best": True},
]


@given(data=st.data())
@_same_each_time
def test_metrics_of_any_bytes_are_read_without_what_is_no_line(folder: Path, data: st.DataObject) -> None:
    path = folder / "metrics.jsonl"
    lines = [data.draw(_mutated_json(record)) for record in _METRICS]
    path.write_bytes(b"\n".join(lines) + b"\n" + json.dumps(_METRICS[0]).encode() + b"\n")
    _reads(lambda: read_metrics(path))
    assert read_metrics(path)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A folder as transformers saves a model; what its weights are is of no matter here."""
    model = folder / "model"
    model.mkdir()
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 4, "n_positions": 32, "vocab_size": 50257}
    (model / "config.json").write_text(json.dumps(config))
    save_file({"transformer.wpe.weight": torch.zeros(32, 4)}, model / "model.safetensors")
    experiment = TINY.format(name="later", num_samples=300, max_steps=12, learning_rate=0.001)
    kept = [line for line in experiment.splitlines() if not line.startswith("model:")]
    (folder / "experiments").mkdir()
    (folder / "experiments" / "later.yaml").write_text("\n".join([*kept, "start_from: {hugging_face: ../model}\n"]))
    return model


def _convert(model: Path) -> None:
    experiment = load_experiment(model.parent / "experiments" / "later.yaml")
    shutil.rmtree(experiment.folder.start, ignore_errors=True)
    convert_start(experiment, say=lambda text: None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@given(data=st.data())
@_same_each_time
def test_hugging_face_folder_with_a_file_of_any_bytes_is_refused_by_name(
    model: Path, name: str, data: st.DataObject
) -> None:
    content = (model / name).read_bytes()
    mutate = _mutated_json(json.loads(content)) if name.endswith(".json") else _mutated_bytes(content)
    (model / name).write_bytes(data.draw(mutate))
    try:
        _reads(lambda: _convert(model))
    finally:
        (model / name).write_bytes(content)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> dict[str, Any]:
    write_tokenizer(folder / "tokenizer", gpt2(), max_length=32)
    value: dict[str, Any] = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    return value


@given(data=st.data())
@settings(_same_each_time, max_examples=10)
def test_tokenizer_of_any_bytes_is_ours_or_refused(
    folder: Path, tokenizer: dict[str, Any], data: st.DataObject
) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_bytes(data.draw(_mutated_json(tokenizer)))
    _reads(lambda: folder_tokenizer(folder / "tokenizer"))

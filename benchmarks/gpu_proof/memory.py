"""Part 5: memory that `plan` expects against what torch counts; and memory that is full."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_proof import trainer
from benchmarks.gpu_proof.record import NotHereError, Row, Task
from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import MemoryNeed, Precision, memory_need
from gpt_pipeline.planning.probe import Request
from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig
from gpt_pipeline.training.device import choose_compute
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline_tests.gpu_checks import ROOT

_PROBE_SECONDS = 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shape:
    """One training whose memory is measured."""

    sequences: int
    """At a time."""

    architecture: str = "gpt2"
    optimizer: str = "adamw"
    compiled: bool = True
    recomputed: bool = False

    @property
    def in_words(self) -> str:
        how = "compiled" if self.compiled else "eager"
        recomputed = ", recomputed" if self.recomputed else ""
        return f"{self.architecture}, {self.optimizer}, {self.sequences} at a time, {how}{recomputed}"


_SHAPES = (
    _Shape(sequences=8),
    _Shape(sequences=32),
    _Shape(sequences=8, compiled=False),
    _Shape(sequences=32, recomputed=True),
    _Shape(sequences=16, optimizer="muon"),
    _Shape(sequences=16, architecture="nanochat", optimizer="muon"),
    _Shape(sequences=16, architecture="llama"),
)
_TINY_SHAPES = (_Shape(sequences=2, compiled=False),)


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield the shapes, a size that does not fit, and `auto`."""
    for shape in _TINY_SHAPES if setup.tiny else _SHAPES:
        yield Task(part=5, name=shape.in_words, seconds=75, run=partial(_measured, setup, shape))
    yield Task(part=5, name="too large at once", seconds=75, run=partial(_refused, setup))
    yield Task(part=5, name="micro_batch_size: auto", seconds=200, run=partial(_found, setup))


def _measured(setup: Setup, shape: _Shape) -> Sequence[Row]:
    model = dataclasses.replace(setup.step.model, architecture=shape.architecture, qkv_bias=False, dropout=0.0)
    training = TrainingConfig(
        optimizer=shape.optimizer,  # type: ignore[arg-type]
        compile=shape.compiled and "auto",
        gradient_checkpointing=shape.recomputed,
    )
    need = _need(setup, model, training, shape.sequences)
    # On a GPU torch counts its tensors alone; on a CPU the whole process is counted.
    expected = need.device if need.on_host else need.device - need.runtime
    peak = _peak(setup, model, training, shape.sequences)
    return [
        {
            "expected GB": expected / 1e9,
            "peak GB": None if peak is None else peak / 1e9,
            "peak to expected": None if peak is None else peak / expected,
        }
    ]


def _need(setup: Setup, model: ModelConfig, training: TrainingConfig, sequences: int) -> MemoryNeed:
    """Return what `plan` expects of one process."""
    hardware = HardwareConfig(device=setup.device)  # type: ignore[arg-type]
    compute = choose_compute(hardware, training, ranks=Ranks(), say=lambda _: None)
    how = Precision(cuda=compute.on_gpu, bf16=compute.half, compiled=compute.compile, loss_piece=compute.loss_piece)
    return memory_need(
        model,
        optimizer=training.optimizer,
        micro_batch_size=sequences,
        max_length=setup.step.length,
        precision=how,
        recompute=training.gradient_checkpointing,
    )


def _peak(setup: Setup, model: ModelConfig, training: TrainingConfig, sequences: int) -> int | None:
    """Return the most bytes of tensors in a few updates of two micro-batches, by the probe of `plan`."""
    layout = StepLayout(
        batch_size=2 * sequences,
        micro_batch_size=sequences,
        max_length=setup.step.length,
        world_size=1,
        max_steps=1_000_000,
    )
    hardware = HardwareConfig(device=setup.device)  # type: ignore[arg-type]
    request = Request(model=model, training=training, hardware=hardware, layout=layout, answers=0)
    command = [sys.executable, "-m", "gpt_pipeline.planning.probe"]
    asked = json.dumps(dataclasses.asdict(request))
    done = subprocess.run(
        command, cwd=ROOT, input=asked, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS
    )
    records: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    if any(record["kind"] == "out_of_memory" for record in records):
        return None
    peaks = [record["memory"] for record in records if record["kind"] == "update" and record["memory"]]
    if not peaks:
        raise AssertionError(f"the probe ended with {done.returncode}: {records[-1:]} {done.stderr[-300:]}")
    return max(peaks)


def _too_large(setup: Setup) -> int:
    """Return how many sequences of the setup's model the memory does not hold at once: a power of two."""
    total, training = devices.memory_of(torch.device(setup.device))[1], TrainingConfig()
    sequences = 1
    while _need(setup, setup.step.model, training, sequences).device < 3 * total:
        sequences *= 2
    return sequences


def _refused(setup: Setup) -> Sequence[Row]:
    """Train with too much at once: the trainer ends before its first update and says what helps."""
    _require_refusal(setup)
    sequences = _too_large(setup)
    job = trainer.make_job(
        setup, _anew(setup), save_every=2, batch_size=sequences, micro_batch_size=sequences, max_steps=2
    )
    with trainer.started(job) as process:
        process.wait()
    said = trainer.last_words(job)
    if process.returncode != 2 or f"micro_batch_size: {sequences // 2}" not in said:
        raise AssertionError(f"the trainer ended with {process.returncode}: {said}")
    return [{"sequences": sequences, "said": said.splitlines()[-1]}]


def _found(setup: Setup) -> Sequence[Row]:
    """Train with `auto`; compare what it finds with what `plan` expects."""
    _require_refusal(setup)
    sequences = _too_large(setup)
    job = trainer.make_job(
        setup, _anew(setup), save_every=2, batch_size=sequences, micro_batch_size="auto", max_steps=2
    )
    trainer.train(job)
    found = read_json(job.folder.micro_batch)["micro_batch_size"]
    need = _need(setup, job.model, job.training, found).device
    return [{"sequences": sequences, "found": found, "expected GB": need / 1e9}]


def _anew(setup: Setup) -> Any:
    folder = setup.folder("memory")
    shutil.rmtree(folder / "experiment", ignore_errors=True)
    (folder / "experiment").mkdir()
    return folder


def _require_refusal(setup: Setup) -> None:
    if setup.device not in devices.GPUS:
        raise NotHereError("where a CPU's memory is full, the system kills rather than refuses")

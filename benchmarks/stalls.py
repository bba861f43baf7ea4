"""What `checkpoint_stall` and `mirror_stall` share: their options, and a training whose updates are timed."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import describe_machine
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.state import take_snapshot

EVERY = 1000
"""Updates between two checkpoints, for which both benchmarks say what share of the time they cost."""


@dataclass(frozen=True, kw_only=True)
class Took:
    """Time of one update."""

    seconds: float
    cpu_seconds: float
    """Of this process."""


class TimedTraining:
    """Random tokens, and a folder in which its checkpoints may be saved."""

    def __init__(self, settings: StepSettings, folder: Path) -> None:
        self.job = _job(settings, folder)
        self._updater = make_updater(settings)
        self._device = self._updater.model.head_weight.device
        self._settings = settings
        self._step = 0

    def update(self) -> Took:
        """Make one update and wait for its result."""
        began, cpu = time.perf_counter(), time.process_time()
        self._step += 1
        inputs, targets = (part.to(self._device) for part in self._settings.batch(self._step))
        self._updater.update(self._step, Batch(inputs, targets)).result()
        return Took(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu)

    def snapshot(self) -> Snapshot:
        """Return what a checkpoint of this moment holds, on the device."""
        return take_snapshot(self.job, Progress(step=self._step), self._updater)


def parser(name: str) -> argparse.ArgumentParser:
    """Return the options of both benchmarks, to which each adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sequences", type=int, default=8, help="in one update")
    parser.add_argument("--micro-batch-size", type=int, help="sequences in one forward pass; default: all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="updates between two checkpoints")
    parser.add_argument("--device", default=devices.find_gpu() or "cpu")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    return parser


@contextmanager
def measured(options: argparse.Namespace) -> Iterator[tuple[StepSettings, Path]]:
    """Print what is measured; yield the settings of the updates and a folder that is empty, and later removed."""
    settings = StepSettings(
        model=ModelConfig(n_layer=options.layers, n_head=max(1, options.width // 64), n_embd=options.width),
        sequences=options.sequences,
        micro_batch_size=options.micro_batch_size,
        length=options.length,
        device=options.device,
    )
    print(f"{describe_machine()}; {settings.sequences} x {settings.length} tokens a step, {options.layers} layers")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        yield settings, Path(name)


def _job(settings: StepSettings, folder: Path) -> TrainingJob:
    return TrainingJob(
        experiment_name="stall",
        fingerprint="0" * 64,
        shards_folder="",
        shards_fingerprint="0" * 64,
        experiment_folder=str(folder),
        model=settings.model,
        training=settings.training(),
        max_length=settings.length,
        cadence=CadenceConfig(eval_freq=1, eval_iters=1, save_every_n_iterations=EVERY, keep_last=1),
        hardware=HardwareConfig(device=settings.device),  # type: ignore[arg-type]
    )

"""How long training stands still for a checkpoint: `python -m benchmarks.checkpoint_stall`.

The state of GPT-2 124M with AdamW, 1.5 GB, is saved while updates go on, and once as a save that training waits for.
Printed: both times, how much slower updates are while the file is written, and what a checkpoint every 1,000 updates
costs, from these and the time of an update.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.contest import describe_machine
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import HostCopy, Progress, Snapshot, snapshot_bytes
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import SilentObserver
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.state import take_snapshot
from gpt_pipeline.training.update import Updater

_EVERY = 1000


def main() -> None:
    options = _options()
    settings = StepSettings(
        model=ModelConfig(n_layer=options.layers),
        sequences=options.sequences,
        micro_batch_size=options.micro_batch_size,
        length=options.length,
        device=options.device,
    )
    print(f"{describe_machine()}; {settings.sequences} x {settings.length} tokens a step, {options.layers} layers")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        _Measurement(settings, Path(name)).run(saves=options.saves, steps=options.steps)


class _Measurement:
    def __init__(self, settings: StepSettings, folder: Path) -> None:
        self._updater: Updater = make_updater(settings)
        self._device = self._updater.model.head_weight.device
        self._settings = settings
        self._folder = folder
        self._job = _job(settings, folder)
        self._saver = Saver(self._job, SilentObserver())
        self._step = 0

    def run(self, *, saves: int, steps: int) -> None:
        self._update()
        alone, during, stalls, writes = [], [], [], []
        for _ in range(saves):
            alone += [self._update() for _ in range(steps)]
            stalls.append(self._begin())
            started = time.perf_counter()
            while not self._saver.durable():
                during.append(self._update())
            writes.append(time.perf_counter() - started)
            self._saver.wait()
            self._saver.raise_failure()
        self._saver.close()
        waited = self._save_and_wait()
        step = statistics.median(alone)
        first, *later = stalls
        stall = statistics.median(later)
        print(f"a checkpoint: {snapshot_bytes(self._snapshot()) / 1e9:.2f} GB; an update: {step:.3f} s")
        print(f"training waits: {stall:.3f} s (the first time, when memory is allocated: {first:.3f} s)")
        print(f"it would wait {waited:.2f} s if it wrote the file itself: {waited / stall:.0f} times as long")
        slower = statistics.median(during) / step
        print(f"written after {statistics.median(writes):.1f} s, meanwhile updates take {slower:.2f} times their time")
        extra = stall + max(0.0, slower - 1) * statistics.median(writes)
        print(f"RATIO at one in {_EVERY} updates: {extra / (_EVERY * step):.3%} of the time of training")

    def _update(self) -> float:
        started = time.perf_counter()
        self._step += 1
        inputs, targets = (part.to(self._device) for part in self._settings.batch(self._step))
        self._updater.update(self._step, Batch(inputs, targets)).result()
        return time.perf_counter() - started

    def _begin(self) -> float:
        started = time.perf_counter()
        self._saver.begin(self._snapshot(), checkpoint=True, best=False, since=started)
        return time.perf_counter() - started

    def _save_and_wait(self) -> float:
        started = time.perf_counter()
        save_checkpoint(self._folder / "waited", HostCopy().of(self._snapshot()))
        return time.perf_counter() - started

    def _snapshot(self) -> Snapshot:
        return take_snapshot(self._job, Progress(step=self._step), self._updater)


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
        cadence=CadenceConfig(eval_freq=1, eval_iters=1, save_every_n_iterations=_EVERY, keep_last=1),
        hardware=HardwareConfig(device=settings.device),  # type: ignore[arg-type]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_stall")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=8, help="in one update")
    parser.add_argument("--micro-batch-size", type=int, help="sequences in one forward pass; default: all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="updates between two saves")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()

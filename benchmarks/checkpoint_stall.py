"""How long training stands still for a checkpoint: `python -m benchmarks.checkpoint_stall`.

The state of GPT-2 124M with AdamW, 1.5 GB, is saved while updates go on, and once as a save that training waits for.
Printed: both times, how much slower updates are while the file is written, and what a checkpoint every 1,000 updates
costs, from these and the time of an update.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import describe_machine
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import HostCopy, Progress, Snapshot, snapshot_bytes
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import SilentObserver
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.state import take_snapshot
from gpt_pipeline.training.update import Updater

EVERY = 1000


def main() -> None:
    options = _options()
    settings = StepSettings(
        model=ModelConfig(n_layer=options.layers, n_head=max(1, options.width // 64), n_embd=options.width),
        sequences=options.sequences,
        micro_batch_size=options.micro_batch_size,
        length=options.length,
        device=options.device,
    )
    print(f"{describe_machine()}; {settings.sequences} x {settings.length} tokens a step, {options.layers} layers")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measure(settings, Path(name), saves=options.saves, steps=options.steps)
    _show(found)
    if options.json:
        print(json.dumps(dataclasses.asdict(found)))


@dataclass(frozen=True, kw_only=True)
class Stall:
    """What a checkpoint costs; times in seconds."""

    size: int
    """Bytes."""

    update: float
    """Of an update while nothing is written."""

    stall: float
    """That training waits for a checkpoint."""

    first_stall: float
    """The same the first time, when memory is allocated."""

    waited: float
    """That it would wait if it wrote the file itself."""

    writing: float
    slower: float
    """An update while the file is written, over one while it is not."""

    @property
    def share(self) -> float:
        """Of the time of training, with a checkpoint every `EVERY` updates."""
        extra = self.stall + max(0.0, self.slower - 1) * self.writing
        return extra / (EVERY * self.update)


def measure(settings: StepSettings, folder: Path, *, saves: int, steps: int) -> Stall:
    """Return what `saves` checkpoints cost, with `steps` updates before each."""
    return _Measurement(settings, folder).run(saves=saves, steps=steps)


def _show(found: Stall) -> None:
    print(f"a checkpoint: {found.size / 1e9:.2f} GB; an update: {found.update:.3f} s")
    print(f"training waits: {found.stall:.3f} s (the first time, when memory is allocated: {found.first_stall:.3f} s)")
    times = found.waited / found.stall
    print(f"it would wait {found.waited:.2f} s if it wrote the file itself: {times:.0f} times as long")
    print(f"written after {found.writing:.1f} s, meanwhile updates take {found.slower:.2f} times their time")
    print(f"RATIO at one in {EVERY} updates: {found.share:.3%} of the time of training")


class _Measurement:
    def __init__(self, settings: StepSettings, folder: Path) -> None:
        self._updater: Updater = make_updater(settings)
        self._device = self._updater.model.head_weight.device
        self._settings = settings
        self._folder = folder
        self._job = training_job(settings, folder)
        self._saver = Saver(self._job, SilentObserver())
        self._step = 0

    def run(self, *, saves: int, steps: int) -> Stall:
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
        return Stall(
            size=snapshot_bytes(self._snapshot()),
            update=step,
            stall=statistics.median(later),
            first_stall=first,
            waited=waited,
            writing=statistics.median(writes),
            slower=statistics.median(during) / step,
        )

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


def training_job(settings: StepSettings, folder: Path) -> TrainingJob:
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_stall")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sequences", type=int, default=8, help="in one update")
    parser.add_argument("--micro-batch-size", type=int, help="sequences in one forward pass; default: all")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="updates between two saves")
    parser.add_argument("--device", default=devices.find_gpu() or "cpu")
    parser.add_argument("--json", action="store_true", help="and the figures as JSON, in the last line")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()

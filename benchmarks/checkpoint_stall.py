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
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stalls import EVERY, TimedTraining, measured, parser
from benchmarks.steps import StepSettings
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import HostCopy, snapshot_bytes
from gpt_pipeline.training.observer import SilentObserver
from gpt_pipeline.training.saver import Saver


def main() -> None:
    options = _options()
    with measured(options) as (settings, folder):
        found = measure(settings, folder, saves=options.saves, steps=options.steps)
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
        self._training = TimedTraining(settings, folder)
        self._folder = folder
        self._saver = Saver(self._training.job, SilentObserver())

    def run(self, *, saves: int, steps: int) -> Stall:
        self._training.update()
        alone, during, stalls, writes = [], [], [], []
        for _ in range(saves):
            alone += [self._training.update().seconds for _ in range(steps)]
            stalls.append(self._begin())
            started = time.perf_counter()
            while not self._saver.durable():
                during.append(self._training.update().seconds)
            writes.append(time.perf_counter() - started)
            self._saver.wait()
            self._saver.raise_failure()
        self._saver.close()
        waited = self._save_and_wait()
        step = statistics.median(alone)
        first, *later = stalls
        return Stall(
            size=snapshot_bytes(self._training.snapshot()),
            update=step,
            stall=statistics.median(later),
            first_stall=first,
            waited=waited,
            writing=statistics.median(writes),
            slower=statistics.median(during) / step,
        )

    def _begin(self) -> float:
        started = time.perf_counter()
        self._saver.begin(self._training.snapshot(), checkpoint=True, best=False, since=started)
        return time.perf_counter() - started

    def _save_and_wait(self) -> float:
        started = time.perf_counter()
        save_checkpoint(self._folder / "waited", HostCopy().of(self._training.snapshot()))
        return time.perf_counter() - started


def _options() -> argparse.Namespace:
    options = parser("checkpoint_stall")
    options.add_argument("--saves", type=int, default=3)
    options.add_argument("--json", action="store_true", help="and the figures as JSON, in the last line")
    return options.parse_args()


if __name__ == "__main__":
    main()

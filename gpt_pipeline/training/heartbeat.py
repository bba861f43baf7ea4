"""The trainer's sign of life: a small file, written every few seconds and removed when the trainer leaves in order.

A file that stays behind says that the trainer was killed, hung, or went down with its machine. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.storage.lock import BEAT_SECONDS, SILENT_SECONDS, is_locked, signs_of_life
from gpt_pipeline.storage.process import ProcessId

RUN_VARIABLE = "GPT_PIPELINE_RUN"
"""Environment variable: the id of the run, in whatever started the trainer, that the training is part of."""

OLD_SECONDS = 600.0
"""Without a sign of life for so long, a trainer that holds no lock is gone, whatever was slow."""

_NAME = "heartbeat.json"

State = Literal["running", "died", "none"]


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a trainer last said of itself."""

    process: ProcessId
    run: str
    """As `RUN_VARIABLE` said; empty when the trainer was started by hand."""

    step: int
    age_seconds: float

    @property
    def is_old(self) -> bool:
        return self.age_seconds > OLD_SECONDS


@contextmanager
def heartbeat(root: Path, *, run: str, step: Callable[[], int], every: float = BEAT_SECONDS) -> Iterator[None]:
    """Give signs of life in `root` for the length of the block, from a thread; `step` tells how far training is."""
    process = ProcessId.here()
    try:
        with signs_of_life(lambda: _write(root, process=process, run=run, step=step()), every=every):
            yield
    finally:
        heartbeat_path(root).unlink(missing_ok=True)


def heartbeat_path(root: Path) -> Path:
    """Return the file in `root` that a living trainer writes again every few seconds."""
    return root / _NAME


def read_heartbeat(root: Path) -> Heartbeat | None:
    """Return the sign of life in `root`; None where no trainer runs or all of them left in order."""
    path = heartbeat_path(root)
    try:
        value, written = read_json(path), path.stat().st_mtime
        return Heartbeat(
            process=ProcessId.from_text(value["process"]),
            run=str(value["run"]),
            step=int(value["step"]),
            age_seconds=max(0.0, time.time() - written),
        )
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None  # a machine that lost its power may leave it empty


def trainer_state(root: Path) -> State:
    """Return whether a trainer works in `root`, died there, or neither."""
    if is_locked(root):
        return "running"
    last = read_heartbeat(root)
    if last is None:
        return "none"
    unknown = not last.process.is_dead and not last.process.is_seen_here
    return "running" if unknown and last.age_seconds < SILENT_SECONDS else "died"


def _write(root: Path, *, process: ProcessId, run: str, step: int) -> None:
    # Not made durable: a sign of life that a power cut swallows has done its work.
    temporary = root / f".{_NAME}.{process.pid}.tmp"
    value = {"process": dataclasses.asdict(process), "run": run, "step": step}
    temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(temporary, heartbeat_path(root))

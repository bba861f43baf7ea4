"""Signs of life of a process, in a folder that several hosts or containers may share.

Where one process sees another, the system says whether it is alive. Elsewhere two things tell together: the lock that
the living one holds, and the file that it touches every few seconds. Some disks do not show one host's locks to
another, so a free lock alone is no proof; neither is silence, since a process may be suspended.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pipeline.storage.lock import BEAT_SECONDS, SILENT_SECONDS, hold_lock, is_held, touched
from gpt_pipeline.storage.process import ProcessId

_FOLDER = ".alive"


@contextmanager
def show_life(base: Path, process: ProcessId, *, every: float = BEAT_SECONDS) -> Iterator[None]:
    """Show in the folder `base`, for the length of the block, that `process` is alive.

    Blocks that overlap in time each have a lock and a file of their own, so that none depends on when another ends.
    """
    path = base / _FOLDER / f"{_beginning(process)}-{uuid.uuid4().hex[:8]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(path), touched(path, every=every):
            yield
    finally:
        path.unlink(missing_ok=True)
        for left in _signs(base, process):  # by a step of an earlier version that was killed: its process lived on
            if (_silence(left) or 0.0) > SILENT_SECONDS:
                left.unlink(missing_ok=True)


def silence(base: Path, process: ProcessId) -> float | None:
    """Return for how many seconds `process` has shown no life in `base`; 0 while it holds a lock, None if unknown.

    It has ended when that is more than `storage.lock.SILENT_SECONDS`.
    """
    found = (_silence(path) for path in _signs(base, process))
    return min((seconds for seconds in found if seconds is not None), default=None)


def least_silence(bases: Iterable[Path], process: ProcessId) -> float | None:
    """Return the least of the `silence` that `process` has kept in each of several folders; None if unknown."""
    return min((seconds for base in bases if (seconds := silence(base, process)) is not None), default=None)


def _silence(path: Path) -> float | None:
    try:
        touched = path.stat().st_mtime
        return 0.0 if is_held(path) else max(0.0, time.time() - touched)
    except FileNotFoundError:
        return None


def forget(base: Path, process: ProcessId) -> None:
    """Remove what a process that has ended left in `base`."""
    for path in _signs(base, process):
        path.unlink(missing_ok=True)


def _signs(base: Path, process: ProcessId) -> list[Path]:
    """Return the files that show the life of `process`."""
    return [*(base / _FOLDER).glob(f"{_beginning(process)}*.lock")]


def _beginning(process: ProcessId) -> str:
    return hashlib.sha256(process.as_text.encode()).hexdigest()[:16]

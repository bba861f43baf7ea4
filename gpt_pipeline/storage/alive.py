"""Signs of life of a process, in a folder that several hosts or containers may share.

Where one process sees another, the system says whether it is alive. Elsewhere two things tell together: the lock that
the living one holds, and the file that it touches every few seconds. Some disks do not show one host's locks to
another, so a free lock alone is no proof; neither is silence, since a process may be suspended.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from gpt_pipeline.storage.lock import BEAT_SECONDS, hold_lock, is_held, touched
from gpt_pipeline.storage.process import ProcessId

_FOLDER = ".alive"


@contextmanager
def show_life(base: Path, process: ProcessId, *, every: float = BEAT_SECONDS) -> Iterator[None]:
    """Show in the folder `base`, for the length of the block, that `process` is alive."""
    path = _path(base, process)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = ExitStack()
    try:
        held.enter_context(hold_lock(path))
    except Timeout:  # another step of the same run shows it
        yield
        return
    try:
        with held, touched(path, every=every):
            yield
    finally:
        path.unlink(missing_ok=True)


def silence(base: Path, process: ProcessId) -> float | None:
    """Return for how many seconds `process` has shown no life in `base`; 0 while it holds its lock, None if unknown.

    It has ended when that is more than `storage.lock.SILENT_SECONDS`.
    """
    path = _path(base, process)
    try:
        touched = path.stat().st_mtime
        return 0.0 if is_held(path) else max(0.0, time.time() - touched)
    except FileNotFoundError:
        return None


def forget(base: Path, process: ProcessId) -> None:
    """Remove what a process that has ended left in `base`."""
    _path(base, process).unlink(missing_ok=True)


def _path(base: Path, process: ProcessId) -> Path:
    return base / _FOLDER / f"{hashlib.sha256(process.as_text.encode()).hexdigest()[:16]}.lock"

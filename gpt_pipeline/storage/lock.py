"""One process at a time in a folder. The operating system releases the lock however its holder ends."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pipeline.errors import LockedError
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.manifest import utc_now

if sys.platform != "win32":
    import fcntl

_logger = logging.getLogger(__name__)


@contextmanager
def folder_lock(
    folder: Path, *, purpose: str, wait_seconds: float = 0, say: Callable[[str], None] = _logger.warning
) -> Iterator[None]:
    """Hold the lock of `folder` during the block; `wait_seconds` of -1 waits forever.

    If the previous holder died while holding it, `say` is told which process that was.

    Raises:
        LockedError: another live process holds it; the message names the process, its host and its purpose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.json"
    lock = FileLock(folder / ".lock", timeout=wait_seconds)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(f"{folder} is in use by {holder_of(folder)}; wait for it to end, or stop it") from None
    try:
        if holder.is_file():
            say(
                f"{folder} was last held by {holder_of(folder)}, which ended without releasing it: it was killed, or "
                "its machine went down. Taking over its lock."
            )
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now(), "purpose": purpose})
        yield
    finally:
        try:
            holder.unlink(missing_ok=True)
        finally:
            lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the lock of `folder`. Nothing is written: it may be another user's, or read-only."""
    return is_held(folder / ".lock")


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of the file `path`; nothing is written."""
    if sys.platform == "win32":
        return path.is_file() and not _try_for_an_instant(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared: so that two who look at the same time do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _try_for_an_instant(path: Path) -> bool:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return False
    lock.release()
    return True


def held_for(folder: Path) -> str | None:
    """Return the purpose for which a live process holds the lock of `folder`; None if none does or it is unknown."""
    if not is_locked(folder):
        return None
    try:
        return str(read_json(folder / ".lock.json")["purpose"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def holder_of(folder: Path) -> str:
    """Return who holds the lock of `folder`, or held it last, in words."""
    try:
        value = read_json(folder / ".lock.json")
        return f"process {value['pid']} on {value['host']} ({value['purpose']}, since {value['since']})"
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return "another process"

"""One process at a time in a folder. The operating system releases the lock however its holder ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pipeline.errors import LockedError
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.manifest import utc_now

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
        raise LockedError(f"{folder} is in use by {_describe(holder)}; wait for it to end, or stop it") from None
    try:
        if holder.is_file():
            say(
                f"{folder} was last held by {_describe(holder)}, which ended without releasing it: it was killed, or "
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
    """Whether a live process holds the lock of `folder`."""
    if not (folder / ".lock").is_file():
        return False
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def held_for(folder: Path) -> str | None:
    """Return the purpose for which a live process holds the lock of `folder`; None if none does or it is unknown."""
    if not is_locked(folder):
        return None
    try:
        return str(read_json(folder / ".lock.json")["purpose"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _describe(holder: Path) -> str:
    try:
        value = read_json(holder)
        return f"process {value['pid']} on {value['host']} ({value['purpose']}, since {value['since']})"
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return "another process"

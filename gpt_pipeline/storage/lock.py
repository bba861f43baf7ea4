"""One process at a time in a folder. The operating system releases the lock however its holder ends."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pipeline.errors import LockedError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import TEMPORARY_SUFFIX, read_json, write_json
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.process import ProcessId

if sys.platform != "win32":
    import fcntl

_logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
"""A living process gives a sign this often, where it gives any."""

SILENT_SECONDS = 120.0
"""A process that holds no lock and was silent for so long has ended, wherever it ran."""

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}  # of a disk without them
_POLL_SECONDS = 0.25


@contextmanager
def folder_lock(folder: Path, *, purpose: str, wait_seconds: float = 0, say: Say = _logger.warning) -> Iterator[None]:
    """Hold the lock of `folder` during the block; `wait_seconds` of -1 waits forever.

    If the previous holder died while holding it, `say` is told which process that was.

    Raises:
        LockedError: another live process holds it; the message names the process, its host and its purpose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.json"
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(folder / ".lock", wait_seconds=wait_seconds))
        except Timeout:
            raise LockedError(f"{folder} is in use by {holder_of(folder)}; wait for it to end, or stop it") from None
        if holder.is_file():
            say(
                f"{folder} was last held by {holder_of(folder)}, which ended without releasing it: it was killed, or "
                "its machine went down. Taking over its lock."
            )
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now(), "purpose": purpose})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


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
        is_free = _is_free(descriptor)
    finally:
        os.close(descriptor)
    if is_free is None:
        marker = _marker_of(path)
        return marker.is_file() and not _is_abandoned(marker)
    return not is_free


@contextmanager
def hold_lock(path: Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of the file `path`, whose folder exists, during the block; `wait_seconds` of -1 waits forever.

    On a disk without file locks, as Lustre's often are, a second file stands in for the lock, and shows life. One that
    was left by a process that is gone counts for nothing.

    Raises:
        Timeout: another live process holds it.
    """
    if disk_has_locks(path):
        with FileLock(path, timeout=wait_seconds):
            yield
        return
    marker = _marker_of(path)
    _set(marker, wait_seconds=wait_seconds)
    try:
        with touched(marker):
            yield
    finally:
        marker.unlink(missing_ok=True)


def disk_has_locks(path: Path) -> bool:
    """Whether the system can lock the file `path`, which is made if it does not exist."""
    if sys.platform == "win32":
        return True
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        return _is_free(descriptor) is not None
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool | None:
    """Whether no other process holds the lock of an open file; None on a disk without file locks. For POSIX."""
    try:
        # Shared: so that two who look at the same time do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


@contextmanager
def touched(path: Path, *, every: float = BEAT_SECONDS) -> Iterator[None]:
    """Touch the file `path` every few seconds during the block, from a thread."""
    path.touch()
    with signs_of_life(lambda: os.utime(path), every=every):
        yield


@contextmanager
def signs_of_life(give: Callable[[], None], *, every: float) -> Iterator[None]:
    """Call `give` at once and then every few seconds during the block, from a thread."""

    def live(ended: threading.Event) -> None:
        while True:
            with suppress(OSError):  # a disk that fails for a while: the work itself has to tell of it
                give()
            if ended.wait(every):
                return

    with beside(live, name="signs of life"):
        yield


@contextmanager
def beside(work: Callable[[threading.Event], None], *, name: str) -> Iterator[None]:
    """Do `work` in a thread during the block; the event that it is given says that the block has ended."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=[ended], name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def remove_abandoned(folder: Path) -> None:
    """Remove unfinished files that killed processes left in `folder`, where others may be writing: the silent ones."""
    left = list(folder.glob(f".*{TEMPORARY_SUFFIX}"))
    if not left:
        return
    with suppress(OSError):  # of a folder that is only readable: a leftover that stays is no reason to fail
        silent_since = _time_in(folder) - SILENT_SECONDS
        for path in left:
            with suppress(OSError):  # another process removes it too, or has it open on Windows
                if path.stat().st_mtime < silent_since:
                    path.unlink()


def _time_in(folder: Path) -> float:
    """Return the time by which the disk of `folder` dates files; this machine's clock may be another."""
    probe = folder / f".now.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        probe.write_bytes(b"now")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _marker_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _set(marker: Path, *, wait_seconds: float) -> None:
    """Make the marker, which nobody else can then, once there is none or the one there is abandoned."""
    until = math.inf if wait_seconds < 0 else time.monotonic() + wait_seconds
    text = ProcessId.here().as_text
    while True:
        try:
            with marker.open("x", encoding="utf-8") as file:
                file.write(text)
            return
        except FileExistsError:
            if _is_abandoned(marker):
                # Renamed first: of two that find it abandoned, one gets it, and none removes the other's new one.
                aside = marker.with_name(f"{marker.name}.{uuid.uuid4().hex[:8]}")
                with suppress(FileNotFoundError):
                    marker.rename(aside)
                    aside.unlink()
                continue
        if time.monotonic() >= until:
            raise Timeout(str(marker))
        time.sleep(_POLL_SECONDS)


def _is_abandoned(marker: Path) -> bool:
    try:
        silent = time.time() - marker.stat().st_mtime > SILENT_SECONDS
        process = ProcessId.from_text(read_json(marker))
    except FileNotFoundError:
        return False
    except (KeyError, TypeError, ValueError):
        return silent  # it is being written, or its writer died at that
    return process.is_dead or (silent and not process.is_seen_here)


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

"""Leases: a checkpoint is not deleted while a process uses it.

A lease is a locked file in `checkpoints/.leases`; the operating system drops the lock when its holder dies.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpt_pipeline.errors import UserError
from gpt_pipeline.storage.lock import hold_lock, is_held

_FOLDER = ".leases"
_SUFFIX = ".lease"
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep the checkpoint `path` from being removed during the block.

    Raises:
        UserError: it no longer exists.
    """
    lease = path.parent / _FOLDER / f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
    held = ExitStack()
    try:
        with _changing_leases(path.parent):
            if not path.is_file():
                raise UserError(f"{path}: no such checkpoint; it may have been removed to make room for newer ones")
            held.enter_context(hold_lock(lease))
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        yield  # another user's folder, or a read-only one: it can be read, and not be marked as in use
        return
    try:
        with held:
            yield
    finally:
        lease.unlink(missing_ok=True)


@contextmanager
def leases_frozen(folder: Path) -> Iterator[set[str]]:
    """Yield the names of the held checkpoints in `folder`; no lease is taken during the block."""
    with _changing_leases(folder):
        yield {path.name.rsplit(".", 2)[0] for path in (folder / _FOLDER).glob(f"*{_SUFFIX}") if _is_held(path)}


@contextmanager
def _changing_leases(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    (folder / _FOLDER).mkdir(exist_ok=True)
    with hold_lock(folder / _FOLDER / "lock", wait_seconds=-1):
        yield


def _is_held(lease: Path) -> bool:
    if is_held(lease):
        return True
    lease.unlink(missing_ok=True)  # whose holder died
    return False

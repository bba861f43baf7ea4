"""Leases: a checkpoint is not deleted while a process uses it.

A lease is a locked file in `checkpoints/.leases`; the operating system drops the lock when its holder dies.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pipeline.errors import UserError

_FOLDER = ".leases"
_SUFFIX = ".lease"


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep the checkpoint `path` from being removed during the block.

    Raises:
        UserError: it no longer exists.
    """
    lease_path = path.parent / _FOLDER / f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
    lease = FileLock(lease_path, timeout=0)
    with _changing_leases(path.parent):
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; it may have been removed to make room for newer ones")
        lease.acquire()
    try:
        yield
    finally:
        lease.release()
        lease_path.unlink(missing_ok=True)


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
    with FileLock(folder / _FOLDER / "lock"):
        yield


def _is_held(lease_path: Path) -> bool:
    lease = FileLock(lease_path, timeout=0)
    try:
        lease.acquire()
    except Timeout:
        return True
    lease.release()
    lease_path.unlink(missing_ok=True)  # whose holder died
    return False

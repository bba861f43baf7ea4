"""Free space on the disk of a folder, and the lack of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pipeline.errors import DiskFullError, UserError

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_FULL_BYTES = 1 << 20


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet.

    Raises:
        UserError: as `existing_folder`.
    """
    return shutil.disk_usage(existing_folder(folder)).free


def existing_folder(folder: Path) -> Path:
    """Return `folder`, or the nearest one above it that exists.

    Raises:
        UserError: there is none, as on a drive that is not connected.
    """
    for each in (folder, *folder.parents):
        if each.exists():
            return each
    raise UserError(
        f"{folder}: this machine has no {folder.anchor or 'such folder'}; plug it in, or choose another folder"
    )


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """Turn a write in the block that failed for lack of space into a `DiskFullError` that names `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or not is_for_lack_of_room(error, path.parent):
            raise
        reason = error.strerror or str(error)
        full = DiskFullError(
            f"{path}: no room ({reason}); found {free_bytes(path.parent):,} bytes free on its disk. What was finished "
            "is untouched: free some space, and run again"
        )
        full.errno, full.strerror = error.errno or errno.ENOSPC, reason
        raise full from error


def is_for_lack_of_room(error: OSError, folder: Path) -> bool:
    """Whether a write in `folder` failed because its disk is full; NumPy's own error does not say why it failed."""
    return error.errno in _NO_ROOM or (error.errno is None and free_bytes(folder) < _FULL_BYTES)

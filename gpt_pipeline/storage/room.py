"""Free space on the disk of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpt_pipeline.errors import UserError


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

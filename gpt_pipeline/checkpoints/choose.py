"""The checkpoint that a name stands for: `best`, `last`, a step, a file, or one to resume from. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import (
    BEST_NAME,
    CheckpointInfo,
    all_checkpoints,
    best_checkpoint,
    find_checkpoint,
    manifest_path,
    newer_manifests,
    read_info,
)
from gpt_pipeline.errors import DamagedFileError, UserError

BEST = "best"
LAST = "last"

_STEP = re.compile(r"step_(\d+)")


def choose_checkpoint(folder: Path, name: str, *, if_none: str = "train first: gpt-pipeline run") -> CheckpointInfo:
    """Return the checkpoint that `name` means in the `checkpoints` folder; its content is not read.

    `best` has the lowest, while training, of the loss that decides (`training/config.deciding_loss`), `last` is the
    newest step, `step_70` or `step_00000070` that step, anything else a file, in the folder or wherever its path leads.
    `if_none` is what to do where the folder has none at all.

    Raises:
        UserError: there is none of that name; the message lists those that exist.
        DamagedFileError: its file is not as long as its manifest says, or has no manifest.
        NewerFileError: only a newer version can read it, or tell that it is not the one.
    """
    newer = newer_manifests(folder)
    info = None if name == LAST and newer else _meant(folder, name)
    if info is not None:
        return info
    for error in newer.values():
        raise error
    path = _file(folder, name)
    if path is not None and path.is_file():
        raise DamagedFileError(
            f"{path}: found {path.stat().st_size:,} bytes, need a finished checkpoint: one that is as long as its "
            f"manifest {manifest_path(path).name} says; take another, {_known(folder, if_none)}"
        )
    if not all_checkpoints(folder):
        raise UserError(_known(folder, if_none))
    if name == BEST:
        raise UserError(
            f"checkpoint: found no best one, need an estimate of the losses, by which a run keeps it; take last, or "
            f"another: {_known(folder, if_none)}"
        )
    raise UserError(f"checkpoint: found {name!r}, need best, last, step_<N> or a .pt file; {_known(folder, if_none)}")


def checkpoint_to_resume(folder: Path, name: str) -> Path:
    """Return the file that `storage.checkpoint_to_resume` names in the `checkpoints` folder, with a manifest or not.

    Raises:
        UserError: there is none of that name; the message lists the finished ones.
    """
    path = folder / name
    if path.is_file():
        return path
    known = all_checkpoints(folder)
    names = ", ".join(info.path.name for info in known) or "there is none yet"
    remedy = "correct it, or set it to null" if known else "set it to null"
    raise UserError(f"storage.checkpoint_to_resume: found {name!r}, need one of those in {folder}: {names}; {remedy}")


def _meant(folder: Path, name: str) -> CheckpointInfo | None:
    if name == BEST:
        return best_checkpoint(folder)
    if name == LAST:
        return max(all_checkpoints(folder), key=lambda info: info.step, default=None)
    step = _STEP.fullmatch(name)
    if step:
        return find_checkpoint(folder, int(step[1]))
    path = _file(folder, name)
    return read_info(path) if path is not None else None


def _file(folder: Path, name: str) -> Path | None:
    """Return the file that `name` stands for, whether or not it exists; None if `name` is not a file name."""
    if name == BEST:
        return folder / BEST_NAME
    if not name.endswith(".pt"):
        return None
    inside = folder / name
    return inside if inside.is_file() else Path(name).absolute()


def _known(folder: Path, if_none: str) -> str:
    names = sorted({info.step: info.path.name for info in reversed(all_checkpoints(folder))}.items())
    if not names:
        return f"{folder} has no checkpoint yet; {if_none}"
    return f"{folder} has {', '.join(name for _, name in names)}"

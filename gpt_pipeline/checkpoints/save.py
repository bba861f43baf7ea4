"""Write checkpoints so that a process killed at any moment leaves the earlier ones untouched.

Temporary name, fsync, rename, fsync of the folder, then the manifest. Its sha256 is that of the bytes as they left this
process, so verification finds what a disk or a crash did to them afterwards.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import torch

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.manifest import (
    BEST_NAME,
    CheckpointInfo,
    announce_best,
    checkpoint_path,
    possible_infos,
    set_aside,
    settle_best,
    write_manifest,
)
from gpt_pipeline.checkpoints.snapshot import Snapshot, snapshot_bytes, weights_sha256
from gpt_pipeline.errors import DiskFullError
from gpt_pipeline.shown import size
from gpt_pipeline.storage.atomic import HashedFile, atomic_path
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.room import free_bytes, is_for_lack_of_room


def save_checkpoint(folder: Path, snapshot: Snapshot) -> CheckpointInfo:
    """Write `checkpoint_step_<N>.pt` and its manifest into `folder`; return its info.

    Any other file of this name is set aside as `*.leftover`.

    Raises:
        DiskFullError: no space; the message says how many GB are needed. Older checkpoints are untouched.
    """
    path = checkpoint_path(folder, snapshot.step)
    _keep_leftover(path)
    with _room_for(snapshot, folder), atomic_path(path) as temporary:
        info = _write(temporary, path, snapshot)
    write_manifest(info)
    return info


def save_best(folder: Path, snapshot: Snapshot) -> CheckpointInfo:
    """Replace `best_model.pt` so that a valid one, old or new, exists at every moment.

    Raises:
        DiskFullError: as `save_checkpoint`.
    """
    path = _settled_best(folder)
    with _room_for(snapshot, folder), atomic_path(path) as temporary:
        info = _write(temporary, path, snapshot)
        announce_best(info)
    settle_best(folder)
    return info


def link_best(folder: Path, checkpoint: CheckpointInfo) -> CheckpointInfo:
    """Make `best_model.pt` the same file as `checkpoint`; a copy where the file system has no hard links."""
    path = _settled_best(folder)
    info = CheckpointInfo.from_json({**checkpoint.to_json(), "path": path})
    with atomic_path(path) as temporary:
        try:
            os.link(checkpoint.path, temporary)
        except OSError:
            shutil.copyfile(checkpoint.path, temporary)
        announce_best(info)
    settle_best(folder)
    return info


def _settled_best(folder: Path) -> Path:
    path = folder / BEST_NAME
    settle_best(folder)
    if not possible_infos(path):
        _keep_leftover(path)
    return path


def _keep_leftover(path: Path) -> None:
    if path.exists():
        possible_infos(path)  # raises NewerFileError: what a newer version wrote keeps its name
        set_aside(path, why="leftover")


def _write(temporary: Path, path: Path, snapshot: Snapshot) -> CheckpointInfo:
    with HashedFile(temporary) as file:
        try:
            torch.save(snapshot.payload(), file)
        except Exception as error:
            # torch wraps what a failing write raises; the system's own error says why.
            raise file.error or error from error
    return CheckpointInfo(
        path=path,
        step=snapshot.step,
        sha256=file.sha256,
        weights_sha256=weights_sha256(snapshot.model),
        size=file.size,
        fingerprint=snapshot.fingerprint,
        shards_fingerprint=snapshot.shards_fingerprint,
        tokens_seen=snapshot.progress.tokens_seen,
        metrics={"train_loss": snapshot.progress.train_loss, "val_loss": snapshot.progress.val_loss},
        model=snapshot.model_config,
        created_at=utc_now(),
        versions={"gpt_pipeline": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        settings=snapshot.settings,
    )


class _room_for:  # noqa: N801  # reads as a function in a with statement
    """Turn a write that failed for lack of space into a `DiskFullError`."""

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self._snapshot = snapshot
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and is_for_lack_of_room(error, self._folder):
            needed, free = size(snapshot_bytes(self._snapshot)), size(free_bytes(self._folder))
            raise DiskFullError(
                f"no room for the checkpoint of step {self._snapshot.step} in {self._folder}: found {free} free "
                f"({error.strerror}), need {needed}; earlier checkpoints are untouched. Free some space, "
                "or lower evaluation.keep_last, and run again"
            ) from error

"""Which checkpoints are kept: the newest, the best, those in use, and those that await evaluation.

Imports no torch: evaluators announce themselves from light processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from gpt_pipeline.checkpoints.leases import leases_frozen
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    checkpoint_key,
    list_checkpoints,
    manifest_path,
)
from gpt_pipeline.shown import Say, size
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.storage.room import explained_full_disk, free_bytes

_logger = logging.getLogger(__name__)

_EVALUATOR_NAME = "evaluator.json"
_HEARTBEAT_SECONDS = 600.0  # an evaluator that has not touched its file for longer is gone
_SPARE_CHECKPOINTS = 2  # with less space than this, waiting for an evaluator would stop the training


def kept_checkpoints(keep_last: int) -> int:
    """Return how many checkpoints are on disk at the same time: the newest, the best, and the one being written."""
    return keep_last + 2


def prune(
    folder: ExperimentFolder,
    *,
    keep_last: int,
    training: str = "",
    among: Collection[str] | None = None,
    say: Say = _logger.warning,
) -> list[CheckpointInfo]:
    """Remove the checkpoints that need not be kept; return them. `best_model.pt` is never touched.

    The newest of the `training` with this fingerprint stays, whatever later ones of others are there. Where `among` is
    given, only files with these names go. `say` is told when the disk leaves no room to wait for evaluations.
    """
    checkpoints = list_checkpoints(folder.checkpoints)
    best = best_checkpoint(folder.checkpoints)
    own = [info.step for info in checkpoints if info.fingerprint == training]
    kept = {*own[-1:], *([] if best is None else [best.step])}
    candidates = [
        info
        for info in checkpoints[:-keep_last]
        if info.step not in kept and (among is None or info.path.name in among)
    ]
    if not candidates:
        return []
    awaited = _awaited_steps(folder, candidates, say)
    with leases_frozen(folder.checkpoints) as held:
        removable = [info for info in candidates if info.path.name not in held and info.step not in awaited]
        return [info for info in removable if _remove(info)]


def announce_evaluator(root: Path) -> None:
    """Announce an evaluator for the experiment in `root`: its checkpoints are kept until they are evaluated.

    Call it at least every ten minutes. It says that somebody looks for checkpoints, not that one is being evaluated.

    Raises:
        DiskFullError: there is no room to say so.
    """
    path = root / _EVALUATOR_NAME
    with explained_full_disk(path):
        path.write_text(f"{ProcessId.here().as_text}\n", encoding="utf-8")


def _was_announced(root: Path) -> bool:
    path = root / _EVALUATOR_NAME
    return path.is_file() and time.time() - path.stat().st_mtime <= _HEARTBEAT_SECONDS


def _awaited_steps(folder: ExperimentFolder, candidates: list[CheckpointInfo], say: Say) -> set[int]:
    if not _was_announced(folder.root):
        return set()
    awaited = {info.step for info in candidates if not _is_evaluated(folder, info.step)}
    free, need = free_bytes(folder.checkpoints), _SPARE_CHECKPOINTS * candidates[-1].size
    if awaited and free < need:
        steps = ", ".join(str(step) for step in sorted(awaited))
        say(
            f"Checkpoints are removed before they are evaluated, those of step {steps}: found {size(free)} free "
            f"on the disk of {folder.checkpoints}, need {size(need)} for the next ones; free some space"
        )
        return set()
    return awaited


def _is_evaluated(folder: ExperimentFolder, step: int) -> bool:
    return any(folder.evaluations.glob(f"{checkpoint_key(step)}-*.json"))


def _remove(info: CheckpointInfo) -> bool:
    try:
        info.path.unlink(missing_ok=True)  # first: a manifest without its file does not count as a checkpoint
    except PermissionError:  # Windows refuses to remove a file that someone reads
        _logger.warning("%s is in use and is kept for now", info.path)
        return False
    manifest_path(info.path).unlink(missing_ok=True)
    return True

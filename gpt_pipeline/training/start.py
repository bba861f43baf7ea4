"""From where a training starts: what is continued, what is set aside, what is refused. Nothing is overwritten.

All of it needs the lock of the experiment's folder.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.checkpoints.load import load_checkpoint, verify_checkpoint
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    checkpoint_key,
    list_checkpoints,
    manifest_path,
    read_info,
    set_aside,
    settle_best,
)
from gpt_pipeline.checkpoints.snapshot import Snapshot
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import fsync_folder, remove_leftovers
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.demand import MARKER_NAME, Demand
from gpt_pipeline.training.finished import FinishedTraining, find_finished_training, last_checkpoint
from gpt_pipeline.training.job import SCRATCH, TrainingJob
from gpt_pipeline.training.metrics import write_metrics_up_to

Say = Callable[[str], None]

_PREVIOUS_NAME = "previous"
_NOT_SHAPE = ("dropout",)  # of a model's configuration: may differ between a checkpoint and what continues it


@dataclass(frozen=True, kw_only=True)
class Start:
    """From where to train."""

    checkpoint: CheckpointInfo | None = None
    """The checkpoint to continue from; None: from the first step."""

    snapshot: Snapshot | None = None
    """What that checkpoint holds."""

    finished: FinishedTraining | None = None
    """Set when there is nothing left to do."""


def decide_start(job: TrainingJob, *, max_steps: int, say: Say) -> Start:
    """Return from where the training starts, having moved aside what would be in its way.

    A checkpoint that is damaged is set aside as `*.damaged` and the one before it taken. A demand to start anew or
    from a named file is carried out once: the same job started again goes on with what that began.

    Raises:
        UserError: the named checkpoint is missing, damaged, or of another shape.
    """
    folder = job.folder
    remove_leftovers(folder.root)
    remove_leftovers(folder.checkpoints)
    settle_best(folder.checkpoints)
    demand = Demand.of(job)
    before = Demand.read(folder)
    if demand.is_for_something and demand == before:
        start = _go_on(job, say) if demand.resume in (None, SCRATCH) else _go_on_from_file(job, max_steps, say)
    elif demand.request or job.resume == SCRATCH:
        _move_aside(folder, "starting from scratch as asked", say)
        start = Start()
    elif job.resume is not None:
        start = _from_file(job, max_steps, say)
    else:
        start = _go_on(job, say)
    demand.write(folder)
    return start


def _go_on(job: TrainingJob, say: Say) -> Start:
    """Continue the newest valid checkpoint of the same training, or start it."""
    folder = job.folder
    _set_truncated_aside(folder.checkpoints, say)
    finished = find_finished_training(folder, job.fingerprint)
    newest = _newest_valid(folder.checkpoints, job.fingerprint, say)
    if newest is not None:
        info, snapshot = newest
        if finished is None or info != last_checkpoint(folder, finished):
            say(f"Continuing from {info.path.name}, step {info.step}.")
            return Start(checkpoint=info, snapshot=snapshot)
        say(f"Nothing to do: this training reached its last step, {finished.step}, at {finished.created_at}.")
        return Start(checkpoint=info, finished=finished)
    before = Demand.read(folder)
    if before is None or before.fingerprint != job.fingerprint or _has_checkpoints(folder):
        _move_aside(folder, "no valid checkpoint of this configuration and data is in the folder", say)
    return Start()


def _go_on_from_file(job: TrainingJob, max_steps: int, say: Say) -> Start:
    """Continue what a named checkpoint began: with its newest successor, or with itself while there is none."""
    successors = [info for info in list_checkpoints(job.folder.checkpoints) if info.fingerprint == job.fingerprint]
    named = read_info(job.folder.checkpoints / str(job.resume))
    if named is None or any(info.step > named.step for info in successors):
        say(f"{job.resume} was resumed before; continuing what came of it.")
        return _go_on(job, say)
    return _from_file(job, max_steps, say)


def _from_file(job: TrainingJob, max_steps: int, say: Say) -> Start:
    info = _named_checkpoint(job)
    _require_same_shape(info, job.model)
    if info.step > max_steps:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} is at step {info.step}, and this training ends at step "
            f"{max_steps}; raise training.max_steps or training.num_epochs, or resume an earlier one"
        )
    snapshot = load_checkpoint(info.path, verify=False)
    saved_with = snapshot.optimizer["name"]
    if saved_with != job.training.optimizer:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} was made with training.optimizer: {saved_with}, and the "
            f"experiment says {job.training.optimizer}; set it to {saved_with}, or train from scratch"
        )
    if info.fingerprint != job.fingerprint:
        say(
            f"{info.path.name} was made with another configuration or other data; its shape fits, so its weights, "
            f"optimizer and step {info.step} are taken over."
        )
    _rewind(job.folder, info, say)
    say(f"Continuing from {info.path.name}, step {info.step}, as asked.")
    return Start(checkpoint=info, snapshot=snapshot)


def _named_checkpoint(job: TrainingJob) -> CheckpointInfo:
    path = job.folder.checkpoints / str(job.resume)
    if not path.is_file():
        known = list_checkpoints(path.parent)
        best = best_checkpoint(path.parent)
        names = [info.path.name for info in (*known, *([best] if best else []))]
        raise UserError(
            f"storage.checkpoint_to_resume: found {job.resume!r}, need one of those in {path.parent}: "
            f"{', '.join(names) if names else 'there is none yet; set it to null'}"
        )
    return verify_checkpoint(path)


def _require_same_shape(info: CheckpointInfo, model: ModelConfig) -> None:
    found, needed = dataclasses.asdict(info.model), dataclasses.asdict(model)
    differences = [
        f"{key}: {found[key]} in the checkpoint, {needed[key]} in the experiment"
        for key in needed
        if key not in _NOT_SHAPE and found[key] != needed[key]
    ]
    if differences:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} has another shape ({'; '.join(differences)}); "
            "set model to the checkpoint's, or train from scratch"
        )


def _newest_valid(checkpoints: Path, fingerprint: str, say: Say) -> tuple[CheckpointInfo, Snapshot] | None:
    best = best_checkpoint(checkpoints)
    candidates = [*([best] if best else []), *list_checkpoints(checkpoints)]
    candidates.sort(key=lambda info: info.step)  # stable: of two at one step the one under its own name comes last
    for info in reversed([info for info in candidates if info.fingerprint == fingerprint]):
        try:
            # Of the file's manifests, the one that fits: a best_model.pt may just have been replaced.
            return verify_checkpoint(info.path), load_checkpoint(info.path, verify=False)
        except DamagedFileError as error:
            say(f"{error}. It is kept as {set_aside(info.path, why='damaged').name}; trying the one before.")
    return None


def _set_truncated_aside(checkpoints: Path, say: Say) -> None:
    for manifest in sorted(checkpoints.glob("*.json")):
        path = manifest.with_suffix(".pt")
        if path.is_file() and read_info(path) is None:
            aside = set_aside(path, why="damaged")
            say(f"{path} is damaged: it is not what its manifest says. It is kept as {aside.name}.")


def _rewind(folder: ExperimentFolder, to: CheckpointInfo, say: Say) -> None:
    """Move aside what came after the checkpoint `to`: newer checkpoints, their evaluations, later metrics."""
    best = best_checkpoint(folder.checkpoints)
    newer = [*list_checkpoints(folder.checkpoints), *([best] if best else [])]
    checkpoints = [info.path for info in newer if info.step > to.step]
    # The zeros in the names make their order that of the steps.
    kept = checkpoint_key(to.step + 1)
    evaluations = [path for path in folder.evaluations.glob("step_*.json") if path.name >= kept]
    moved = [path for pt in checkpoints for path in (manifest_path(pt), pt)]
    moved += [path for path in (*evaluations, folder.training, folder.report) if path.exists()]
    if not moved and not folder.metrics.is_file():
        return
    aside = _new_previous(folder)
    for path in moved:
        target = aside / path.relative_to(folder.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        _move(path, target)
    if folder.metrics.is_file():
        _move(folder.metrics, aside / folder.metrics.name)
        write_metrics_up_to(aside / folder.metrics.name, folder.metrics, step=to.step)
    fsync_folder(aside)
    if checkpoints:
        say(f"{len(checkpoints)} checkpoints after step {to.step} are moved to {aside}.")


def _move_aside(folder: ExperimentFolder, why: str, say: Say) -> None:
    """Move what an earlier training left to a new folder in `previous`."""
    names = (folder.training, folder.checkpoints, folder.metrics, folder.evaluations, folder.report)
    present = [path for path in (*names, folder.root / MARKER_NAME) if path.exists()]
    if not any(path.is_file() or any(path.iterdir()) for path in present):
        return
    aside = _new_previous(folder)
    for path in present:
        _move(path, aside / path.name)
    fsync_folder(folder.root)
    say(f"The earlier training in {folder.root} is moved to {aside.relative_to(folder.root)}: {why}.")


def _new_previous(folder: ExperimentFolder) -> Path:
    """Return a new folder `previous/<number>-<UTC time>`, numbered after those that are there."""
    parent = folder.root / _PREVIOUS_NAME
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name.split("-")[0]) for path in parent.iterdir() if path.name.split("-")[0].isdigit()]
    aside = parent / f"{max(numbers, default=0) + 1:03d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside.mkdir()
    return aside


def _move(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be moved to {target}: {error.strerror}; close what uses it, run again"
        ) from None


def _has_checkpoints(folder: ExperimentFolder) -> bool:
    return any(folder.checkpoints.glob("*.pt*"))

"""From where a training starts: what is continued, what is set aside, what is refused. Nothing is overwritten.

All of it needs the lock of the experiment's folder.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.checkpoints.choose import checkpoint_to_resume
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
from gpt_pipeline.checkpoints.snapshot import Snapshot, weights_sha256
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import fsync_folder, remove_leftovers, sha256_of
from gpt_pipeline.storage.fingerprint import neutral_values
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.changes import Change, Settings, find_changes, listed
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.demand import MARKER_NAME, PREVIOUS_NAME, Demand, earlier_trainings
from gpt_pipeline.training.finished import FinishedTraining, find_finished_training, last_checkpoint
from gpt_pipeline.training.job import SCRATCH, TrainingJob
from gpt_pipeline.training.metrics import SENT_NAME, write_metrics_up_to
from gpt_pipeline.training.original import OPTIMIZER, OriginalCheckpoint, optimizer_state, read_original
from gpt_pipeline.training.plan import sequences_per_step
from gpt_pipeline.training.randomness import random_states, seed_all

Say = Callable[[str], None]

_OPTIMIZER_KEY = "training.optimizer"


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
            _say_changes(info, find_changes(_settings_before(info), job), job, say)
            say(f"Continuing from {info.path.name}, step {info.step}.")
            return Start(checkpoint=info, snapshot=snapshot)
        say(f"Nothing to do: this training reached its last step, {finished.step}, at {finished.created_at}.")
        return Start(checkpoint=info, finished=finished)
    before = Demand.read(folder)
    if before is None or before.fingerprint != job.fingerprint or _has_checkpoints(folder):
        why = "no valid checkpoint of this configuration and data is in the folder"
        _move_aside(folder, why + _difference_to_newest(job), say)
    return Start()


def _difference_to_newest(job: TrainingJob) -> str:
    """Return what sets the newest checkpoint in the folder apart from `job`, to be read after "is in the folder"."""
    checkpoints = [info for info in list_checkpoints(job.folder.checkpoints) if info.fingerprint != job.fingerprint]
    changes = find_changes(_settings_before(checkpoints[-1]), job) if checkpoints else []
    telling = [str(change) for change in changes if change.effect != "free"]
    return f" ({checkpoints[-1].path.name} has {'; '.join(telling)})" if telling else ""


def _go_on_from_file(job: TrainingJob, max_steps: int, say: Say) -> Start:
    """Continue what a named checkpoint began: with its newest successor, or with itself while there is none."""
    successors = [info for info in list_checkpoints(job.folder.checkpoints) if info.fingerprint == job.fingerprint]
    path = job.folder.checkpoints / str(job.resume)
    named = read_info(path)
    # Without a manifest it is an original checkpoint, which stays where it lies; any successor is a later step.
    is_pending = path.is_file() and not any(named is None or info.step > named.step for info in successors)
    if not is_pending:
        say(f"{job.resume} was resumed before; continuing what came of it.")
        return _go_on(job, say)
    return _from_file(job, max_steps, say)


def _from_file(job: TrainingJob, max_steps: int, say: Say) -> Start:
    path = checkpoint_to_resume(job.folder.checkpoints, str(job.resume))
    original = None if manifest_path(path).is_file() else read_original(path)
    if original is None:
        info = verify_checkpoint(path)
        changes = find_changes(_settings_before(info), job)
        _require_fit(info, changes)
        _require_steps_left(info, max_steps, at_least=0)
        snapshot = load_checkpoint(path, verify=False)
        _require_fit(info, _optimizer_change(snapshot, job))
    else:
        info = _original_info(path, original, job)
        changes = find_changes(_settings_of_original(original), job)
        _require_fit(info, changes)
        _require_steps_left(info, max_steps, at_least=1)
        snapshot = snapshot_of_original(info, original, job)
        _say_original(info, original, say)
    _say_changes(info, changes, job, say)
    _rewind(job.folder, info, say)
    say(f"Continuing from {path.name}, step {info.step}, as asked.")
    return Start(checkpoint=info, snapshot=snapshot)


def read_start(job: TrainingJob, info: CheckpointInfo) -> Snapshot:
    """Return what the checkpoint that the first process decided on holds: for the other processes of a training."""
    original = None if manifest_path(info.path).is_file() else read_original(info.path)
    return load_checkpoint(info.path, verify=False) if original is None else snapshot_of_original(info, original, job)


def snapshot_of_original(info: CheckpointInfo, original: OriginalCheckpoint, job: TrainingJob) -> Snapshot:
    """Return the state to continue an original checkpoint from; its losses, of other data, start no record here."""
    seed_all(job.training.seed)
    return Snapshot(
        model=original.model,
        model_config=job.model,
        optimizer=optimizer_state(original, job.model, job.training),
        random=random_states(),
        step=info.step,
        tokens_seen=info.tokens_seen,
        seconds=0.0,
        train_loss=None,
        val_loss=None,
        validated_step=-1,
        best_val_loss=None,
        best_step=-1,
        fingerprint=info.fingerprint,
        shards_fingerprint=info.shards_fingerprint,
    )


def _original_info(path: Path, original: OriginalCheckpoint, job: TrainingJob) -> CheckpointInfo:
    sequences = sequences_per_step(job.training, max_length=job.max_length)
    return CheckpointInfo(
        path=path,
        step=original.step,
        sha256=sha256_of(path),
        weights_sha256=weights_sha256(original.model),
        size=path.stat().st_size,
        fingerprint="",  # of no training that is known here
        shards_fingerprint="",
        tokens_seen=original.step * sequences * job.max_length,
        metrics={},
        model=job.model,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime)),
    )


def _settings_before(info: CheckpointInfo) -> Settings:
    """Return what the training that made `info` was told; of a manifest from before it was kept, the model's shape.

    A key that did not exist yet had its neutral value.
    """
    told = info.settings or {f"model.{key}": value for key, value in dataclasses.asdict(info.model).items()}
    sections = {"model": ModelConfig, "training": TrainingConfig}
    later = {f"{name}.{key}": value for name, each in sections.items() for key, value in neutral_values(each).items()}
    return {**later, **told}


def _settings_of_original(original: OriginalCheckpoint) -> Settings:
    return {**{f"model.{key}": value for key, value in original.shape.items()}, _OPTIMIZER_KEY: OPTIMIZER}


def _optimizer_change(snapshot: Snapshot, job: TrainingJob) -> list[Change]:
    return find_changes({_OPTIMIZER_KEY: snapshot.optimizer["name"]}, job)


def _require_fit(info: CheckpointInfo, changes: Sequence[Change]) -> None:
    refused = listed(changes, "refused")
    if refused:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} does not fit the experiment ({refused}); "
            "set these keys as the checkpoint has them, or train from scratch"
        )


def _require_steps_left(info: CheckpointInfo, max_steps: int, *, at_least: int) -> None:
    if info.step + at_least > max_steps:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} is at step {info.step}, and this training ends at step "
            f"{max_steps}; raise training.max_steps or training.num_epochs, or resume an earlier one"
        )


def _say_original(info: CheckpointInfo, original: OriginalCheckpoint, say: Say) -> None:
    count = sum(tensor.numel() for tensor in original.model.values())
    notes = ", ".join(f"{name} {value}" for name, value in original.notes.items() if value is not None)
    optimizer = (
        "AdamW's moments come along"
        if original.moments is not None
        else "its optimizer state is not AdamW's for these weights, in their order, so the moments start at zero"
    )
    say(
        f"{info.path.name} is a checkpoint of the original scripts at global_step {info.step}"
        f"{f' ({notes})' if notes else ''}: {count:,} parameters, {optimizer}. The file stays as it is; the best "
        "validation loss is counted anew, on this experiment's validation documents."
    )


def _say_changes(info: CheckpointInfo, changes: Sequence[Change], job: TrainingJob, say: Say) -> None:
    if info.fingerprint and info.fingerprint == job.fingerprint:
        if changes:
            say(f"Changed since {info.path.name}, to no effect on the weights: {'; '.join(map(str, changes))}.")
        return
    if info.fingerprint:
        say(
            f"{info.path.name} was made with another configuration or other data; its shape fits, so its weights, "
            f"optimizer and step {info.step} are taken over."
        )
    warned, free = listed(changes, "warned"), listed(changes, "free")
    if warned:
        say(f"Warning: the weights from here on differ from those of either configuration alone, by {warned}.")
    if free:
        say(f"Changed to no effect on the weights: {free}.")


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
    """Return a new folder `previous/<number>-<UTC time>`, numbered after those that are there.

    It begins with copies of the notes of whose training this was and what a tracker has of its lines: with them the
    rest can be sent from there.
    """
    numbers = [int(earlier.root.name.split("-")[0]) for earlier in earlier_trainings(folder)]
    name = f"{max(numbers, default=0) + 1:03d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside = folder.root / PREVIOUS_NAME / name
    aside.mkdir(parents=True)
    for note in (MARKER_NAME, SENT_NAME):
        if (folder.root / note).is_file():
            shutil.copyfile(folder.root / note, aside / note)
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

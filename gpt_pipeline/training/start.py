"""The start of a training, carried out as `decision` says: what is continued, set aside, moved. Nothing is overwritten.

All of it needs the lock of the experiment's folder.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gpt_pipeline.checkpoints.load import load_checkpoint, require_undamaged, verify_checkpoint
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    checkpoint_key,
    manifest_path,
    read_info,
    set_aside,
    settle_best,
)
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot, weights_sha256
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.vocabulary import with_new_tokens
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import atomic_path, fsync_folder, remove_leftovers, sha256_of
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.config import sequences_per_step
from gpt_pipeline.training.decision import (
    ASKED_ANEW,
    MARKER_NAME,
    PREVIOUS_NAME,
    Demand,
    StartDecision,
    decide_start,
    earlier_trainings,
    later_checkpoints,
    refuse_newer,
    require_fit,
    require_steps_left,
    settings_before,
)
from gpt_pipeline.training.estimates import find_estimate_changes
from gpt_pipeline.training.finished import FinishedTraining
from gpt_pipeline.training.job import SHARDS, Change, Settings, StartWeights, TrainingJob, find_changes, listed
from gpt_pipeline.training.metrics import SENT_NAME, write_metrics_up_to
from gpt_pipeline.training.original import OPTIMIZER, OriginalCheckpoint, optimizer_state, read_original
from gpt_pipeline.training.seeds import random_states, seed_all

Weights = Mapping[str, Tensor]

_OPTIMIZER_KEY = "training.optimizer"


@dataclass(kw_only=True)
class Start:
    """From where to train."""

    checkpoint: CheckpointInfo | None = None
    """The checkpoint to continue from; None: from the first step."""

    snapshot: Snapshot | None = None
    """What that checkpoint holds."""

    weights: Weights | None = None
    """The weights to begin with at step 0; None: random ones."""

    finished: FinishedTraining | None = None
    """Set when there is nothing left to do."""

    def let_go(self) -> None:
        """Give back the memory of what the training has taken over."""
        self.snapshot = self.weights = None


def prepare_start(job: TrainingJob, *, max_steps: int, say: Say) -> Start:
    """Return from where the training starts, having moved aside what would be in its way.

    A checkpoint that is damaged is set aside as `*.damaged` and the one before it taken.

    Raises:
        UserError: the named checkpoint is missing, damaged, or of another shape, or the weights to begin with are.
        NewerFileError: only a newer version can read what is in the folder; nothing was touched.
    """
    folder = job.folder
    refuse_newer(folder)
    remove_leftovers(folder.root)
    remove_leftovers(folder.checkpoints)
    settle_best(folder.checkpoints)
    demand = Demand.of(job)
    start = None
    while start is None:
        decision = decide_start(job, max_steps=max_steps)
        start = _carry_out(decision, job, max_steps, say)
    # Where an earlier start meets it, such as one that was forced, that stays noted.
    if demand.is_open(folder) or not demand.is_for_something:
        demand.write(folder)
    return start


def _carry_out(decision: StartDecision, job: TrainingJob, max_steps: int, say: Say) -> Start | None:
    """Return the start that was decided on; None when its checkpoint was damaged and has been set aside."""
    if decision.note:
        say(decision.note)
    if decision.is_named:
        return _start_from_named(decision, job, max_steps, say)
    if decision.why_moved != ASKED_ANEW:
        _set_truncated_aside(job.folder.checkpoints, say)
    if decision.checkpoint is not None:
        return _start_from_newest(decision, decision.checkpoint, job, say)
    weights = None if job.start_from is None else read_start_weights(job, job.start_from)
    if decision.why_moved:
        move_aside(job.folder, decision.why_moved, say)
    if job.start_from is not None:
        say(f"Starting from the weights of {job.start_from.source}.{_new_in_words(job.start_from)}")
    return Start(weights=weights)


def _start_from_newest(decision: StartDecision, path: Path, job: TrainingJob, say: Say) -> Start | None:
    try:
        # Of the file's manifests, the one that fits: a best_model.pt may just have been replaced.
        info = verify_checkpoint(path)
        finished = decision.finished
        snapshot = load_checkpoint(path, verify=False) if finished is None else None
    except DamagedFileError as error:
        say(f"{error}. It is kept as {set_aside(path, why='damaged').name}; trying the one before.")
        return None
    if snapshot is None:
        assert finished is not None
        say(f"Nothing to do: this training reached its last step, {finished.step}, at {finished.created_at}.")
    else:
        _say_changes(info, find_changes(settings_before(info), job), job, say)
        _forget_other_estimates(snapshot, job, say)
        if decision.moves_checkpoints:
            _rewind(job.folder, info, snapshot.progress, say)
        say(f"Continuing from {info.path.name}, step {info.step}.")
    return Start(checkpoint=info, snapshot=snapshot, finished=finished)


def _start_from_named(decision: StartDecision, job: TrainingJob, max_steps: int, say: Say) -> Start:
    path = decision.checkpoint
    assert path is not None
    original = None if manifest_path(path).is_file() else read_original(path)
    if original is None:
        info = require_undamaged(path)
        changes: Sequence[Change] = decision.changes
        snapshot = load_checkpoint(path, verify=False)
        require_fit(info, find_changes({_OPTIMIZER_KEY: snapshot.optimizer["name"]}, job))
    else:
        info = _original_info(path, original, job)
        changes = find_changes(_settings_of_original(original), job)
        require_fit(info, changes)
        require_steps_left(info, max_steps, at_least=1)
        snapshot = snapshot_of_original(info, original, job)
        _say_original(info, original, say)
    _say_changes(info, changes, job, say)
    _forget_other_estimates(snapshot, job, say)
    _rewind(job.folder, info, snapshot.progress, say)
    say(f"Continuing from {path.name}, step {info.step}, as asked.")
    return Start(checkpoint=info, snapshot=snapshot)


def _new_in_words(start_from: StartWeights) -> str:
    ids = " and ".join(f"{id_:,}" for id_ in start_from.new_tokens)
    return f" The tokens {ids} are new to them: their rows begin as the mean of the others." if ids else ""


def read_start_weights(job: TrainingJob, start_from: StartWeights) -> Weights:
    """Return the weights that `job` begins with, with rows for tokens that they were not trained on.

    Raises:
        UserError: the file is missing or damaged, holds other weights than the job was made for, or a model of another
            shape.
    """
    path = Path(start_from.file)
    snapshot = load_checkpoint(path)
    weights, shape = snapshot.model, dataclasses.asdict(snapshot.model_config)
    unlike = {"dropout", *(("vocab_size",) if start_from.new_tokens else ())}
    changes = find_changes({f"model.{key}": value for key, value in shape.items() if key not in unlike}, job)
    if changes:
        found = ", ".join(f"{change.key}={change.before}" for change in changes)
        need = ", ".join(f"{change.key}={change.after}" for change in changes)
        raise UserError(
            f"start_from: {path} holds a model with {found}, the experiment says {need}; leave these keys out, and the "
            "model has the checkpoint's shape"
        )
    sha256 = weights_sha256(weights)
    if sha256 != start_from.weights_sha256:
        raise UserError(
            f"start_from: {path} holds weights with sha256 {sha256}, need {start_from.weights_sha256} "
            f"({start_from.source}): it was written anew meanwhile; run again to start from what is there now"
        )
    return with_new_tokens(weights, start_from.new_tokens)


def read_start(job: TrainingJob, info: CheckpointInfo) -> Snapshot:
    """Return what the checkpoint that the first process decided on holds: for the other processes of a training."""
    original = None if manifest_path(info.path).is_file() else read_original(info.path)
    if original is not None:
        return snapshot_of_original(info, original, job)
    snapshot = load_checkpoint(info.path, verify=False)
    _forget_other_estimates(snapshot, job, lambda _: None)
    return snapshot


def _forget_other_estimates(snapshot: Snapshot, job: TrainingJob, say: Say) -> None:
    """Take the newest and the best estimate out of `snapshot` if those of `job` do not compare with them."""
    changes = find_estimate_changes({SHARDS: snapshot.shards_fingerprint, **snapshot.settings}, job)
    if not changes:
        return
    if snapshot.progress.best_step >= 0:
        told = "; ".join(map(str, changes))
        say(f"The best is counted anew from step {snapshot.step} on: earlier estimates do not compare ({told}).")
    snapshot.progress.forget_estimates()


def snapshot_of_original(info: CheckpointInfo, original: OriginalCheckpoint, job: TrainingJob) -> Snapshot:
    """Return the state to continue an original checkpoint from; its losses, of other data, start no record here."""
    seed_all(job.training.seed)
    return Snapshot(
        model=original.model,
        model_config=job.model,
        optimizer=optimizer_state(original, job.model, job.training),
        random=random_states(),
        progress=Progress(step=info.step, tokens_seen=info.tokens_seen),
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


def _settings_of_original(original: OriginalCheckpoint) -> Settings:
    return {**{f"model.{key}": value for key, value in original.shape.items()}, _OPTIMIZER_KEY: OPTIMIZER}


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
    if info.fingerprint not in ("", job.fingerprint):
        say(
            f"{info.path.name} was made with another configuration or other data; its shape fits, so its weights, "
            f"optimizer and step {info.step} are taken over."
        )
    warned, free = listed(changes, "warned"), listed(changes, "free")
    if warned:
        say(f"Warning: the weights from here on differ from those of either configuration alone, by {warned}.")
    if free:
        say(f"Changed since {info.path.name}, to no effect on the weights: {free}.")


def _set_truncated_aside(checkpoints: Path, say: Say) -> None:
    for manifest in sorted(checkpoints.glob("*.json")):
        path = manifest.with_suffix(".pt")
        if path.is_file() and read_info(path) is None:
            aside = set_aside(path, why="damaged")
            say(f"{path} is damaged: it is not what its manifest says. It is kept as {aside.name}.")


def _rewind(folder: ExperimentFolder, to: CheckpointInfo, progress: Progress, say: Say) -> None:
    """Move aside what came after the checkpoint `to`: newer checkpoints, their evaluations, later metrics.

    So is a `best_model.pt` that `progress` does not count as the best. Checkpoints go last: after a kill in between,
    they tell that there is more to move.
    """
    checkpoints = later_checkpoints(folder.checkpoints, to)
    best = best_checkpoint(folder.checkpoints)
    if progress.best_step < 0 and best is not None and best.path != to.path and best not in checkpoints:
        checkpoints.append(best)
    # The zeros in the names make their order that of the steps.
    kept = checkpoint_key(to.step + 1)
    evaluations = [path for path in folder.evaluations.glob("step_*.json") if path.name >= kept]
    moved = [path for path in (*evaluations, folder.training, folder.report, folder.samples) if path.exists()]
    moved += [path for info in checkpoints for path in (manifest_path(info.path), info.path)]
    if not moved and not folder.metrics.is_file():
        return
    aside = _new_previous(folder)
    if folder.metrics.is_file():
        with atomic_path(aside / folder.metrics.name) as copy:  # before what it is a copy of is cut short
            shutil.copyfile(folder.metrics, copy)
        write_metrics_up_to(folder.metrics, folder.metrics, step=to.step)
    for path in moved:
        target = aside / path.relative_to(folder.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        _move(path, target)
    fsync_folder(aside)
    if checkpoints:
        names = ", ".join(f"{info.path.name} (step {info.step})" for info in checkpoints)
        say(f"Moved to {aside}, since the training from step {to.step} on makes its own: {names}.")


def move_aside(folder: ExperimentFolder, why: str, say: Say) -> None:
    """Move what an earlier training left to a new folder in `previous`."""
    names = (folder.training, folder.checkpoints, folder.metrics, folder.evaluations, folder.report, folder.samples)
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

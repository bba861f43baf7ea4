"""From where a training starts, decided by what lies in its folder: nothing is changed, hashed or read in full.

The trainer carries the decision out (`start`), `plan` shows it. What was asked for when a training was last started is
kept in `start.json`, so that a job that says `scratch`, or names a checkpoint, does not lose its work each time
something starts it again. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.checkpoints.choose import checkpoint_to_resume
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    all_checkpoints,
    list_checkpoints,
    newer_manifests,
    read_info,
)
from gpt_pipeline.data.config import STREAM
from gpt_pipeline.errors import UserError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import read_kept, rewrite_json
from gpt_pipeline.storage.fingerprint import neutral_values
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.finished import (
    FinishedTraining,
    find_finished_training,
    last_checkpoint,
    read_finished_training,
)
from gpt_pipeline.training.job import (
    PACKING,
    SCRATCH,
    START_FROM,
    TOKENIZER,
    Change,
    Settings,
    TrainingJob,
    find_changes,
    flat_settings,
    listed,
)

MARKER_NAME = "start.json"
_VERSION = 2  # of that file
_UNKNOWN = "?"  # in no file's name of a checkpoint
ASKED_ANEW = "starting from scratch as asked"
PREVIOUS_NAME = "previous"
"""Folder, in an experiment's, of trainings that were moved aside."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """From where a training was asked to start."""

    fingerprint: str
    resume: str | None
    """What the experiment file says; `?` where that is not known of a start that was forced."""

    request: str
    """What the run that forces a start from scratch is called by; empty: none does."""

    @classmethod
    def of(cls, job: TrainingJob) -> Demand:
        """Return what `job` asks for."""
        return cls(fingerprint=job.fingerprint, resume=job.resume, request=job.request)

    @classmethod
    def read(cls, folder: ExperimentFolder) -> Demand | None:
        """Return what was last carried out in `folder`, if that is known."""
        return read_kept(
            folder.root / MARKER_NAME,
            cls.from_json,
            otherwise="what it asks for is carried out (again), which loses nothing",
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Demand:
        """Return what `to_json` gave; of a forced start, earlier versions noted `scratch` whatever the file said."""
        is_known = "version" in value or not value["request"]
        resume = value["resume"] if is_known else _UNKNOWN
        return cls(fingerprint=value["fingerprint"], resume=resume, request=value["request"])

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "version": _VERSION}

    @property
    def is_for_something(self) -> bool:
        """Whether it asks for anything but to go on."""
        return self.resume is not None or bool(self.request)

    def is_met_by(self, done: Demand | None) -> bool:
        """Whether it asks for no start, or for one that `done` was; one that was forced stands for the file's too."""
        if not self.is_for_something or done is None:
            return not self.is_for_something
        alike = self.request == done.request if self.request else done.resume in (self.resume, _UNKNOWN)
        return alike and self.fingerprint == done.fingerprint

    def is_open(self, folder: ExperimentFolder) -> bool:
        """Whether it asks for a start that is yet to be carried out in `folder`."""
        return not self.is_met_by(Demand.read(folder))

    def write(self, folder: ExperimentFolder) -> None:
        """Note in `folder` that this was carried out."""
        rewrite_json(folder.root / MARKER_NAME, {**self.to_json(), "time": utc_now()})


def earlier_trainings(folder: ExperimentFolder) -> list[ExperimentFolder]:
    """Return the folders of the trainings that were moved aside, oldest first; each bears its own `start.json`."""
    parent = folder.root / PREVIOUS_NAME
    if not parent.is_dir():
        return []
    found = [path for path in parent.iterdir() if path.name.split("-")[0].isdigit()]
    return [ExperimentFolder(root=path) for path in sorted(found, key=lambda path: int(path.name.split("-")[0]))]


def find_finished_work(job: TrainingJob) -> FinishedTraining | None:
    """Return the finished training if `job` has nothing left to do; None if the trainer must be started.

    That is: training.json bears the job's fingerprint, the last checkpoint is there, and the job does not ask for a
    start from scratch or from a named checkpoint that is yet to be carried out.

    Raises:
        NewerFileError: only a newer version can read what is in the folder.
    """
    refuse_newer(job.folder)
    if Demand.of(job).is_open(job.folder):
        return None
    return find_finished_training(job.folder, job.fingerprint)


def refuse_newer(folder: ExperimentFolder) -> None:
    """Raise NewerFileError if `folder` holds a training that only a newer version can read.

    Going on would set it aside, or train again what is there.
    """
    for error in newer_manifests(folder.checkpoints).values():
        raise error
    read_finished_training(folder)
    Demand.read(folder)


StartKind = Literal["finished", "continue", "weights", "anew"]
"""`weights`: at step 0, with the weights of another training; `anew`: at step 0, with random ones."""


@dataclass(frozen=True, kw_only=True)
class StartDecision:
    """From where a training starts."""

    kind: StartKind

    step: int = 0
    """Optimizer updates behind it; 0 for a checkpoint of the original scripts, which is read to learn its step."""

    checkpoint: Path | None = None
    """The file to continue from; of a finished training its last checkpoint."""

    info: CheckpointInfo | None = None
    """That file's manifest; None for a checkpoint of the original scripts."""

    is_named: bool = False
    """Whether `storage.checkpoint_to_resume` names the file: what came after it is moved to `previous/`."""

    changes: tuple[Change, ...] = ()
    """What differs between the job and the training that made the checkpoint."""

    why_moved: str = ""
    """Why the folder's earlier training, if there is one, is moved to `previous/`; empty: it is not."""

    moves_checkpoints: bool = False
    """Whether checkpoints that are in the folder now are moved to `previous/`."""

    finished: FinishedTraining | None = None
    """Set when there is nothing left to do."""

    note: str = ""
    """What a person should know of how this was decided."""


def decide_start(job: TrainingJob, *, max_steps: int | None = None) -> StartDecision:
    """Return from where `job` starts; `max_steps` is its last step, None if that is not known yet.

    A demand to start anew or from a named file is carried out once: the same job started again goes on with what that
    began. A file that is not what its manifest says is found out only when it is read: then the trainer sets it aside
    and decides again.

    Raises:
        UserError: the named checkpoint is missing, of another shape, or beyond the last step.
        NewerFileError: only a newer version can read what is in the folder.
    """
    refuse_newer(job.folder)
    demand = Demand.of(job)
    if demand.is_for_something and not demand.is_open(job.folder):
        return _decide_again(job, max_steps)
    if demand.request or job.resume == SCRATCH:
        return _from_step_0(job, ASKED_ANEW)
    return _go_on(job) if job.resume is None else _from_named(job, max_steps)


def _decide_again(job: TrainingJob, max_steps: int | None) -> StartDecision:
    """Go on with what an earlier start began: with its newest checkpoint, or with the named one while it has none."""
    begun = Demand.read(job.folder)
    if job.resume in (None, SCRATCH) or (begun is not None and begun.request):
        return _go_on(job)
    path = job.folder.checkpoints / str(job.resume)
    named = read_info(path)
    # Without a manifest it is an original checkpoint, which stays where it lies; any successor is a later step.
    has_gone_on = any(named is None or info.step > named.step for info in _own_checkpoints(job))
    if path.is_file() and not has_gone_on and find_finished_training(job.folder, job.fingerprint) is None:
        return _from_named(job, max_steps)
    note = f"{job.resume} was resumed before; continuing what came of it."
    return dataclasses.replace(_go_on(job), note=note)


def _go_on(job: TrainingJob) -> StartDecision:
    """Continue the newest checkpoint of the same training, or start it.

    A training that went on from one of its checkpoints with other settings may have left later ones.
    """
    finished = find_finished_training(job.folder, job.fingerprint)
    # Of another training, where this one went on from it at its own last step.
    last = None if finished is None else last_checkpoint(job.folder, finished)
    own = [*_own_checkpoints(job), *([] if last is None else [last])]
    newest = max(own, key=lambda info: info.step, default=None)
    if newest is not None:
        is_over = last is not None and last.step == newest.step
        return StartDecision(
            kind="finished" if is_over else "continue",
            step=newest.step,
            checkpoint=newest.path,
            info=newest,
            changes=tuple(find_changes(settings_before(newest), job)),
            moves_checkpoints=not is_over and bool(later_checkpoints(job.folder.checkpoints, newest)),
            finished=finished if is_over else None,
        )
    before = Demand.read(job.folder)
    if before is not None and before.fingerprint == job.fingerprint and not _has_checkpoints(job.folder):
        return _from_step_0(job, "")  # begun, and ended before its first checkpoint
    why = "no valid checkpoint of this configuration and data is in the folder"
    return _from_step_0(job, why + _difference_to_newest(job))


def _from_step_0(job: TrainingJob, why_moved: str) -> StartDecision:
    return StartDecision(
        kind="anew" if job.start_from is None else "weights",
        why_moved=why_moved,
        moves_checkpoints=bool(why_moved) and _has_checkpoints(job.folder),
    )


def _from_named(job: TrainingJob, max_steps: int | None) -> StartDecision:
    path = checkpoint_to_resume(job.folder.checkpoints, str(job.resume))
    info = read_info(path)
    changes = () if info is None else tuple(find_changes(settings_before(info), job))
    if info is not None:
        require_fit(info, changes)
        require_steps_left(info, max_steps, at_least=0)
    return StartDecision(
        kind="continue",
        step=0 if info is None else info.step,
        checkpoint=path,
        info=info,
        is_named=True,
        changes=changes,
        moves_checkpoints=info is not None and bool(later_checkpoints(job.folder.checkpoints, info)),
    )


def require_fit(info: CheckpointInfo, changes: Sequence[Change]) -> None:
    """Raise UserError if the named checkpoint's tensors do not fit what is asked for."""
    refused = listed(changes, "refused")
    if refused:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} does not fit the experiment ({refused}); "
            "set these keys as the checkpoint has them, or train from scratch"
        )


def require_steps_left(info: CheckpointInfo, max_steps: int | None, *, at_least: int) -> None:
    """Raise UserError if the named checkpoint lies beyond the last step, where that is known."""
    if max_steps is not None and info.step + at_least > max_steps:
        raise UserError(
            f"storage.checkpoint_to_resume: {info.path.name} is at step {info.step}, and this training ends at step "
            f"{max_steps}; raise training.max_steps or training.num_epochs, or resume an earlier one"
        )


def settings_before(info: CheckpointInfo) -> Settings:
    """Return what the training that made `info` was told; of a manifest from before it was kept, the model's shape.

    A key that did not exist yet had its neutral value.
    """
    told = info.settings or {f"model.{key}": value for key, value in dataclasses.asdict(info.model).items()}
    later = {"model": neutral_values(ModelConfig), "training": neutral_values(TrainingConfig)}
    return {START_FROM: None, TOKENIZER: None, PACKING: STREAM, **flat_settings(later), **told}


def later_checkpoints(checkpoints: Path, to: CheckpointInfo) -> list[CheckpointInfo]:
    """Return those in the folder `checkpoints` that a training which goes on from `to` will make itself.

    They are of later steps, or of this one and another training. Left there they would pass for the newest and best.
    """
    return [
        info
        for info in all_checkpoints(checkpoints)
        if info.step > to.step or (info.step == to.step and info.fingerprint != to.fingerprint)
    ]


def _own_checkpoints(job: TrainingJob) -> list[CheckpointInfo]:
    """Return the checkpoints of this very training; of two at one step the one under its own name comes first."""
    return [info for info in all_checkpoints(job.folder.checkpoints) if info.fingerprint == job.fingerprint]


def _difference_to_newest(job: TrainingJob) -> str:
    """Return what sets the newest checkpoint in the folder apart from `job`, to be read after "is in the folder"."""
    checkpoints = [info for info in list_checkpoints(job.folder.checkpoints) if info.fingerprint != job.fingerprint]
    changes = find_changes(settings_before(checkpoints[-1]), job) if checkpoints else []
    telling = [str(change) for change in changes if change.effect != "free"]
    return f" ({checkpoints[-1].path.name} has {'; '.join(telling)})" if telling else ""


def _has_checkpoints(folder: ExperimentFolder) -> bool:
    return any(folder.checkpoints.glob("*.pt*"))

"""`training.json`: the manifest of a training that reached its last step. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, find_checkpoint
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.heartbeat import trainer_state

TrainingState = Literal["running", "finished", "stopped", "died"]
"""`stopped`: no trainer is at work, and none was killed there; there may be no training at all."""


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """What a finished training came to."""

    fingerprint: str
    experiment_name: str
    step: int
    """Optimizer updates done: all of them."""

    tokens_seen: int
    train_loss: float
    """Of the last update, mean nats per token."""

    val_loss: float
    """After the last update, mean nats per token."""

    best_val_loss: float
    """As `Progress.best_val_loss`."""

    best_step: int
    seconds: float
    """Training time over all runs, validation and checkpoints included."""

    parameters: int
    checkpoint: str
    """File name of the last checkpoint."""

    weights_sha256: str
    """Of the last checkpoint."""

    versions: Mapping[str, str]
    created_at: str
    """UTC, ISO 8601."""

    decided_by: str = "val_loss"
    """Name of the loss that `best_val_loss` is; earlier versions did not note it."""

    def write(self, folder: ExperimentFolder) -> None:
        """Write the manifest, atomically."""
        write_json(folder.training, dataclasses.asdict(self))


def read_finished_training(folder: ExperimentFolder) -> FinishedTraining | None:
    """Return what `training.json` says, which is not yet that the training is finished; None if there is none."""
    return read_kept(
        folder.training,
        lambda value: FinishedTraining(**known_fields(FinishedTraining, value)),
        otherwise="the training does not count as finished",
    )


def find_finished_training(folder: ExperimentFolder, fingerprint: str) -> FinishedTraining | None:
    """Return the finished training in `folder` if it bears `fingerprint` and its last checkpoint is there; else None.

    The checkpoint's size is checked, not its content.

    Raises:
        NewerFileError: only a newer version can tell.
    """
    finished = read_finished_training(folder)
    if finished is None or finished.fingerprint != fingerprint:
        return None
    return finished if last_checkpoint(folder, finished) else None


def training_state(folder: ExperimentFolder, fingerprint: str | None) -> TrainingState:
    """Return the state of the training in `folder`; one that did what `fingerprint` asks for is finished.

    Everyone who shows or acts on a state asks here. A None, where the data is not made yet, finds none finished.
    """
    trainer = trainer_state(folder.root)
    if trainer == "running":
        return "running"
    if fingerprint is not None and find_finished_training(folder, fingerprint) is not None:
        return "finished"
    return "died" if trainer == "died" else "stopped"


def last_checkpoint(folder: ExperimentFolder, finished: FinishedTraining) -> CheckpointInfo | None:
    """Return the checkpoint that the finished training ended with, if it is still there."""
    info = find_checkpoint(folder.checkpoints, finished.step)
    return info if info is not None and info.weights_sha256 == finished.weights_sha256 else None


def best_of(folder: ExperimentFolder, finished: FinishedTraining) -> CheckpointInfo | None:
    """Return the best checkpoint of the finished training, if it is still there.

    Where the training went on from a checkpoint of another one, the other may have made it, before that checkpoint.
    """
    best = best_checkpoint(folder.checkpoints)
    is_its = best is not None and (best.fingerprint == finished.fingerprint or best.step == finished.best_step)
    return best if is_its else None

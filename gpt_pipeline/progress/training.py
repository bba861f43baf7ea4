"""How far a training is. Reads only, and imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    all_checkpoints,
    manifest_path,
    read_info,
)
from gpt_pipeline.errors import DamagedFileError, DataError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.sizes import size_on
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.launchers.protocol import ALIVE
from gpt_pipeline.launchers.submission import read_submission
from gpt_pipeline.progress.losses import losses_of
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.config import PASSES
from gpt_pipeline.training.decision import Demand
from gpt_pipeline.training.finished import (
    FinishedTraining,
    find_finished_training,
    last_checkpoint,
    read_finished_training,
    training_state,
)
from gpt_pipeline.training.heartbeat import read_heartbeat
from gpt_pipeline.training.metrics import parse_record

State = Literal["running", "finished", "stopped", "died", "absent"]
NOT_YET_KNOWN = "whether the file asks for more is known once its data and start are made"
_TAIL_BYTES = 64 << 10  # of metrics.jsonl; some 100 lines, most of them of training


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is; None where it is not known."""

    state: State
    """`stopped`: it left in order and has steps to do. `died`: it was killed, or its machine went down."""

    step: int
    """The newest step of a running training, else that of its newest checkpoint."""

    max_steps: int | None
    process: int | None
    host: str | None
    job: str | None
    """Which job of an engine it was handed to, and how that was when last asked: `slurm job 17, running on node1`; None
    where there is none, or it has ended."""

    train_loss: float | None
    """Nats per token, of the newest line; with rewards, what moves the answers, which is no measure of the model."""

    val_loss: float | None
    """The trainer's newest estimate, nats per token."""

    val_step: int | None
    """The step at which it was made."""

    reward: float | None = None
    """Mean reward of the answers sampled for the newest line; None where nothing is rewarded."""

    pass_at_1: float | None = None
    """Share of right answers to held-out questions, sampled at `val_step`."""

    tokens_per_second: float | None
    eta_seconds: float | None
    """Only of a running training."""

    damaged: tuple[str, ...]
    """Checkpoints that do not match their manifests, or were set aside because they did not."""

    of_other_settings: bool
    """Whether what is in the folder was trained with other settings, or on other data, than the file says now."""

    ended_before: bool
    """Whether a training was finished in the folder, but not, as far as is known, the one that the file asks for."""

    @property
    def word(self) -> str:
        """The state in a word, as the report and a comparison show it."""
        return "not started" if self.state == "absent" else self.state

    @property
    def detail(self) -> str:
        """What the report adds to the word."""
        if self.state == "running":
            return f"at step {self.step:,}"
        if self.state == "finished":
            return f"after {counted(self.step, 'step')}"
        if self.state == "absent":
            return "no checkpoint yet"
        gone = "; its process is gone" if self.state == "died" else ""
        if self.ended_before and not self.of_other_settings:
            return f"after {counted(self.step, 'step')}; {NOT_YET_KNOWN}"
        if self.of_other_settings:
            return f"at step {self.step:,}{gone}, with other settings than the file has now"
        return f"at step {self.step:,}{gone}. Materialize training to continue"


def finished_training(experiment: Experiment) -> FinishedTraining | None:
    """Return the training that the experiment file asks for, if it is finished."""
    fingerprint = wanted_fingerprint(experiment)
    return None if fingerprint is None else find_finished_training(experiment.folder, fingerprint)


def asks_to_start_again(experiment: Experiment) -> bool:
    """Whether `storage.checkpoint_to_resume` asks for a start that is yet to be carried out."""
    resume = experiment.config.storage.checkpoint_to_resume
    if resume is None or (fingerprint := wanted_fingerprint(experiment)) is None:
        return False
    return Demand(fingerprint=fingerprint, resume=resume, request="").is_open(experiment.folder)


def experiment_training(experiment: Experiment) -> TrainingProgress:
    """Return how far the experiment's training is."""
    from gpt_pipeline.data.tokens.choose import known_shards

    shards = known_shards(experiment.data, experiment.data_folder)
    if shards is None:
        return training_progress(experiment.folder, fingerprint=None, max_steps=experiment.config.training.max_steps)
    return training_progress(
        experiment.folder,
        fingerprint=wanted_fingerprint(experiment),
        max_steps=_max_steps(experiment, shards),
    )


def _max_steps(experiment: Experiment, shards: StageResult) -> int | None:
    try:
        return size_on(shards.folder, shards.manifest, experiment.config).layout.max_steps
    except DataError:  # too few tokens for one update: `plan` and `run` say so
        return None
    except DamagedFileError:  # documents are to be packed, and files of the shards are gone: their stage says so
        return None


def training_progress(folder: ExperimentFolder, *, fingerprint: str | None, max_steps: int | None) -> TrainingProgress:
    """Return how far the training in `folder` is; `fingerprint` is what the experiment file asks for, if known."""
    train, losses = newest_records(folder.metrics).get("train", {}), losses_of(folder.metrics)
    val_step = max(losses.validation, default=None)
    sign = read_heartbeat(folder.root)
    # A killed training goes on from its best, where that is the newest.
    newest = max(all_checkpoints(folder.checkpoints), key=lambda info: info.step, default=None)
    saved = 0 if newest is None else newest.step
    found = training_state(folder, fingerprint)
    state: State = "absent" if found == "stopped" and newest is None else found
    running = state == "running"
    ended = read_finished_training(folder) if state == "stopped" else None
    return TrainingProgress(
        state=state,
        step=max(saved, int(train.get("step", 0))) if running else saved,
        max_steps=max_steps,
        process=sign.process.pid if running and sign else None,
        host=sign.process.host if running and sign else None,
        job=None if state == "finished" else _job(folder),
        train_loss=train.get("train_loss"),
        val_loss=None if val_step is None else losses.validation[val_step],
        val_step=val_step,
        reward=train.get("reward"),
        pass_at_1=None if val_step is None else losses.estimates.get(PASSES, {}).get(val_step),
        tokens_per_second=train.get("tokens_per_second"),
        eta_seconds=train.get("eta_seconds") if running else None,
        damaged=tuple(_damaged(folder.checkpoints)),
        ended_before=ended is not None and last_checkpoint(folder, ended) is not None,
        of_other_settings=fingerprint is not None and newest is not None and _is_of_another(newest, fingerprint),
    )


def _job(folder: ExperimentFolder) -> str | None:
    note = read_submission(folder)
    return note.described if note is not None and note.state in ALIVE else None


def _is_of_another(info: CheckpointInfo, fingerprint: str) -> bool:
    return bool(info.fingerprint) and info.fingerprint != fingerprint  # an imported one belongs to no training


def _damaged(checkpoints: Path) -> Iterator[str]:
    """Yield files cut short, by their size, and those that the trainer set aside."""
    for manifest in sorted(checkpoints.glob("*.json")):
        path = manifest.with_suffix(".pt")
        if path == manifest_path(path).with_suffix(".pt") and path.is_file() and read_info(path) is None:
            yield path.name
    for path in sorted(checkpoints.glob("*.pt.damaged*")):
        yield path.name


def newest_records(metrics: Path) -> dict[str, Mapping[str, Any]]:
    """Return the last line of each kind at the end of `metrics.jsonl`; reads no more than its last 64 kB."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    return {record["kind"]: record for line in lines if (record := _record(line)) is not None}


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_record(line)
    except ValueError:  # the first line of the tail, or one that is being written
        return None

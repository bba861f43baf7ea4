"""How far a training is, and from where it would start now. Looks only: what `training.start` decides, it carries out.

Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.checkpoints.choose import checkpoint_to_resume
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    list_checkpoints,
    manifest_path,
    read_info,
)
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.demand import Demand
from gpt_pipeline.training.finished import find_finished_training, last_checkpoint
from gpt_pipeline.training.heartbeat import read_heartbeat, trainer_state
from gpt_pipeline.training.job import SCRATCH, TrainingJob

StartKind = Literal["finished", "continue", "anew"]
TrainingState = Literal["running", "finished", "stopped", "died", "absent"]
_TAIL_BYTES = 64 << 10  # of metrics.jsonl; some 150 lines


@dataclass(frozen=True, kw_only=True)
class UpcomingStart:
    """From where the trainer would start now."""

    kind: StartKind
    step: int
    """Optimizer updates that are behind it; 0 where a checkpoint of the original scripts would tell only when read."""

    checkpoint: str | None
    """File name of what it would continue from."""

    moves_aside: bool
    """Whether checkpoints that are there now would be moved to `previous/`."""


def upcoming_start(job: TrainingJob) -> UpcomingStart:
    """Return what `training.start.decide_start` would decide, by the manifests alone: no file is hashed or moved.

    Raises:
        UserError: the checkpoint that the experiment file names is not there.
    """
    demand = Demand.of(job)
    if demand.is_for_something and demand == Demand.read(job.folder):  # carried out already
        return _from_file(job) if job.resume not in (None, SCRATCH) and _is_pending(job) else _go_on(job)
    if demand.request or job.resume == SCRATCH:
        return UpcomingStart(kind="anew", step=0, checkpoint=None, moves_aside=_has_checkpoints(job.folder))
    return _go_on(job) if job.resume is None else _from_file(job)


def _go_on(job: TrainingJob) -> UpcomingStart:
    newest = max(_own_checkpoints(job), key=lambda info: info.step, default=None)
    if newest is None:
        return UpcomingStart(kind="anew", step=0, checkpoint=None, moves_aside=_has_checkpoints(job.folder))
    finished = find_finished_training(job.folder, job.fingerprint)
    last = None if finished is None else last_checkpoint(job.folder, finished)
    is_over = last is not None and last.step == newest.step
    return UpcomingStart(
        kind="finished" if is_over else "continue", step=newest.step, checkpoint=newest.path.name, moves_aside=False
    )


def _from_file(job: TrainingJob) -> UpcomingStart:
    path = checkpoint_to_resume(job.folder.checkpoints, str(job.resume))
    info = read_info(path)
    step = 0 if info is None else info.step
    newer = any(each.step > step for each in list_checkpoints(job.folder.checkpoints))
    return UpcomingStart(kind="continue", step=step, checkpoint=path.name, moves_aside=info is not None and newer)


def _is_pending(job: TrainingJob) -> bool:
    """Whether the named checkpoint is there and has no successor yet; otherwise the newest successor is continued."""
    path = job.folder.checkpoints / str(job.resume)
    named = read_info(path)
    return path.is_file() and not any(named is None or info.step > named.step for info in _own_checkpoints(job))


def _own_checkpoints(job: TrainingJob) -> list[CheckpointInfo]:
    best = best_checkpoint(job.folder.checkpoints)
    every = [*([best] if best else []), *list_checkpoints(job.folder.checkpoints)]
    return [info for info in every if info.fingerprint == job.fingerprint]


def _has_checkpoints(folder: ExperimentFolder) -> bool:
    return any(folder.checkpoints.glob("*.pt*"))


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is; None where it is not known."""

    state: TrainingState
    """`stopped`: it left in order and has steps to do. `died`: it was killed, or its machine went down."""

    step: int
    """Of a running one the newest step, else that of its newest checkpoint."""

    max_steps: int | None
    process: int | None
    host: str | None
    train_loss: float | None
    """Nats per token, of the newest line."""

    val_loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    """Of a running one."""

    damaged: tuple[str, ...]
    """Checkpoints that are not what their manifests say, or were found so and set aside."""

    of_other_settings: bool
    """Whether what is in the folder was trained with other settings, or on other data, than the file says now."""


def training_progress(folder: ExperimentFolder, *, fingerprint: str | None, max_steps: int | None) -> TrainingProgress:
    """Return how far the training in `folder` is; `fingerprint` is what the experiment file asks for, if known."""
    newest = newest_records(folder.metrics)
    train, validation = newest.get("train", {}), newest.get("validation", {})
    trainer = trainer_state(folder.root)
    sign = read_heartbeat(folder.root)
    checkpoints = list_checkpoints(folder.checkpoints)
    saved = max((info.step for info in checkpoints), default=0)
    state = _state(folder, trainer, saved=saved, fingerprint=fingerprint)
    running = state == "running"
    return TrainingProgress(
        state=state,
        step=max(saved, int(train.get("step", 0))) if running else saved,
        max_steps=max_steps,
        process=sign.process.pid if running and sign else None,
        host=sign.process.host if running and sign else None,
        train_loss=train.get("train_loss"),
        val_loss=validation.get("val_loss"),
        tokens_per_second=train.get("tokens_per_second"),
        eta_seconds=train.get("eta_seconds") if running else None,
        damaged=tuple(_damaged(folder.checkpoints)),
        of_other_settings=fingerprint is not None
        and any(_is_of_another(info, fingerprint) for info in checkpoints[-1:]),
    )


def _is_of_another(info: CheckpointInfo, fingerprint: str) -> bool:
    return bool(info.fingerprint) and info.fingerprint != fingerprint  # an imported one is of no training at all


def _state(folder: ExperimentFolder, trainer: str, *, saved: int, fingerprint: str | None) -> TrainingState:
    if trainer == "running":
        return "running"
    if fingerprint is not None and find_finished_training(folder, fingerprint) is not None:
        return "finished"
    if trainer == "died":
        return "died"
    return "stopped" if saved else "absent"


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
        record = json.loads(line)
    except ValueError:  # the first line of the tail, or one that is being written
        return None
    return record if isinstance(record, dict) and "kind" in record else None

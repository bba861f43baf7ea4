"""One training as one MLflow run, fed from `metrics.jsonl`.

The trainer never talks to MLflow: it appends to its file, and whoever watches it sends what is new from there. A run
belongs to a training's fingerprint, which it bears as a tag, so a resumed training goes on in the run that it began,
and one that was moved aside is completed from where it lies (`earlier_runs.py`).
Times come from the lines, and each step is sent once; what was sent is noted in `metrics.sent.json`, and sending it
once more writes the same rows. An MLflow that is down or locked is caught up with later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.store import (
    as_tracking_error,
    configure_mlflow,
    experiment_id,
    find_run,
    log_missing_parameters,
    milliseconds,
    open_client,
    shortened,
    turn,
)
from gpt_pipeline.training.demand import Demand, earlier_trainings
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.heartbeat import trainer_state
from gpt_pipeline.training.metrics import SENT_NAME

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

FINGERPRINT_TAG = "gpt_pipeline.training"
RUN_NAME = "training"
LOSS_FILE = "loss.svg"
ENDED = ("FINISHED", "FAILED", "KILLED")

_KINDS = ("train", "validation")
_NOT_METRICS = {"step", "updates", "seconds", "eta_seconds"}
_BATCH = 1000  # metrics that MLflow takes in one call
_TAIL_BYTES = 4096
_TURN_SECONDS = 30.0
_REMEDY = "training goes on and its lines are kept in metrics.jsonl; they are sent once MLflow works"
_STATUS = {"running": "RUNNING", "died": "FAILED", "none": "KILLED"}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The one MLflow run of a training."""

    run_id: str
    experiment_id: str
    lines: int
    """Lines of `metrics.jsonl` that were new to MLflow."""


@dataclass(kw_only=True)
class _Sent:
    """What MLflow has of a training: `metrics.sent.json`."""

    store: str
    """Hash of the tracking URI, which may carry a password."""

    run_id: str
    fingerprint: str
    experiment_id: str = ""
    status: str = ""
    offset: int = 0
    """Bytes of `metrics.jsonl` that have been gone through."""

    tail: str = ""
    """Hash of the last of these bytes; another one means that the file was written anew since."""

    steps: dict[str, int] = field(default_factory=dict)
    """Highest step sent, by kind. A step that is trained again after a crash is not sent again: it gives the same."""

    @classmethod
    def read(cls, folder: ExperimentFolder) -> _Sent | None:
        try:
            return cls(**read_json(folder.root / SENT_NAME))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
            return None  # sent again, to the same rows

    def write(self, folder: ExperimentFolder) -> None:
        write_json(folder.root / SENT_NAME, dataclasses.asdict(self))


def training_log_is_pending(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether MLflow lacks lines or the status of the training with `fingerprint`, as the folder tells."""
    if not _belongs(folder, fingerprint):
        return False
    sent = _Sent.read(folder)
    if sent is None or sent.fingerprint != fingerprint or sent.status != _status(folder, fingerprint):
        return True
    return _has_new_lines(folder, sent)


def lacks_lines_or_end(folder: ExperimentFolder, fingerprint: str) -> bool:
    """As `training_log_is_pending`, of a training that is over: however MLflow was told that it ended stands."""
    if not _belongs(folder, fingerprint):
        return False
    sent = _Sent.read(folder)
    if sent is None or sent.fingerprint != fingerprint or sent.status not in ENDED:
        return True
    return _has_new_lines(folder, sent)


def log_training(
    folder: ExperimentFolder,
    *,
    fingerprint: str,
    tracking_uri: str,
    experiment_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    draw_losses: Callable[[Path], str],
) -> TrainingRun | None:
    """Send what MLflow lacks of the training with `fingerprint`; None if the folder holds none of its lines yet.

    `parameters` is the experiment's configuration, nested as it may be. `draw_losses` makes an SVG document of
    `metrics.jsonl`; it is sent with each new checkpoint and at the end, not with every line.

    Raises:
        TrackingError: MLflow cannot be reached, is busy, or refuses; what it took is noted, the rest is kept.
    """
    if not _belongs(folder, fingerprint):
        return None
    configure_mlflow()
    with (
        turn(tracking_uri, otherwise=folder.root / ".mlflow.lock", wait_seconds=_TURN_SECONDS),
        as_tracking_error(tracking_uri, what="the training's metrics", remedy=_REMEDY),
    ):
        client = open_client(tracking_uri)
        experiment = experiment_id(client, folder_name(experiment_name, key="experiment_name"), tracking_uri)
        run = find_run(client, experiment, tag=FINGERPRINT_TAG, value=fingerprint)
        if run is None:
            run = _create_run(client, experiment, folder, fingerprint, tags)
        sent = _Sent.read(folder)
        store = hashlib.sha256(tracking_uri.encode()).hexdigest()
        if sent is None or (sent.store, sent.run_id) != (store, run.info.run_id):
            log_missing_parameters(client, run, parameters)
            steps = _steps_sent_before(folder, store=store, run_id=run.info.run_id)
            sent = _Sent(store=store, run_id=run.info.run_id, fingerprint=fingerprint, steps=steps)
        sent.experiment_id = experiment
        lines, has_checkpoint = _send_lines(client, folder, sent)
        # Before the status: what is drawn too little after a crash here is drawn again with it.
        if has_checkpoint or _status(folder, fingerprint) not in ("RUNNING", sent.status):
            client.log_text(sent.run_id, draw_losses(folder.metrics), LOSS_FILE)
        _send_status(client, run, folder, sent)
        return TrainingRun(run_id=run.info.run_id, experiment_id=experiment, lines=lines)


def logged_run(folder: ExperimentFolder, fingerprint: str) -> TrainingRun | None:
    """Return the run of the training with `fingerprint` as it was noted when it was sent last; None if it never was."""
    sent = _Sent.read(folder)
    if sent is None or sent.fingerprint != fingerprint or not sent.experiment_id:
        return None
    return TrainingRun(run_id=sent.run_id, experiment_id=sent.experiment_id, lines=0)


def sent_runs(folder: ExperimentFolder) -> dict[ExperimentFolder, str]:
    """Return the run that each training in `folder`, the earlier ones too, was sent to."""
    notes = {each: _Sent.read(each) for each in (folder, *earlier_trainings(folder))}
    return {each: note.run_id for each, note in notes.items() if note is not None}


def forget_sent(folder: ExperimentFolder) -> None:
    """Have the training in `folder` sent from its first line again."""
    (folder.root / SENT_NAME).unlink(missing_ok=True)


def _has_new_lines(folder: ExperimentFolder, sent: _Sent) -> bool:
    return any(True for _ in _new_lines(folder.metrics, _offset(folder.metrics, sent)))


def _belongs(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether `metrics.jsonl` is of this training: not so before the trainer has moved an earlier one's aside."""
    demand = Demand.read(folder)
    return demand is not None and demand.fingerprint == fingerprint and folder.metrics.is_file()


def _steps_sent_before(folder: ExperimentFolder, *, store: str, run_id: str) -> dict[str, int]:
    """Return what an earlier training sent to the same run: this one repeats it, another configuration in between."""
    notes = [_Sent.read(earlier) for earlier in earlier_trainings(folder)]
    same = [note.steps for note in notes if note is not None and (note.store, note.run_id) == (store, run_id)]
    return dict(same[-1]) if same else {}


def _status(folder: ExperimentFolder, fingerprint: str) -> str:
    state = trainer_state(folder.root)
    if state != "running" and find_finished_training(folder, fingerprint) is not None:
        return "FINISHED"
    return _STATUS[state]


def _create_run(
    client: MlflowClient, experiment: str, folder: ExperimentFolder, fingerprint: str, tags: Mapping[str, str]
) -> Run:
    first = next((record for _, record in _new_lines(folder.metrics, 0)), None)
    own = {FINGERPRINT_TAG: fingerprint, **{key: shortened(value) for key, value in tags.items()}}
    started = milliseconds(first["time"]) if first else None
    return client.create_run(experiment, start_time=started, tags=own, run_name=RUN_NAME)


def _send_lines(client: MlflowClient, folder: ExperimentFolder, sent: _Sent) -> tuple[int, bool]:
    """Send the lines after those that were sent, whole lines in a call; note after each call what MLflow has.

    Returns how many lines were new, and whether there is a checkpoint among them.
    """
    batch: list[Metric] = []
    count, offset, has_checkpoint = 0, _offset(folder.metrics, sent), False
    steps = dict(sent.steps)

    def deliver() -> None:
        if batch:
            client.log_batch(sent.run_id, metrics=list(batch))
            batch.clear()
        sent.offset, sent.steps, sent.tail = offset, dict(steps), _tail(folder.metrics, offset)
        sent.write(folder)

    for end, record in _new_lines(folder.metrics, offset):
        kind = str(record.get("kind"))
        has_checkpoint |= kind == "checkpoint"
        if kind in _KINDS and int(record["step"]) > steps.get(kind, -1):
            metrics = _metrics(record)
            if len(batch) + len(metrics) > _BATCH:
                deliver()
            batch += metrics
            steps[kind] = int(record["step"])
            count += 1
        offset = end
    if offset != sent.offset or batch or not sent.tail:
        deliver()
    return count, has_checkpoint


def _metrics(record: Mapping[str, Any]) -> list[Metric]:
    """Return every number that a line tells of its step."""
    from mlflow.entities import Metric

    at, step = milliseconds(record["time"]), int(record["step"])
    return [
        Metric(key, float(value), at, step)
        for key, value in record.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _send_status(client: MlflowClient, run: Run, folder: ExperimentFolder, sent: _Sent) -> None:
    from mlflow.entities import Metric

    status = _status(folder, sent.fingerprint)
    if status == sent.status == run.info.status:
        return
    if status == "RUNNING":
        client.update_run(sent.run_id, status=status)
    else:
        finished = find_finished_training(folder, sent.fingerprint) if status == "FINISHED" else None
        ended = milliseconds(finished.created_at) if finished else int(folder.metrics.stat().st_mtime * 1000)
        if finished is not None:
            best = {"best_val_loss": finished.best_val_loss, "best_step": float(finished.best_step)}
            client.log_batch(
                sent.run_id, metrics=[Metric(key, value, ended, finished.step) for key, value in best.items()]
            )
        client.set_terminated(sent.run_id, status=status, end_time=ended)
    sent.status = status
    sent.write(folder)


def _offset(metrics: Path, sent: _Sent) -> int:
    """Return from where the file is new: from its begin if it was written anew since."""
    return sent.offset if sent.tail and sent.tail == _tail(metrics, sent.offset) else 0


def _tail(metrics: Path, offset: int) -> str:
    with metrics.open("rb") as file:
        file.seek(max(0, offset - _TAIL_BYTES))
        return hashlib.sha256(file.read(min(offset, _TAIL_BYTES))).hexdigest()


def _new_lines(metrics: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each whole line after `offset` with where it ends; one that is no record counts as an empty one."""
    with metrics.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            offset += len(line)
            try:
                record = json.loads(line)
                yield offset, record if isinstance(record, dict) else {}
            except (json.JSONDecodeError, UnicodeDecodeError):
                yield offset, {}

"""One training as one MLflow run, fed from `metrics.jsonl`.

The trainer never talks to MLflow: it appends to its file, and whoever watches it sends what is new. A run bears the
training's fingerprint as a tag, so a resumed training continues in the run it began. The lines of an earlier training
go to that training's own run, from `previous/<number>-<time>/` or from the experiment's folder itself as long as the
new configuration has not begun.

Each step is sent once, with the times of its line. `metrics.sent.json` records what was sent. Where a sender was killed
before it could write that down, MLflow is asked what it has: a step that is trained again has another time, which would
make another row. If MLflow is down or locked, the rest is sent later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.storage.atomic import known_fields, read_kept, rewrite_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.dataset import LoggedDataset, log_dataset
from gpt_pipeline.tracking.descriptions import NOTE, NOTE_TAG
from gpt_pipeline.tracking.evaluation_series import send_series
from gpt_pipeline.tracking.store import LoggedRun, OpenStore, milliseconds, missing_parameters, open_store
from gpt_pipeline.tracking.tags import VERSION_TAG, complete_tags, evaluation_runs
from gpt_pipeline.training.decision import Demand, earlier_trainings
from gpt_pipeline.training.finished import find_finished_training, training_state
from gpt_pipeline.training.metrics import SENT_NAME, read_metrics

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

FINGERPRINT_TAG = "gpt_pipeline.training"
RUN_NAME = "training"
LOSS_FILE = "loss.svg"
REPORT_FILE = "report.html"
CHARTS_FOLDER = "charts"
EXPERIMENT_FILE = "experiment.yaml"
ENDED = ("FINISHED", "FAILED", "KILLED")

_SENT_KINDS = ("train", "validation", "checkpoint")
_LOSSES = {"train": "train_loss", "validation": "val_loss"}  # by kind, a metric that each of its lines has
_NOT_METRICS = {"step", "updates", "seconds", "eta_seconds"}
_LINES_AT_ONCE = 100
_METRICS_AT_ONCE = 1000  # MLflow's limit; its client would cut a longer call anywhere
_TURN_SECONDS = 30.0
_REMEDY = "training goes on and its lines are kept in metrics.jsonl; they are sent once MLflow works"
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "died": "FAILED", "stopped": "KILLED"}


@dataclass(kw_only=True)
class _Sent:
    """What MLflow has of a training: `metrics.sent.json`."""

    store: str
    """As `OpenStore.identity`."""

    run_id: str
    fingerprint: str
    experiment_id: str = ""
    status: str = ""
    offset: int = 0
    """Size of `metrics.jsonl`, in bytes, when all its lines had been sent."""

    steps: dict[str, int] = field(default_factory=dict)
    """Highest step sent, by kind. A step that is trained again after a crash gives the same and is not sent again."""

    in_doubt: bool = False
    """Whether MLflow may have more than `steps` says: lines were being sent when this was written."""

    @classmethod
    def read(cls, folder: ExperimentFolder) -> _Sent | None:
        note = folder.root / SENT_NAME

        def parse(value: Mapping[str, Any]) -> _Sent:
            of_now = {key: value[key] for key in value if key != "tail"}  # which an earlier version noted
            return cls(**known_fields(cls, of_now))

        return read_kept(note, parse, otherwise="the same rows are sent again")

    def write(self, folder: ExperimentFolder) -> None:
        rewrite_json(folder.root / SENT_NAME, dataclasses.asdict(self))


def training_log_is_pending(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether MLflow lacks lines or the status of the training with `fingerprint`, judged by the folder alone."""
    return _is_pending(folder, fingerprint, statuses=[_status(folder, fingerprint)])


def earlier_logs_are_pending(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether MLflow lacks something of a training in `folder` other than the one with `fingerprint`."""
    return bool(_pending_earlier(folder, fingerprint))


def log_training(
    folder: ExperimentFolder,
    *,
    fingerprint: str,
    tracking_uri: str,
    experiment_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    draw_losses: Callable[[Path], str],
    dataset: LoggedDataset | None = None,
    experiment_file: Path | None = None,
) -> LoggedRun | None:
    """Send what MLflow lacks of the training with `fingerprint`; None if the folder holds none of its lines yet.

    `parameters` is the experiment's configuration, nested as it may be; `tags` are those of the experiment, `dataset`
    is what is trained on. `draw_losses` makes an SVG document of
    `metrics.jsonl`; it is sent with each new checkpoint and at the end, not with every line. `experiment_file`
    is kept with the run as it is then, once.

    Raises:
        TrackingError: MLflow cannot be reached, is busy, or refuses; what it took is recorded, the rest is kept.
    """
    if not _belongs(folder, fingerprint):
        return None
    tags = {NOTE_TAG: NOTE, **tags}
    with open_store(
        tracking_uri,
        experiment_name=experiment_name,
        what="the training's metrics",
        remedy=_REMEDY,
        lock=folder.root / ".mlflow.lock",
        wait_seconds=_TURN_SECONDS,
    ) as store:
        size, records = folder.metrics.stat().st_size, read_metrics(folder.metrics)
        run = store.run(
            tag=FINGERPRINT_TAG,
            value=fingerprint,
            name=RUN_NAME,
            started_at=records[0]["time"] if records else None,
            tags=tags,
        )
        sent = _sent_to(run, store, folder, fingerprint)
        if not sent.experiment_id:
            tags = {**tags, VERSION_TAG: _version(folder, fingerprint)}
            _send_description(store, run, fingerprint, parameters=parameters, tags=tags, dataset=dataset)
            send_series(store, run, folder, fingerprint)
            sent.experiment_id = store.experiment_id
        new = [record for record in records if _is_new(record, sent)]
        _send_lines(store, folder, sent, new)
        if sent.offset != size:
            sent.offset = size
            sent.write(folder)
        # Before the status, so that a picture that a crash here leaves out of date is drawn again with the status.
        has_checkpoint = any(record["kind"] == "checkpoint" for record in new)
        if has_checkpoint or _status(folder, fingerprint) not in ("RUNNING", sent.status):
            store.log_text(run, draw_losses(folder.metrics), LOSS_FILE)
            _keep_experiment_file(store, run, experiment_file)
        _send_status(store, run, folder, sent)
        return LoggedRun(run_id=sent.run_id, experiment_id=sent.experiment_id, new=bool(new))


def log_earlier_trainings(
    folder: ExperimentFolder,
    *,
    fingerprint: str,
    tracking_uri: str,
    experiment_name: str,
    tags: Mapping[str, str],
    draw_losses: Callable[[Path], str],
    dataset: LoggedDataset | None = None,
) -> None:
    """Send what MLflow lacks of the trainings in `folder` other than the one with `fingerprint`.

    A run that does not exist yet gets the settings that the training's checkpoints have kept, if there are any, and
    `dataset`, that of the experiment now, if that is what it was trained on.

    Raises:
        TrackingError: as `log_training`.
    """
    for other, earlier in _pending_earlier(folder, fingerprint).items():
        checkpoints = [info for info in list_checkpoints(earlier.checkpoints) if info.fingerprint == other]
        newest = checkpoints[-1] if checkpoints else None
        log_training(
            earlier,
            fingerprint=other,
            tracking_uri=tracking_uri,
            experiment_name=experiment_name,
            parameters=dict(newest.settings) if newest else {},
            tags={**tags, **({"shards_fingerprint": newest.shards_fingerprint} if newest else {})},
            draw_losses=draw_losses,
            dataset=dataset if newest and dataset and newest.shards_fingerprint == dataset.fingerprint else None,
        )


def log_report(
    folder: ExperimentFolder,
    *,
    fingerprint: str,
    tracking_uri: str,
    experiment_name: str,
    charts: Mapping[str, str] | None = None,
) -> None:
    """Keep the experiment's report with the training's run; nothing if the training was not sent to a run yet.

    `charts` are its pictures, as SVG by name, for MLflow's pages, which show a picture but no page with pictures.

    Raises:
        TrackingError: as `log_training`.
    """
    if logged_run(folder, fingerprint) is None:
        return
    with open_store(
        tracking_uri,
        experiment_name=experiment_name,
        what="the report",
        remedy=f"it is kept in {folder.report}, and sent when it is written again",
        lock=folder.root / ".mlflow.lock",
        wait_seconds=_TURN_SECONDS,
    ) as store:
        if (run := store.find(tag=FINGERPRINT_TAG, value=fingerprint)) is not None:
            for name, svg in (charts or {}).items():
                store.log_text(run, svg, f"{CHARTS_FOLDER}/{name}.svg")
            store.log_text(run, folder.report.read_text(encoding="utf-8"), REPORT_FILE)


def logged_run(folder: ExperimentFolder, fingerprint: str) -> LoggedRun | None:
    """Return the run that the training with `fingerprint` was last sent to; None if it never was."""
    sent = _Sent.read(folder)
    if sent is None or sent.fingerprint != fingerprint or not sent.experiment_id:
        return None
    return LoggedRun(run_id=sent.run_id, experiment_id=sent.experiment_id, new=False)


def mlflow_experiment_id(folder: ExperimentFolder) -> str | None:
    """Return MLflow's number of the experiment that the training in `folder` was last sent to; None if it never was."""
    sent = _Sent.read(folder)
    return None if sent is None else sent.experiment_id or None


def sent_runs(folder: ExperimentFolder) -> dict[ExperimentFolder, str]:
    """Return the run that each training in `folder`, the earlier ones too, was sent to."""
    notes = {each: _Sent.read(each) for each in (folder, *earlier_trainings(folder))}
    return {each: note.run_id for each, note in notes.items() if note is not None}


def forget_sent(folder: ExperimentFolder) -> None:
    """Have the training in `folder` sent from its first line again."""
    (folder.root / SENT_NAME).unlink(missing_ok=True)


def _pending_earlier(folder: ExperimentFolder, fingerprint: str) -> dict[str, ExperimentFolder]:
    """Return the folder of each other training that MLflow does not have in full, by fingerprint.

    Of several with one fingerprint the last: it repeated the steps of those before it, with the same numbers. They are
    over, so whatever end MLflow was told of stands.
    """
    last: dict[str, ExperimentFolder] = {}
    for candidate in (*earlier_trainings(folder), folder):
        demand = Demand.read(candidate)
        if demand is not None and demand.fingerprint != fingerprint:
            last[demand.fingerprint] = candidate
    return {other: found for other, found in last.items() if _is_pending(found, other, statuses=ENDED)}


def _is_pending(folder: ExperimentFolder, fingerprint: str, *, statuses: Container[str]) -> bool:
    if not _belongs(folder, fingerprint):
        return False
    sent = _Sent.read(folder)
    if sent is None or sent.fingerprint != fingerprint or sent.status not in statuses:
        return True
    return sent.offset != folder.metrics.stat().st_size


def _belongs(folder: ExperimentFolder, fingerprint: str) -> bool:
    """Whether `metrics.jsonl` is of this training; it is not before the trainer has moved an earlier one's aside."""
    demand = Demand.read(folder)
    return demand is not None and demand.fingerprint == fingerprint and folder.metrics.is_file()


def _status(folder: ExperimentFolder, fingerprint: str) -> str:
    return _STATUS[training_state(folder, fingerprint)]


def _sent_to(run: Run, store: OpenStore, folder: ExperimentFolder, fingerprint: str) -> _Sent:
    """Return what was sent to `run`; without `experiment_id` if it is yet to receive anything from this folder."""
    sent = _Sent.read(folder)
    if sent is None or (sent.store, sent.run_id) != (store.identity, run.info.run_id):
        sent = _Sent(store=store.identity, run_id=run.info.run_id, fingerprint=fingerprint, in_doubt=True)
    if sent.in_doubt and run.data.metrics:
        for kind, key in _LOSSES.items():
            history = store.client.get_metric_history(sent.run_id, key)
            sent.steps[kind] = max((metric.step for metric in history), default=-1)
    return sent


def _send_description(
    store: OpenStore,
    run: Run,
    fingerprint: str,
    *,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: LoggedDataset | None,
) -> None:
    """Send what does not change while the training goes on, and take its evaluations below the run."""
    store.client.log_batch(run.info.run_id, params=missing_parameters(run, parameters))
    complete_tags(store, [run], tags)
    complete_tags(store, evaluation_runs(store, fingerprint), {}, parent=run)
    if dataset is not None:
        log_dataset(store, run.info.run_id, dataset, context="training")
    store.describe(tags[NOTE_TAG])


def _keep_experiment_file(store: OpenStore, run: Run, file: Path | None) -> None:
    """Keep the file with the run as it is now, unless one is kept already."""
    kept = {each.path for each in store.client.list_artifacts(run.info.run_id)}
    if file is not None and file.is_file() and EXPERIMENT_FILE not in kept:
        store.log_text(run, file.read_text(encoding="utf-8"), EXPERIMENT_FILE)


def _version(folder: ExperimentFolder, fingerprint: str) -> str:
    """Return the version that made the training's first checkpoint on disk; of one that has just begun, this one."""
    checkpoints = [each for each in list_checkpoints(folder.checkpoints) if each.fingerprint == fingerprint]
    return checkpoints[0].versions.get("gpt_pipeline", __version__) if checkpoints else __version__


def _is_new(record: Mapping[str, Any], sent: _Sent) -> bool:
    return record["kind"] in _SENT_KINDS and record["step"] > sent.steps.get(record["kind"], -1)


def _send_lines(store: OpenStore, folder: ExperimentFolder, sent: _Sent, records: Sequence[Mapping[str, Any]]) -> None:
    """Send the records by ascending step; record after each call what MLflow has."""
    for some in _batches(records):
        sent.in_doubt = True
        sent.write(folder)
        store.client.log_batch(sent.run_id, metrics=[metric for _, metrics in some for metric in metrics])
        sent.steps |= {record["kind"]: record["step"] for record, _ in some}
        sent.in_doubt = False
        sent.write(folder)


def _batches(records: Sequence[Mapping[str, Any]]) -> Iterator[list[tuple[Mapping[str, Any], list[Metric]]]]:
    """Yield records with their metrics, as many as MLflow takes in one call: it takes all of a step, or nothing."""
    batch: list[tuple[Mapping[str, Any], list[Metric]]] = []
    count = 0
    for record in records:
        metrics = _metrics(record)
        if batch and (len(batch) == _LINES_AT_ONCE or count + len(metrics) > _METRICS_AT_ONCE):
            yield batch
            batch, count = [], 0
        batch.append((record, metrics))
        count += len(metrics)
    if batch:
        yield batch


def _metrics(record: Mapping[str, Any]) -> list[Metric]:
    """Return the numbers of a line on training or validation; tokens only of the former, where both have a step."""
    from mlflow.entities import Metric

    if record["kind"] == "checkpoint":
        return []
    left_out = _NOT_METRICS | ({"tokens_seen"} if record["kind"] == "validation" else set())
    at = milliseconds(record["time"])
    return [
        Metric(key, float(value), at, record["step"])
        for key, value in record.items()
        if key not in left_out and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _send_status(store: OpenStore, run: Run, folder: ExperimentFolder, sent: _Sent) -> None:
    from mlflow.entities import Metric

    status = _status(folder, sent.fingerprint)
    if status == sent.status == run.info.status:
        return
    if status == "RUNNING":
        store.client.update_run(sent.run_id, status=status)
    else:
        finished = find_finished_training(folder, sent.fingerprint) if status == "FINISHED" else None
        ended = milliseconds(finished.created_at) if finished else int(folder.metrics.stat().st_mtime * 1000)
        if finished is not None:
            best = {f"best_{finished.decided_by}": finished.best_val_loss, "best_step": float(finished.best_step)}
            had = run.data.metrics  # of the same training, made again
            metrics = [Metric(key, value, ended, finished.step) for key, value in best.items() if key not in had]
            store.client.log_batch(sent.run_id, metrics=metrics)
        store.client.set_terminated(sent.run_id, status=status, end_time=ended)
    sent.status = status
    sent.write(folder)

"""Evaluations in MLflow, each exactly once.

A thin layer over `MlflowClient`. A run belongs to an evaluation's fingerprint, which it bears as a tag; everything
logged comes from the result on disk, its times included, so that logging it again writes the same rows. An attempt
that was killed is completed by the next one, and a store that was wiped is filled again from the results.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock

from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.tables import answers_as_markdown, answers_as_table

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

_logger = logging.getLogger(__name__)

FINGERPRINT_TAG = "gpt_pipeline.evaluation"
TABLE_FILE = "questions_and_answers.json"
MARKDOWN_FILE = "questions_and_answers.md"
_SQLITE = "sqlite:///"
_ARTIFACTS_FOLDER = "mlflow_artifacts"
_MAX_TEXT = 5000  # characters of a tag's or a parameter's value; MLflow refuses more than 6000 (8000 in tags)
_MAX_PARAMETERS = 100  # that MLflow takes in one call


class TrackingError(UserError):
    """MLflow cannot be reached or refuses what it is given. The result on disk is kept, so logging can be repeated."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The one MLflow run of an evaluation."""

    run_id: str
    experiment_id: str
    new: bool
    """False when it was complete before."""


def default_tracking_uri(base_folder: Path) -> str:
    """Return the URI of the SQLite store in `base_folder`; the artifacts lie beside it."""
    return f"{_SQLITE}{(base_folder / 'mlflow.db').absolute().as_posix()}"


def log_evaluation(
    result: EvaluationResult,
    *,
    tracking_uri: str,
    experiment_name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
) -> LoggedRun:
    """Log `result` as one finished MLflow run named `step_<N>`, or find that done.

    `parameters` is the experiment's configuration, nested as it may be; `tags` are added to those that identify the
    evaluation. Attempts on this machine take turns, so repeated and parallel ones end with one run.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    _configure_mlflow()
    with _turn(tracking_uri, result), _as_tracking_error(tracking_uri):
        client = _client(tracking_uri)
        experiment_id = _experiment_id(client, folder_name(experiment_name, key="experiment_name"), tracking_uri)
        run = _find_run(client, experiment_id, result.fingerprint)
        new = run is None or run.info.status != "FINISHED"
        if run is None:
            run = _create_run(client, experiment_id, result, tags)
        if new:
            _complete_run(client, run, result, parameters, tags)
        return LoggedRun(run_id=run.info.run_id, experiment_id=experiment_id, new=new)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` with their values as text, in order."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _shortened("null" if value is None else str(value))
    return flat


def _configure_mlflow() -> None:
    """Set what MLflow reads when it is imported and the person has not set."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which keep an evaluation waiting for minutes
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of 60 migrations of a new database


def _client(tracking_uri: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    if (database := _sqlite_file(tracking_uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def _turn(tracking_uri: str, result: EvaluationResult) -> Iterator[None]:
    """Wait until no other process of this machine logs to the same store: beside its file, else beside the result.

    It covers the creation of a SQLite store too, which fails when two processes try it at once.
    """
    database = _sqlite_file(tracking_uri)
    lock = database.with_name(f"{database.name}.lock") if database else result.path.parent / "locks" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


@contextmanager
def _as_tracking_error(tracking_uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # a damaged database, which MLflow does not wrap

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrackingError(
            f"MLflow at {tracking_uri} did not take the evaluation ({reason}); the result is kept on disk: "
            "evaluate again once MLflow works, and it is logged without being computed again"
        ) from error


def _experiment_id(client: MlflowClient, name: str, tracking_uri: str) -> str:
    experiment: Experiment | None = client.get_experiment_by_name(name)
    if experiment is None:
        created: str = client.create_experiment(name, artifact_location=_artifact_location(tracking_uri, name))
        return created
    if experiment.lifecycle_stage == "deleted":
        _logger.warning("experiment %r was in MLflow's trash; it is restored", name)
        client.restore_experiment(experiment.experiment_id)
    experiment_id: str = experiment.experiment_id
    return experiment_id


def _artifact_location(tracking_uri: str, name: str) -> str | None:
    """Return the folder of artifacts beside a SQLite file; None: a server's own choice.

    MLflow's default for SQLite is `./mlruns` of whatever folder the process happens to run in.
    """
    database = _sqlite_file(tracking_uri)
    return None if database is None else (database.parent / _ARTIFACTS_FOLDER / name).as_uri()


def _sqlite_file(tracking_uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, or None for any other store."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def _find_run(client: MlflowClient, experiment_id: str, fingerprint: str) -> Run | None:
    runs = client.search_runs([experiment_id], filter_string=f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _create_run(client: MlflowClient, experiment_id: str, result: EvaluationResult, tags: Mapping[str, str]) -> Run:
    return client.create_run(
        experiment_id,
        start_time=_milliseconds(result.started_at),
        tags=_tags(result, tags),
        run_name=f"step_{result.step}",
    )


def _complete_run(
    client: MlflowClient, run: Run, result: EvaluationResult, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    """Log whatever a finished run holds; what is there already is written again, to the same rows and files."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, at = run.info.run_id, _milliseconds(result.created_at)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, at, result.step) for name, value in _metrics(result).items()],
        tags=[RunTag(key, value) for key, value in _tags(result, tags).items()],
    )
    # MLflow refuses to change a parameter; an attempt cut short may have left some from before an edit of the file.
    missing = [Param(key, value) for key, value in flatten(parameters).items() if key not in run.data.params]
    for first in range(0, len(missing), _MAX_PARAMETERS):
        client.log_batch(run_id, params=missing[first : first + _MAX_PARAMETERS])
    client.log_text(run_id, answers_as_table(result.answers), TABLE_FILE)
    client.log_text(run_id, answers_as_markdown(result.answers, title=f"step {result.step:,}"), MARKDOWN_FILE)
    client.set_terminated(run_id, status="FINISHED", end_time=at)


def _metrics(result: EvaluationResult) -> dict[str, float]:
    """Return the evaluation's metrics and, under `trainer_`, what the trainer itself said of the checkpoint."""
    trainer = {f"trainer_{name}": value for name, value in result.checkpoint["metrics"].items() if value is not None}
    return {**result.metrics, **trainer, "evaluation_seconds": result.seconds}


def _tags(result: EvaluationResult, tags: Mapping[str, str]) -> dict[str, str]:
    own = {
        FINGERPRINT_TAG: result.fingerprint,
        "step": str(result.step),
        "checkpoint": str(result.checkpoint["file"]),
        "sha256": str(result.checkpoint["sha256"]),
        "weights_sha256": str(result.checkpoint["weights_sha256"]),
        "training_fingerprint": str(result.checkpoint["training_fingerprint"]),
        "shards_fingerprint": result.upstream["shards"],
        "device": result.device,
        # Shows the artifact as a table in MLflow's "evaluation" view.
        "mlflow.loggedArtifacts": f'[{{"path": "{TABLE_FILE}", "type": "table"}}]',
    }
    return {**{key: _shortened(value) for key, value in tags.items()}, **own}


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _milliseconds(time: str) -> int:
    return int(datetime.datetime.fromisoformat(time).timestamp() * 1000)

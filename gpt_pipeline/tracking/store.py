"""The MLflow store: reaching it, taking turns at it, and saying what it refused."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from gpt_pipeline.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Param, Run
    from mlflow.tracking import MlflowClient

_logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_ARTIFACTS_FOLDER = "mlflow_artifacts"
_MAX_TEXT = 5000  # characters of a tag's or a parameter's value; MLflow refuses more than 6000 (8000 in tags)
_MAX_PARAMETERS = 100  # that MLflow takes in one call


class TrackingError(UserError):
    """MLflow cannot be reached or refuses what it is given. What was to be logged is kept on disk."""


def default_tracking_uri(base_folder: Path) -> str:
    """Return the URI of the SQLite store in `base_folder`; the artifacts lie beside it."""
    return f"{_SQLITE}{(base_folder / 'mlflow.db').absolute().as_posix()}"


def configure_mlflow() -> None:
    """Set what MLflow reads when it is imported and the person has not set."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which keep an evaluation waiting for minutes
    for name in ("alembic", "mlflow.store.db.utils"):  # a line for each of 60 migrations of a new database
        logging.getLogger(name).setLevel(logging.WARNING)


def open_client(tracking_uri: str) -> MlflowClient:
    """Return a client of the store; the folder of a SQLite store is made if it is missing."""
    from mlflow.tracking import MlflowClient

    if (database := sqlite_file(tracking_uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def turn(tracking_uri: str, *, otherwise: Path, wait_seconds: float = -1) -> Iterator[None]:
    """Wait until no other process of this machine logs to the same store: beside its file, else beside `otherwise`.

    It covers the creation of a SQLite store too, which fails when two processes try it at once.

    Raises:
        TrackingError: it is another's turn for longer than `wait_seconds`.
    """
    database = sqlite_file(tracking_uri)
    lock = FileLock(database.with_name(f"{database.name}.lock") if database else otherwise, timeout=wait_seconds)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(f"MLflow at {tracking_uri} is busy with another process of this machine") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def as_tracking_error(tracking_uri: str, *, what: str, remedy: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into one TrackingError: `what` was not taken, and the `remedy`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # a damaged database, which MLflow does not wrap

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrackingError(f"MLflow at {tracking_uri} did not take {what} ({reason}); {remedy}") from error


def experiment_id(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """Return the id of the experiment `name`, made or taken out of the trash if need be."""
    experiment: Experiment | None = client.get_experiment_by_name(name)
    if experiment is None:
        created: str = client.create_experiment(name, artifact_location=_artifact_location(tracking_uri, name))
        return created
    if experiment.lifecycle_stage == "deleted":
        _logger.warning("experiment %r was in MLflow's trash; it is restored", name)
        client.restore_experiment(experiment.experiment_id)
    found: str = experiment.experiment_id
    return found


def find_run(client: MlflowClient, experiment: str, *, tag: str, value: str) -> Run | None:
    """Return the run that bears `tag` with `value`; of several, the same one each time."""
    runs = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{value}'")
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def log_missing_parameters(client: MlflowClient, run: Run, parameters: Mapping[str, Any]) -> None:
    """Log those parameters that the run does not have; MLflow refuses to change one, so the first value stands."""
    from mlflow.entities import Param

    given: list[Param] = [Param(key, value) for key, value in flatten(parameters).items() if key not in run.data.params]
    for first in range(0, len(given), _MAX_PARAMETERS):
        client.log_batch(run.info.run_id, params=given[first : first + _MAX_PARAMETERS])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` with their values as text, in order."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = shortened("null" if value is None else str(value))
    return flat


def shortened(text: str) -> str:
    """Return `text` cut to what MLflow takes as a value."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def milliseconds(time: str) -> int:
    """Return an ISO 8601 time in milliseconds since 1970, as MLflow counts."""
    return int(datetime.datetime.fromisoformat(time).timestamp() * 1000)


def _artifact_location(tracking_uri: str, name: str) -> str | None:
    """Return the folder of artifacts beside a SQLite file; None: a server's own choice.

    MLflow's default for SQLite is `./mlruns` of whatever folder the process happens to run in.
    """
    database = sqlite_file(tracking_uri)
    return None if database is None else (database.parent / _ARTIFACTS_FOLDER / name).as_uri()


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, or None for any other store."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(_SQLITE).partition("?")[0])).absolute()

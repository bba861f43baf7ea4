"""The MLflow store: opening it, taking turns at it, finding runs in it, and reporting what it refused."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import posixpath
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from filelock import Timeout

from gpt_pipeline.errors import UserError
from gpt_pipeline.storage.atomic import fsync_file, fsync_folder
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.descriptions import NOTE_TAG

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Param, Run
    from mlflow.tracking import MlflowClient

_logger = logging.getLogger(__name__)

MAX_RUNS = 50_000
"""Of one experiment; MLflow returns no more at once."""

_SQLITE = "sqlite:///"
_ARTIFACTS_FOLDER = "mlflow_artifacts"
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Of MLflow's database: the columns that may name a place of files."""

_SEEDED = {"alembic_version", "experiments", "workspaces"}  # tables of a new store that are not empty
_BUSY_SECONDS = 1.0  # to wait for a database that another process writes to
_SILENT_SECONDS = 30.0  # for any answer of a server, also one that has to be started first
_MAX_TEXT = 5000  # characters of a tag's or a parameter's value; MLflow refuses more than 6000 (8000 in tags)

_WHEN = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy says why in the line behind it
LONGEST_KEY = 250  # characters of a parameter's or a metric's name
_REFUSED = re.compile(r"[^\w./ -]" if os.name == "nt" else r"[^\w./ :-]")  # MLflow's rule, which takes no colon there


class TrackingError(UserError):
    """MLflow cannot be reached or refuses what it is given. What was to be logged is kept on disk."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The one MLflow run of an evaluation or a training."""

    run_id: str
    experiment_id: str
    new: bool
    """False if MLflow had all of it before."""


@dataclass(frozen=True, kw_only=True)
class OpenStore:
    """The store, opened for one experiment."""

    client: MlflowClient
    experiment_id: str
    identity: str
    """Hash of the tracking URI, which may contain a password."""

    def run(self, *, tag: str, value: str, name: str, started_at: str | None, tags: Mapping[str, str]) -> Run:
        """Return the run whose `tag` is `value`, the same one each time; create it if there is none."""
        if (found := self.find(tag=tag, value=value)) is not None:
            return found
        started = None if started_at is None else milliseconds(started_at)
        own = {tag: value, **{key: shortened(text) for key, text in tags.items()}}
        return self.client.create_run(self.experiment_id, start_time=started, tags=own, run_name=name)

    def find(self, *, tag: str, value: str) -> Run | None:
        """Return the run whose `tag` is `value`, the same one each time; None if there is none."""
        runs = self.client.search_runs([self.experiment_id], filter_string=f"tags.`{tag}` = '{value}'")
        return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)

    def describe(self, text: str) -> None:
        """Set the experiment's description, unless it has one: a person may have written it."""
        if NOTE_TAG not in self.client.get_experiment(self.experiment_id).tags:
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, text)

    def log_text(self, run: Run, text: str, name: str) -> None:
        """Keep `text` with the run, as a file of that name.

        The client writes a run's files itself, unless the server takes them: what may fail there is no error of MLflow.
        """
        with _refused_files_named(run):
            self.client.log_text(run.info.run_id, text, name)

    def log_folder(self, run: Run, folder: Path, name: str) -> None:
        """Keep the files in `folder` with the run, in a folder of that name; as `log_text`."""
        with _refused_files_named(run):
            self.client.log_artifacts(run.info.run_id, str(folder), name)


@contextmanager
def _refused_files_named(run: Run) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever library writes to that place
        raise _FilesRefusedError(
            f"this machine cannot write where it keeps files, {run.info.artifact_uri}: "
            f"{type(error).__name__}: {error}; start the server with --artifacts-destination, so that it takes the "
            "files itself, or name a place that this machine can write to"
        ) from error


class _FilesRefusedError(Exception):
    """The place where MLflow keeps files did not take one."""


@contextmanager
def open_store(
    tracking_uri: str,
    *,
    experiment_name: str,
    what: str,
    remedy: str,
    lock: Path,
    wait_seconds: float = -1,
) -> Iterator[OpenStore]:
    """Open the store for `experiment_name`, which is created if it does not exist, when it is this process's turn.

    Processes of this machine take turns by a lock beside a SQLite store's file, else by `lock`.

    Raises:
        TrackingError: the store is in use for longer than `wait_seconds`; or MLflow failed in the block: it did not
            take `what`, and the `remedy`.
    """
    configure_mlflow()
    with (
        _turn(tracking_uri, otherwise=lock, wait_seconds=wait_seconds),
        as_tracking_error(tracking_uri, what=what, remedy=remedy),
    ):
        _complete_file(tracking_uri)
        _follow_move(tracking_uri)
        client = open_client(tracking_uri)
        name = folder_name(experiment_name, key="experiment_name")
        identity = hashlib.sha256(tracking_uri.encode()).hexdigest()
        yield OpenStore(client=client, experiment_id=_experiment_id(client, name, tracking_uri), identity=identity)


def prepare_store(tracking_uri: str) -> None:
    """Make a SQLite store's file if there is none yet; another store is left alone."""
    if (database := sqlite_file(tracking_uri)) is not None:
        configure_mlflow()
        with _turn(tracking_uri, otherwise=database, wait_seconds=-1):
            _complete_file(tracking_uri)
            _follow_move(tracking_uri)


def _complete_file(tracking_uri: str) -> None:
    """Make a SQLite store's file, under another name until MLflow's migrations are through; call it in one's turn.

    A process that was killed while an earlier version, or MLflow itself, made the file has left some of the migrations
    undone: such a file is made anew if nothing is in it.
    """
    database = sqlite_file(tracking_uri)
    if database is None or (database.is_file() and not _was_cut_short(database)):
        return
    path, _, _ = tracking_uri.removeprefix(_SQLITE).partition("?")
    folder, slash, _ = path.rpartition("/")
    fresh = database.with_name(f".{database.name}.new")
    for leftover in (fresh, fresh.with_name(f"{fresh.name}-journal")):
        leftover.unlink(missing_ok=True)
    client = open_client(f"{_SQLITE}{folder}{slash}{fresh.name}")
    client._tracking_client.store.engine.dispose()  # closes the file
    fsync_file(fresh)
    os.replace(fresh, database)
    fsync_folder(database.parent)


def _was_cut_short(database: Path) -> bool:
    """Whether a SQLite store has nothing but what MLflow puts into a new one, and not even all of that."""
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
            tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
            own = sorted({*tables} - _SEEDED, key=lambda name: name != "runs")
            if any(connection.execute(f'select 1 from "{name}" limit 1').fetchone() for name in own):
                return False
            more = "select 1 from experiments where name <> 'Default'"
            if "experiments" in tables and connection.execute(more).fetchone():
                return False
            version = "select version_num from alembic_version"
            return "alembic_version" not in tables or connection.execute(version).fetchall() != [(_last_migration(),)]
    except sqlite3.Error:
        return False  # damaged, or in use: MLflow says so when it opens it


def _follow_move(tracking_uri: str) -> None:
    """Have the files of a SQLite store that was moved or copied kept beside it again: MLflow notes whole paths.

    Of an experiment whose files did not come along, they stay where they are.
    """
    if (database := sqlite_file(tracking_uri)) is None:
        return
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
            for (noted,) in connection.execute("select artifact_location from experiments").fetchall():
                old = Path(url2pathname(urlsplit(noted or "").path))
                new = database.parent / _ARTIFACTS_FOLDER / old.name
                ours = noted and noted.startswith("file:") and old.parent.name == _ARTIFACTS_FOLDER
                # A folder on the way may be closed to this user: that raises in Path.exists.
                stays = os.path.exists(old) and not os.path.exists(new)
                if ours and old.resolve() != new.resolve() and not stays:
                    _rename_place(connection, noted, new.as_uri())
    except sqlite3.Error as error:  # damaged, or in use: MLflow says so when it opens it
        _logger.debug("%s: where its files lie cannot be read or noted (%s)", database, error)


def _rename_place(connection: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _PLACES:
        connection.execute(
            f'update "{table}" set {column} = ? || substr({column}, ?) '
            f"where {column} = ? or substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )


@cache
def _last_migration() -> str | None:
    import mlflow.store
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.store.__path__[0]) / "db_migrations")).get_current_head()


def configure_mlflow() -> None:
    """Set what MLflow reads when it is imported, unless the user has set it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which keep an evaluation waiting for minutes
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of 60 migrations of a new database
    # The same, and a traceback of each error of the database, which is raised too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_client(tracking_uri: str) -> MlflowClient:
    """Return a client of the store; the folder of a SQLite store is created if it is missing.

    Raises:
        requests.Timeout: a server does not answer; see `as_tracking_error`.
    """
    from mlflow.tracking import MlflowClient

    if (database := sqlite_file(tracking_uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    if tracking_uri.startswith(("http://", "https://")):
        _require_answer(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri)


def _require_answer(address: str) -> None:
    """Raise requests' `Timeout` where the server says nothing: MLflow's client would wait three times two minutes.

    Any answer will do. What else may be wrong is left to that client to say.
    """
    import requests

    seconds = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or _SILENT_SECONDS)
    try:
        requests.get(f"{address.rstrip('/')}/health", timeout=seconds, allow_redirects=False, stream=True).close()
    except requests.Timeout:
        raise
    except requests.RequestException as error:
        _logger.debug("%s: %s", address, error)


@contextmanager
def as_tracking_error(tracking_uri: str, *, what: str, remedy: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into one TrackingError: `what` was not taken, and the `remedy`."""
    from mlflow.exceptions import MlflowException
    from requests import Timeout as SilentServerError
    from sqlalchemy.exc import SQLAlchemyError  # a damaged database, which MLflow does not wrap

    try:
        yield
    except (MlflowException, SQLAlchemyError, SilentServerError, _FilesRefusedError) as error:
        lines = str(error).strip().splitlines()
        reason = next((line for line in lines if not line.startswith(_WHEN)), lines[0])
        # None: the cause, which a log or Dagster's history would keep, quotes the address with its password.
        raise TrackingError(f"MLflow at {tracking_uri} did not take {what} ({reason}); {remedy}") from None


def missing_parameters(run: Run, parameters: Mapping[str, Any]) -> list[Param]:
    """Return the parameters that the run does not have: MLflow refuses to change one, so the first value stands."""
    from mlflow.entities import Param

    return [Param(key, value) for key, value in flatten(parameters).items() if key not in run.data.params]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` with their values as text, in order, under keys that MLflow takes."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[_parameter_key(f"{prefix}{key}")] = shortened("null" if value is None else str(value))
    return flat


def _parameter_key(text: str) -> str:
    """Return `text` if MLflow takes it as a key, else what of it MLflow takes, with a hash of all of it.

    Names of columns, by which documents are filtered, may have any characters.
    """
    if _REFUSED.search(text) is None and posixpath.normpath(text) == text and len(text) <= LONGEST_KEY:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]
    taken = re.sub(r"[^\w.-]+", "_", text)
    return f"{taken[: LONGEST_KEY - SHORT - 1]}-{digest}"


def shortened(text: str) -> str:
    """Return `text` cut to the length that MLflow takes as a value."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def milliseconds(time: str) -> int:
    """Return an ISO 8601 time in milliseconds since 1970, as MLflow counts."""
    return int(datetime.datetime.fromisoformat(time).timestamp() * 1000)


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, or None for any other store."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


@contextmanager
def _turn(tracking_uri: str, *, otherwise: Path, wait_seconds: float) -> Iterator[None]:
    """Wait for this process's turn; also to create a SQLite store, which fails when two processes try it at once."""
    database = sqlite_file(tracking_uri)
    path = database.with_name(f"{database.name}.lock") if database else otherwise
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(path, wait_seconds=wait_seconds))
        except Timeout:
            raise TrackingError(f"MLflow at {tracking_uri} is busy with another process of this machine") from None
        yield


def _experiment_id(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """Return the id of the experiment `name`, created or restored from the trash if need be."""
    experiment: Experiment | None = client.get_experiment_by_name(name)
    if experiment is None:
        # MLflow's default for SQLite is `./mlruns` of whatever folder the process happens to run in.
        database = sqlite_file(tracking_uri)
        artifacts = None if database is None else (database.parent / _ARTIFACTS_FOLDER / name).as_uri()
        return str(client.create_experiment(name, artifact_location=artifacts))
    if experiment.lifecycle_stage == "deleted":
        _logger.warning("experiment %r was in MLflow's trash; it is restored", name)
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)

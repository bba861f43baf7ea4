"""Dagster's history of a project's runs, and what in it is under way."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from gpt_pipeline.errors import UserError
from gpt_pipeline.project import Project, dagster_home
from gpt_pipeline.storage.lock import hold_lock

_logger = logging.getLogger(__name__)
_BUSY_SECONDS = 10.0
_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")

_ON_TERMINAL = {
    "python_logs": {"python_log_level": "INFO"},  # its own console would print the engine's events between ours
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
}

DEFINITIONS = "gpt_pipeline.definitions"
"""The module that Dagster loads; its code location has the same name."""

UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
"""The states of a run that is not over."""


def open_instance(project: Project) -> dg.DagsterInstance:
    """Return Dagster's instance for runs in this very process; call `project.enter` first.

    It is the one that `dagster dev` uses, except for the capture of stdout and stderr: that would hide the terminal
    from the trainer, and its helper processes print tracebacks at Ctrl+C.
    """
    home = dagster_home() or project.root
    with turn_to_open(project):
        return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_ON_TERMINAL))


@contextmanager
def turn_to_open(project: Project) -> Iterator[None]:
    """Hold the turn to open the project's history during the block; a new one is made when it is opened.

    Two processes that made it at once would each note a version of its tables, and Dagster refuses two notes from then
    on. Where an earlier version has left them, both are removed: Dagster then adds what is missing and notes its own.
    """
    folder = _sqlite_folder(project) or project.history
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".opening.lock", wait_seconds=-1):
        for name in _DATABASES:
            if (database := folder / name).is_file():
                _forget_two_versions(database)
        yield


def _sqlite_folder(project: Project) -> Path | None:
    """Return the folder of the history's SQLite databases, which `dagster.yaml` may put anywhere; None for others."""
    storage = InstanceRef.from_dir(str(dagster_home() or project.root)).storage_data
    if storage is None or storage.class_name != "DagsterSqliteStorage":
        return None
    folder = storage.config_dict.get("base_dir")
    return project.root / folder if isinstance(folder, str) else None


def _forget_two_versions(database: Path) -> None:
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
            if connection.execute("select count(*) from alembic_version").fetchone() > (1,):
                connection.execute("delete from alembic_version")
                connection.commit()
    except sqlite3.Error as error:  # damaged, locked, or made in part: Dagster says so when it opens it
        _logger.debug("%s: its version cannot be read (%s)", database, error)


@contextmanager
def explained_history(project: Project) -> Iterator[None]:
    """Turn what the history's database refuses in the block into a `UserError`, whose remedy is that of a full disk."""
    from sqlalchemy.exc import DBAPIError, NoSuchTableError

    try:
        yield
    except (DBAPIError, NoSuchTableError) as error:  # the latter of a file that was made anew, and is still empty
        reason = error.orig if isinstance(error, DBAPIError) else f"no such table: {error}"
        home = dagster_home() or project.root
        why = "if its disk is full, free some space" if project.history.is_dir() else "it was deleted meanwhile"
        raise UserError(
            f"Dagster's history of {home} cannot be read or written ({reason}); {why}. Finished work is kept: run "
            "again, or see what `gpt-pipeline doctor` says of it"
        ) from error


def remote_origin(job_name: str) -> RemoteJobOrigin:
    """Return where Dagster's pages find the job: in the code location that `gpt-pipeline ui` and `dagster dev` serve.

    A run without it appears neither among the runs of its job nor in the timeline.
    """
    location = RegisteredCodeLocationOrigin(DEFINITIONS)
    return RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME).get_job_origin(job_name)


def count_runs(project: Project) -> int:
    """Return the number of runs in the project's history; raises whatever its storage raises if it cannot be read."""
    home = dagster_home() or project.root
    with chdir(project.root), dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        return instance.get_runs_count()


def is_under_way(instance: dg.DagsterInstance, job_name: str) -> bool:
    """Whether a run of the job waits, begins, works or ends."""
    return instance.get_runs_count(dg.RunsFilter(job_name=job_name, statuses=list(UNFINISHED))) > 0

"""Which runs MLflow has lost: its store was wiped, or another store is used now."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.tracking.store import (
    MAX_RUNS,
    TrackingError,
    as_tracking_error,
    configure_mlflow,
    open_client,
    sqlite_file,
)

_BUSY_SECONDS = 1.0  # to wait for a database that another process writes to
_ASK_LATER = "it is asked again later"


def lost_runs(run_ids: Iterable[str], *, tracking_uri: str, experiment_name: str) -> set[str]:
    """Return those of `run_ids` that the store does not have; a run in its trash counts as there: someone put it there.

    A SQLite file is read directly, in milliseconds and without importing MLflow.

    Raises:
        TrackingError: the store cannot be reached, or is busy.
    """
    wanted = set(run_ids)
    if not wanted:
        return set()
    database = sqlite_file(tracking_uri)
    return wanted - (_runs_of_server(tracking_uri, experiment_name) if database is None else _runs_of_file(database))


def _runs_of_file(database: Path) -> set[str]:
    if not database.is_file():
        return set()
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as connection:
            if not connection.execute("select 1 from sqlite_master where name = 'runs'").fetchone():
                return set()
            return {str(run_id) for (run_id,) in connection.execute("select run_uuid from runs")}
    except sqlite3.Error as error:
        raise TrackingError(f"{database} cannot be read ({error}); {_ASK_LATER}") from error


def _runs_of_server(tracking_uri: str, experiment_name: str) -> set[str]:
    from mlflow.entities import ViewType

    configure_mlflow()
    with as_tracking_error(tracking_uri, what="a question", remedy=_ASK_LATER):
        client = open_client(tracking_uri)
        experiment = client.get_experiment_by_name(folder_name(experiment_name, key="experiment_name"))
        if experiment is None:
            return set()
        runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=MAX_RUNS)
        return {run.info.run_id for run in runs}

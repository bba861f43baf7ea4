"""Opening Dagster's history: by one process at a time, since it makes what is not there yet."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import NoSuchTableError, OperationalError

from gpt_pipeline.errors import UserError
from gpt_pipeline.orchestration.history import explained_history, open_instance, turn_to_open
from gpt_pipeline.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("GPT_PIPELINE_EXPERIMENTS", str(tmp_path / "experiments"))
    project = Project(root=tmp_path, experiments=tmp_path / "experiments")
    project.enter()
    return project


def test_history_is_opened_by_one_process_at_a_time(project: Project) -> None:
    opened: list[int] = []

    def look() -> None:
        with open_instance(project) as instance:
            opened.append(instance.get_runs_count())

    other = threading.Thread(target=look)
    with turn_to_open(project):
        other.start()
        other.join(1)
        assert other.is_alive()
        assert not list(project.history.rglob("*.db"))
    other.join()
    assert opened == [0]


@pytest.mark.parametrize("place", ["its own", "DAGSTER_HOME", "elsewhere"])
def test_history_with_two_versions_noted_is_opened_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = project.history / "history"
    if place != "its own":
        home, folder = project.root / "home", project.root / ("home" if place == "DAGSTER_HOME" else "elsewhere")
        home.mkdir()
        storage = f"storage: {{sqlite: {{base_dir: '{folder}'}}}}\n" if place == "elsewhere" else ""
        (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{storage}")
        monkeypatch.setenv("DAGSTER_HOME", str(home))
    with open_instance(project) as instance:
        instance.add_dynamic_partitions("steps", ["step_1"])
    database = folder / "history" / "runs.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("insert into alembic_version values ('5771160a95ad')")
        connection.commit()
    with open_instance(project) as instance:  # Dagster alone says: more than one head present
        assert instance.get_runs_count() == 0
        assert instance.get_dynamic_partitions("steps") == ["step_1"]
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("select count(*) from alembic_version").fetchone() == (1,)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OperationalError("select", {}, sqlite3.OperationalError("unable to open database file")), "unable to open"),
        (NoSuchTableError("runs"), "no such table: runs"),
    ],
)
def test_history_that_is_deleted_meanwhile_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    project = Project(root=tmp_path, experiments=tmp_path)
    with (
        pytest.raises(UserError, match=rf"history of .* \({reason}.*\); it was deleted meanwhile"),
        explained_history(project),
    ):
        raise error

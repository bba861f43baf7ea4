"""The sensor in Dagster's own daemon: killed, restarted without its memory, with a damaged checkpoint among others."""

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.orchestration.dead_runs import PROCESS_TAG
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import dagster_pages, wait

EXPERIMENTS = ("tiny", "other")
WANTED = {("tiny", 4), ("tiny", 12), ("other", 4), ("other", 8), ("other", 12)}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name == "nt", reason="process groups, signals and /proc are POSIX"),
]


def _query(database: Path, query: str) -> list[tuple[str, ...]]:
    """The rows, or none as long as another process holds or makes the database."""
    if not database.is_file():
        return []
    try:
        with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def _run_is_under_way(project: TinyProject) -> bool:
    database = project.root / ".dagster" / "history" / "history" / "runs.db"
    query = (
        f"select runs.run_id from runs join run_tags using (run_id) where status = 'STARTED' and key = '{PROCESS_TAG}'"
    )
    return bool(_query(database, query))


def _requests(project: TinyProject) -> int:
    """Runs that Dagster has launched in all."""
    return len(_query(project.root / ".dagster" / "history" / "history" / "runs.db", "select run_id from runs"))


def _evaluated(project: TinyProject) -> set[tuple[str, int]]:
    return {
        (stem, result.step)
        for stem in EXPERIMENTS
        for result in read_evaluations(project.experiment(stem).folder.evaluations)
        if (result.path.parent / "logged" / result.path.name).is_file()
    }


def _state(project: TinyProject) -> str:
    """What is evaluated, how Dagster's runs are, and the end of its log, for a person."""
    database = project.root / ".dagster" / "history" / "history" / "runs.db"
    runs = _query(database, "select run_id, pipeline_name, status, create_timestamp, update_timestamp from runs")
    log = (project.root / "dagster.log").read_text(errors="replace").splitlines()[-60:]
    return "\n".join([f"evaluated: {sorted(_evaluated(project))}", *map(str, runs), *log])


def _mlflow_runs(project: TinyProject) -> list[tuple[str, str, str]]:
    """Experiment, name and status of every run of an evaluation, ordered."""
    query = """select experiments.name, runs.name, runs.status from runs join experiments using (experiment_id)
        where runs.name like 'step_%' order by 1, 2"""
    return _query(project.root / "mlflow.db", query)


def _unevaluated(project: TinyProject) -> None:
    """Two experiments with three checkpoints each, one of them damaged; no evaluation, no MLflow, no history."""
    project.write_experiment("other")
    tiny, other = (project.experiment(stem).folder for stem in EXPERIMENTS)
    shutil.copytree(tiny.root, other.root)
    for folder in (tiny, other):
        shutil.rmtree(folder.evaluations)
        folder.report.unlink()
    (project.root / "mlflow.db").unlink()
    shutil.rmtree(project.root / ".dagster")
    damaged = tiny.checkpoints / "checkpoint_step_8.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # it may share its content with best_model.pt
    damaged.write_bytes(content)


def test_daemon_killed_and_restarted_without_memory_evaluates_each_checkpoint_of_two_experiments_once(
    copy: TinyProject,
) -> None:
    _unevaluated(copy)
    with dagster_pages(copy):
        wait(lambda: _run_is_under_way(copy), seconds=180, what="the first evaluation")
    assert _evaluated(copy) != WANTED
    for database in (copy.root / ".dagster" / "history").glob("schedules*"):  # the sensors' cursors and ticks
        shutil.rmtree(database) if database.is_dir() else database.unlink()
    with dagster_pages(copy):
        wait(lambda: _evaluated(copy) >= WANTED, seconds=420, what="all evaluations", found=lambda: _state(copy))
        wait(
            lambda: all(copy.experiment(stem).folder.report.is_file() for stem in EXPERIMENTS),
            seconds=120,
            what="reports",
        )
        _wait_for_quiet(copy)
    assert _evaluated(copy) == WANTED
    assert _mlflow_runs(copy) == sorted((stem, f"step_{step}", "FINISHED") for stem, step in WANTED)
    assert [result.step for result in read_evaluations(copy.experiment("tiny").folder.evaluations)] == [4, 12]


def _wait_for_quiet(project: TinyProject) -> None:
    """Wait until two looks of the sensors in a row ask for nothing more."""
    launched, since = _requests(project), time.monotonic()
    deadline = since + 240
    while time.monotonic() - since < 40:
        assert time.monotonic() < deadline, "runs are requested without end"
        time.sleep(1)
        if (now := _requests(project)) != launched:
            launched, since = now, time.monotonic()

"""Runs at work in a project: a file for each in the folder of Dagster's history, whose lock its process holds."""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.project import Project
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.lock import held_for, hold_lock, is_held
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.storage.process import ProcessId

_FOLDER = "at_work"


@dataclass(frozen=True, kw_only=True)
class RunAtWork:
    """A run that begins, works, or waits for its place."""

    run: str
    job: str
    experiment: str
    """The name that its jobs bear."""

    process: ProcessId
    since: str

    @property
    def in_words(self) -> str:
        """Which run it is, where it is executed, and since when."""
        process = f"process {self.process.pid} on {self.process.host}"
        return (
            f"Dagster run {self.run[:8]} ({self.job}; {process}) since {self.since.replace('T', ' ').rstrip('Z')} UTC"
        )


@contextmanager
def show_run(project: Project, *, run: str, job: str, experiment: str) -> Iterator[None]:
    """Show for the length of the block that this process executes a run for the experiment."""
    folder = project.history / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}-{uuid.uuid4().hex[:8]}.json"  # a run may be of several experiments
    lock = path.with_suffix(".lock")
    at_work = RunAtWork(run=run, job=job, experiment=experiment, process=ProcessId.here(), since=utc_now())
    _remove_ended(folder)
    try:
        with hold_lock(lock):
            write_json(path, dataclasses.asdict(at_work))
            yield
    finally:  # Windows removes no file that is open
        path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _remove_ended(folder: Path) -> None:
    """Remove what killed runs left."""
    for path in folder.glob("*.json"):
        if not is_held(path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def runs_at_work(project: Project, experiment: str) -> list[RunAtWork]:
    """Return the runs at work for the experiment, the first one first. Those that were killed count for nothing."""
    paths = (project.history / _FOLDER).glob("*.json")
    found = [run for path in paths if is_held(path.with_suffix(".lock")) and (run := _read(path)) is not None]
    return sorted((run for run in found if run.experiment == experiment), key=lambda run: run.since)


def _read(path: Path) -> RunAtWork | None:
    try:
        value = read_json(path)
        texts = {name: str(value[name]) for name in ("run", "job", "experiment", "since")}
        return RunAtWork(process=ProcessId.from_text(value["process"]), **texts)
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None  # it has just ended


def pages_addresses(project: Project) -> list[str]:
    """Return where the project's web pages are open: the page to start from, and MLflow's; none if they are not."""
    return re.findall(r"https?://[^\s,;]+", held_for(project.pages) or "")

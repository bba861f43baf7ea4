"""What people and machines do to a run that goes on: suspend it, edit its file, start it twice, delete its stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from gpt_pipeline_tests.faults.aftermath import assert_as_undisturbed, processes, write_long
from gpt_pipeline_tests.gate import Gate
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject, trainer_pids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.name == "nt", reason="SIGSTOP and /proc are POSIX"),
]


@pytest.fixture
def gated(project: TinyProject, tmp_path: Path) -> tuple[TinyProject, Gate]:
    """The project whose training waits after its first checkpoint, until the gate is opened."""
    gate = Gate(tmp_path, step=60)
    return TinyProject(root=project.root, variables=gate.variables), gate


def _finish(run: subprocess.Popen[str]) -> str:
    output = output_of(run)
    assert run.returncode == 0, output
    assert "Traceback" not in output, output
    return output


def _suspend(project: TinyProject, run: subprocess.Popen[str]) -> None:
    """Stop every process for a while, the trainer first and longest."""
    victims = [*map(psutil.Process, trainer_pids(project)), psutil.Process(run.pid)]
    victims += [process for process in processes(project) if process not in victims]
    for process in victims:
        process.suspend()
    time.sleep(3)
    for process in reversed(victims):
        process.resume()


def _edit_the_file(project: TinyProject, run: subprocess.Popen[str]) -> None:
    path = project.root / "experiments" / "long.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))


def _put_the_file_back(project: TinyProject) -> None:
    path = project.root / "experiments" / "long.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.002", "learning_rate: 0.001"))


def _delete_mlflow(project: TinyProject, run: subprocess.Popen[str]) -> None:
    (project.root / "mlflow.db").unlink()


def _delete_dagster(project: TinyProject, run: subprocess.Popen[str]) -> None:
    folder = project.root / ".dagster"
    for _ in range(100):  # the run writes into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
    pytest.fail(f"{folder} comes back as often as it is deleted")


@pytest.mark.parametrize("disturb", [_suspend, _delete_mlflow, _delete_dagster], ids=lambda each: each.__name__[1:])
def test_run_disturbed_while_it_trains_ends_as_undisturbed(
    gated: tuple[TinyProject, Gate],
    undisturbed: Mapping[int, str],
    disturb: Callable[[TinyProject, subprocess.Popen[str]], None],
) -> None:
    project, gate = gated
    run = project.start("run", "experiments/long.yaml")
    gate.wait(run)
    disturb(project, run)
    gate.open()
    output = output_of(run)
    assert "Traceback" not in output, output
    assert disturb is not _suspend or run.returncode == 0, output
    print(output, project.run("run", "experiments/long.yaml"))
    assert_as_undisturbed(project, undisturbed)


@pytest.mark.parametrize("days", [-2, 2])
def test_run_whose_clock_is_set_while_it_trains_ends_as_undisturbed(
    gated: tuple[TinyProject, Gate], undisturbed: Mapping[int, str], tmp_path: Path, days: int
) -> None:
    project, gate = gated
    clock = tmp_path / "clock"
    project = TinyProject(root=project.root, variables={**project.variables, "CLOCK": str(clock)})
    run = project.start("run", "experiments/long.yaml")
    gate.wait(run)
    clock.write_text(str(days * 24 * 3600))
    gate.open()  # the trainer's clock is set; the evaluations beside it keep theirs, as on another machine
    _finish(run)
    saved = [datetime.fromisoformat(info.created_at) for info in project.checkpoints("long")]
    assert round((saved[-1] - saved[0]).total_seconds() / (24 * 3600)) == days
    assert "Nothing to do" in project.run("run", "experiments/long.yaml")
    assert_as_undisturbed(project, undisturbed)


def test_experiment_file_edited_while_it_trains_changes_nothing_of_that_run(
    gated: tuple[TinyProject, Gate], undisturbed: Mapping[int, str]
) -> None:
    project, gate = gated
    run = project.start("run", "experiments/long.yaml")
    gate.wait(run)
    _edit_the_file(project, run)
    gate.open()
    output = output_of(run)
    assert "Traceback" not in output, output
    _put_the_file_back(project)
    project.run("run", "experiments/long.yaml")
    assert_as_undisturbed(project, undisturbed)


def test_two_runs_of_one_experiment_at_once_train_it_once(
    gated: tuple[TinyProject, Gate], undisturbed: Mapping[int, str]
) -> None:
    project, gate = gated
    first = project.start("run", "experiments/long.yaml")
    gate.wait(first)
    second = project.start("run", "experiments/long.yaml")
    gate.open()
    outputs = [output_of(run) for run in (first, second)]
    assert first.returncode == 0, outputs[0]
    assert not any("Traceback" in output for output in outputs), "\n".join(outputs)
    print(project.run("run", "experiments/long.yaml"))
    assert_as_undisturbed(project, undisturbed)


def test_two_experiments_begun_at_once_without_data_make_it_once(
    project: TinyProject, undisturbed: Mapping[int, str]
) -> None:
    write_long(project, "other")
    runs = [project.start("run", f"experiments/{stem}.yaml") for stem in ("long", "other")]
    for run in runs:
        _finish(run)
    data = project.root / "storage" / "data"
    assert len(list(data.glob("token_shards-*/manifest.json"))) == 1
    assert len(list(data.glob("*/.*.tmp"))) == 0
    for stem in ("long", "other"):
        assert_as_undisturbed(project, undisturbed, stem)

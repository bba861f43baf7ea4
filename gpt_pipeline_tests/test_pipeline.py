"""The whole pipeline as a user runs it: by its commands, in a project folder, on the embedded sample."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline import results
from gpt_pipeline.checkpoints.manifest import best_checkpoint
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.training import training_job
from gpt_pipeline.orchestration.driver import is_complete
from gpt_pipeline.planning.outline import outline
from gpt_pipeline.progress.data_users import users_of, why_users_are_unknown
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.training.decision import Demand
from gpt_pipeline_tests.gate import Gate
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.mirrors import folder_mirror
from gpt_pipeline_tests.projects import TinyProject, trainer_pids

_MATERIALIZE = ("asset", "materialize", "-m", "gpt_pipeline.definitions", "--select")


def _weights(project: TinyProject, stem: str) -> dict[int, str]:
    return {info.step: info.weights_sha256 for info in project.checkpoints(stem)}


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every artifact below `folder`."""
    artifacts = [path for suffix in ("pt", "bin", "parquet") for path in folder.rglob(f"*.{suffix}")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in artifacts}


def _mlflow_runs(project: TinyProject) -> dict[str, list[str]]:
    """The names of all MLflow runs, by experiment; every one must be finished."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    runs = {each.name: client.search_runs([each.experiment_id]) for each in client.search_experiments()}
    assert all(run.info.status == "FINISHED" for found in runs.values() for run in found)
    return {name: sorted(run.info.run_name for run in found) for name, found in runs.items() if found}


def test_run_from_nothing_makes_every_artifact_and_evaluates_every_checkpoint(finished: TinyProject) -> None:
    folder = finished.experiment("tiny").folder
    assert list(_weights(finished, "tiny")) == [4, 8, 12]
    assert best_checkpoint(folder.checkpoints) is not None
    assert [result.step for result in read_evaluations(folder.evaluations)] == [4, 8, 12]
    assert _mlflow_runs(finished) == {"tiny": ["step_12", "step_4", "step_8", "training"]}
    assert "tiny" in folder.report.read_text(encoding="utf-8")
    assert "runtime:" in (finished.root / "experiments" / "tiny.yaml").read_text()
    assert len(list(finished.root.rglob("synth_en_samples_300.parquet"))) == 1


def test_run_from_nothing_puts_its_experiment_on_record_as_a_user_of_the_data(finished: TinyProject) -> None:
    experiment = finished.experiment("tiny")
    assert str(experiment.file) in {user.file for user in users_of(experiment.data_folder)}
    assert why_users_are_unknown(experiment.data_folder) is None


@pytest.mark.parametrize("read", [results.metrics, results.evaluations, results.kinds, results.answers])
def test_results_of_a_run_have_the_documented_columns(finished: TinyProject, read: Any) -> None:
    columns = [name for name in read(finished.experiment("tiny").file).columns if not name.startswith("system/")]
    assert columns == list(read().columns)


def test_run_is_shown_on_the_page_of_its_job(copy: TinyProject) -> None:
    import dagster as dg

    from gpt_pipeline.orchestration.history import open_instance
    from gpt_pipeline.project import Project

    with chdir(copy.root), open_instance(Project.here()) as instance:
        of_the_location = {
            ".dagster/repository": "__repository__@gpt_pipeline.definitions"
        }  # as the pages ask for them
        for job, least in (("run_tiny", 1), ("evaluate_tiny", 3), ("report_tiny", 1)):
            assert instance.get_runs_count(dg.RunsFilter(job_name=job, tags=of_the_location)) >= least


def test_run_again_does_nothing_and_says_so(copy: TinyProject) -> None:
    before = _states(copy.root)
    output = copy.run("run", "experiments/tiny.yaml")
    assert "Nothing to do" in output
    assert "finished at step 12" in output
    assert str(copy.experiment("tiny").folder.report) in output
    assert _states(copy.root) == before
    assert _mlflow_runs(copy) == {"tiny": ["step_12", "step_4", "step_8", "training"]}


@pytest.mark.parametrize("request_of_a_run", ["", "run-1"])  # by `run`, or by `run --force`
@pytest.mark.parametrize("resume", ["scratch", "checkpoint_step_4.pt"])
def test_finished_experiment_is_not_complete_where_its_file_asks_for_another_start(
    copy: TinyProject, resume: str, request_of_a_run: str
) -> None:
    experiment = copy.experiment("tiny")
    assert is_complete(experiment)
    assert list(outline(experiment)) == []
    path = experiment.file
    path.write_text(path.read_text().replace("../storage}", f"../storage, checkpoint_to_resume: {resume}}}"))
    experiment = copy.experiment("tiny")
    assert not is_complete(experiment)
    assert list(outline(experiment))
    assert experiment_status(experiment).next.command.startswith("gpt-pipeline plan ")
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    job = dataclasses.replace(training_job(experiment, shards), request=request_of_a_run)
    Demand.of(job).write(experiment.folder)  # as the trainer does once it has begun so
    assert is_complete(experiment)
    assert experiment_status(experiment).next.command.startswith("gpt-pipeline generate ")


@pytest.mark.slow
def test_run_of_what_is_finished_sends_what_its_mirror_lacks(copy: TinyProject, tmp_path: Path) -> None:
    mirror, path = tmp_path / "mirror", copy.root / "experiments" / "tiny.yaml"
    given = f"{{base_folder: ../storage, mirror: {folder_mirror(mirror)!r}}}"
    path.write_text(path.read_text(encoding="utf-8").replace("{base_folder: ../storage}", given), encoding="utf-8")
    assert "Nothing to do" in copy.run("run", "experiments/tiny.yaml")
    there = {each.name for each in mirror.rglob("*")}
    assert {"checkpoint_step_12.json", "best_model.json", "training.json", "report.html", "metrics.jsonl"} <= there
    [evaluation] = [each for each in there if each.startswith("step_00000012")]
    next(mirror.rglob(evaluation)).unlink()  # as if the run before had been killed ahead of it
    assert "Nothing to do" in copy.run("run", "experiments/tiny.yaml")
    assert list(mirror.rglob(evaluation))


@pytest.mark.slow
def test_run_after_history_was_deleted_finds_everything_and_tells_dagster(copy: TinyProject) -> None:
    import dagster as dg

    from gpt_pipeline.orchestration.history import open_instance
    from gpt_pipeline.project import Project

    before = _states(copy.root)
    shutil.rmtree(copy.root / ".dagster")
    copy.run("run", "experiments/tiny.yaml")
    assert _states(copy.root) == before
    assert _mlflow_runs(copy) == {"tiny": ["step_12", "step_4", "step_8", "training"]}
    code = os.getcwd()
    os.chdir(copy.root)
    try:
        with open_instance(Project.here()) as instance:
            keys = ["step_00000004", "step_00000008", "step_00000012"]
            assert sorted(instance.get_materialized_partitions(dg.AssetKey(["tiny", "evaluation"]))) == keys
            assert sorted(instance.get_materialized_partitions(dg.AssetKey(["tiny", "checkpoint"]))) == keys
    finally:
        os.chdir(code)


@pytest.mark.slow
def test_materialize_by_dagsters_own_command_twice_does_no_work(copy: TinyProject) -> None:
    before = _states(copy.root)
    output = copy.run(*_MATERIALIZE, '+key:"tiny/training"', module="dagster")
    assert "Nothing to do" in output
    partition = ("--partition", "step_00000008")
    assert "Nothing to do" in copy.run(*_MATERIALIZE, "tiny/evaluation", *partition, module="dagster")
    assert _states(copy.root) == before
    assert _mlflow_runs(copy) == {"tiny": ["step_12", "step_4", "step_8", "training"]}


@pytest.mark.slow
def test_run_with_another_learning_rate_trains_anew_on_the_same_data_and_overwrites_nothing(copy: TinyProject) -> None:
    data = _states(copy.root / "storage" / "data")
    old = _weights(copy, "tiny")
    copy.write_experiment("tiny", learning_rate=0.002)
    copy.run("run", "experiments/tiny.yaml")
    assert _states(copy.root / "storage" / "data") == data
    assert set(_weights(copy, "tiny").values()).isdisjoint(old.values())
    kept = list(copy.experiment("tiny").folder.root.glob("previous/*/checkpoints/checkpoint_step_12.pt"))
    assert len(kept) == 1
    assert len(_mlflow_runs(copy)["tiny"]) == 8


@pytest.mark.slow
def test_run_of_second_experiment_with_the_same_data_shares_it(copy: TinyProject) -> None:
    data = _states(copy.root / "storage" / "data")
    copy.write_experiment("other", learning_rate=0.002)
    copy.run("run", "experiments/other.yaml")
    assert _states(copy.root / "storage" / "data") == data
    assert sorted(_weights(copy, "other")) == [4, 8, 12]


@pytest.mark.slow
def test_evaluate_with_more_questions_adds_one_run_per_checkpoint_once(copy: TinyProject) -> None:
    assert "3 evaluated" in copy.run("evaluate", "experiments/tiny.yaml", "--questions", "3")
    assert "Nothing to do" in copy.run("evaluate", "experiments/tiny.yaml", "--questions", "3")
    assert len(_mlflow_runs(copy)["tiny"]) == 7


@pytest.mark.slow
def test_run_after_mlflow_was_wiped_logs_everything_again(copy: TinyProject) -> None:
    before = _states(copy.root)
    (copy.root / "mlflow.db").unlink()
    assert "MLflow has lost 3 evaluations" in copy.run("run", "experiments/tiny.yaml")
    assert _states(copy.root) == before
    assert _mlflow_runs(copy) == {"tiny": ["step_12", "step_4", "step_8", "training"]}


LONG = {"max_steps": 40}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The weights of a forty-step training that nobody disturbed."""
    project = TinyProject(root=tmp_path_factory.mktemp("uninterrupted"))
    project.write_experiment("long", **LONG)
    project.run("run", "experiments/long.yaml")
    return _weights(project, "long")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Stops a training between its checkpoints of steps 8 and 12."""
    return Gate(tmp_path, step=10)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and /proc")
def test_run_whose_trainer_is_killed_continues_to_the_same_weights(
    uninterrupted: dict[int, str], tmp_path: Path, gate: Gate
) -> None:
    project = TinyProject(root=tmp_path, variables=gate.variables)
    project.write_experiment("long", **LONG)
    process = project.start("run", "experiments/long.yaml")
    gate.wait(process)
    for pid in trainer_pids(project):
        os.kill(pid, signal.SIGKILL)
    gate.open()
    output = output_of(process)
    assert process.returncode == 1
    assert "continues from the last checkpoint" in output
    project.run("run", "experiments/long.yaml")
    assert _weights(project, "long")[40] == uninterrupted[40]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and /proc")
def test_run_stopped_by_two_ctrl_c_saves_leaves_no_process_and_continues_to_the_same_weights(
    uninterrupted: dict[int, str], tmp_path: Path, gate: Gate
) -> None:
    project = TinyProject(root=tmp_path, variables=gate.variables)
    project.write_experiment("long", **LONG)
    process = project.start("run", "experiments/long.yaml", start_new_session=True)
    gate.wait(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output = output_of(process)
    gate.open()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert trainer_pids(project) == []
    last = max(_weights(project, "long"))
    assert output.endswith(f"Stopped; checkpoint_step_{last}.pt is saved, and the next run continues from it.\n")
    assert 8 <= last < 40
    evaluated = {result.step for result in read_evaluations(project.experiment("long").folder.evaluations)}
    assert last not in evaluated  # who presses Ctrl+C waits for no further evaluation
    project.run("run", "experiments/long.yaml")
    assert _weights(project, "long")[40] == uninterrupted[40]


@pytest.mark.slow
def test_run_with_an_mlflow_that_is_down_trains_to_the_end_and_logs_it_later(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    down = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "gpt_pipeline", "run", "experiments/tiny.yaml"]
    process = subprocess.run(
        command, cwd=tmp_path, env={**project.environment, **down}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "MLflow at http://127.0.0.1:9 did not take" in process.stderr
    assert project.experiment("tiny").folder.training.is_file(), process.stderr
    assert list(_weights(project, "tiny")) == [4, 8, 12]
    project.run("run", "experiments/tiny.yaml")
    assert _mlflow_runs(project) == {"tiny": ["step_12", "step_4", "step_8", "training"]}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_run_killed_with_all_its_processes_is_shown_as_failed_by_the_next(tmp_path: Path, gate: Gate) -> None:
    import dagster as dg

    from gpt_pipeline.orchestration.history import open_instance
    from gpt_pipeline.project import Project

    project = TinyProject(root=tmp_path, variables=gate.variables)
    project.write_experiment("long", **LONG)
    process = project.start("run", "experiments/long.yaml", start_new_session=True)
    gate.wait(process)
    process.kill()
    for pid in trainer_pids(project):
        os.kill(pid, signal.SIGKILL)
    gate.open()
    output_of(process)
    output = project.run("run", "experiments/long.yaml")
    assert "was killed earlier" in output
    before = os.getcwd()
    os.chdir(project.root)
    try:
        with open_instance(Project.here()) as instance:
            unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED]
            assert instance.get_runs(dg.RunsFilter(statuses=unfinished)) == []
    finally:
        os.chdir(before)
    assert "training" in _mlflow_runs(project)["long"]


_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'


def _see_read_only(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees `folder`, where it works, as a disk that is mounted read-only."""
    own_mounts = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    return subprocess.run(
        [*own_mounts, "sh", "-c", _READ_ONLY, str(folder), *command],
        env=TinyProject(root=folder).environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's mount namespaces")
@pytest.mark.slow
def test_reading_commands_on_a_read_only_folder_write_nothing(copy: TinyProject, tmp_path: Path) -> None:
    if _see_read_only(copy.root, "true").returncode != 0:
        pytest.skip("this user may not mount")
    shutil.rmtree(copy.experiment("tiny").folder.checkpoints / ".leases")  # as in a folder that nobody has read yet
    copy.write_experiment("other")
    for words in (
        ["status"],
        ["compare", "experiments/tiny.yaml", "experiments/other.yaml"],
        ["generate", "experiments/tiny.yaml", "--prompt", "Hello", "--max-new-tokens", "2"],
        ["export", "experiments/tiny.yaml", "--to", str(tmp_path / "exported")],
    ):
        ended = _see_read_only(copy.root, sys.executable, "-m", "gpt_pipeline", *words)
        assert ended.returncode == 0, ended.stdout
        assert "Read-only" not in ended.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a program that prints its arguments")
def test_torchrun_is_told_to_leave_no_folder_among_the_temporary_ones(tmp_path: Path, monkeypatch) -> None:
    from gpt_pipeline.orchestration.trainer_launch import _start

    log = tmp_path / "trainer.log"
    monkeypatch.setattr(sys, "executable", shutil.which("echo"))
    _start(tmp_path / "job.json", log, processes=2, environment={}).wait()
    assert f" --log-dir={os.devnull} -m " in log.read_text(encoding="utf-8")

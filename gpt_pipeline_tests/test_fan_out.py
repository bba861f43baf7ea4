"""The data stages on Dagster's multiprocess executor: each source file seen, retried and done again alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import gpt_pipeline
from gpt_pipeline.data import stage
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.driver import Session
from gpt_pipeline.orchestration.history import open_instance
from gpt_pipeline.project import Project
from gpt_pipeline_tests import fan_out_jobs
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.ray_cluster import ray_cluster
from gpt_pipeline_tests.synth_rows import write_folder
from gpt_pipeline_tests.test_parts import bytes_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project whose three source files of 40 English rows each are all needed."""
    project = TinyProject(root=tmp_path)
    write_folder(tmp_path / "synth", 50, 50, 50)
    path = project.write_experiment("fan", num_samples=100)
    path.write_text(path.read_text().replace("source: sample", "local_dataset_path: ../synth"))
    monkeypatch.chdir(tmp_path)  # Dagster's history lies below the working directory
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return project


@pytest.fixture
def instance(project: TinyProject) -> Iterator[dg.DagsterInstance]:
    here = Project.of_experiments(project.root / "experiments")
    shutil.copyfile(
        Path(gpt_pipeline.__file__).parent / "orchestration" / "dagster.yaml", project.root / "dagster.yaml"
    )
    with open_instance(here) as instance:
        yield instance


def execute(project: TinyProject, instance: dg.DagsterInstance, *more: str, **environment: str) -> dg.DagsterRun:
    """Run the data job in worker processes, from the failure of the run in `more` if there is one."""
    done = subprocess.run(
        [sys.executable, "-m", fan_out_jobs.__name__, "data_fan", *more],
        cwd=project.root,
        env={**project.environment, "PYTHONPATH": str(Path(__file__).parent.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = instance.get_run_by_id(done.stdout.split()[-1])
    assert run is not None
    return run


_DIGEST = re.compile(r"(?<=[a-z])_[0-9a-f]{6}(?=\.)")


def steps(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType) -> list[str]:
    records = instance.get_records_for_run(run.run_id, of_type=kind).records
    events = [record.event_log_entry.dagster_event for record in records]
    return [_DIGEST.sub("", event.step_key) for event in events if event and event.step_key]


def undisturbed(project: TinyProject) -> dict[str, bytes]:
    """What one process leaves of the same data."""
    experiment = load_experiment(project.root / "experiments" / "fan.yaml")
    folder = project.root / "undisturbed"
    raw = prepare_raw(experiment.data, folder)
    prepare_shards(experiment.data, prepare_documents(experiment.data, raw, folder), folder)
    return bytes_of(folder)


def test_fan_out_force_makes_the_parts_and_the_stages_anew(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "UNIT_BYTES", 1)
    experiment, here = project.experiment("fan"), Project.of_experiments(project.root / "experiments")
    data, folder = experiment.data, experiment.data_folder
    prepare_shards(data, prepare_documents(data, prepare_raw(data, folder), folder), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    job = build_definitions(here).resolve_job_def("data_fan")
    forced = {"ops": {node.name: {"config": {"force": True}} for node in job.graph.nodes}}
    assert job.execute_in_process(run_config=forced, instance=dg.DagsterInstance.ephemeral()).success
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())


@pytest.mark.slow
def test_fan_out_damaged_file_fails_alone_and_is_done_again_alone(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    path = project.root / "synth" / "synth_002.parquet"
    content = path.read_bytes()
    path.write_bytes(b"<html>not here</html>")
    failed = execute(project, instance)
    assert failed.status == dg.DagsterRunStatus.FAILURE
    assert steps(instance, failed, dg.DagsterEventType.STEP_FAILURE) == ["raw_synth.check_file[synth_002]"]
    done = steps(instance, failed, dg.DagsterEventType.STEP_SUCCESS)
    assert "raw_synth.check_file[synth_001]" in done
    path.write_bytes(content)
    again = execute(project, instance, failed.run_id)
    assert again.status == dg.DagsterRunStatus.SUCCESS
    done = steps(instance, again, dg.DagsterEventType.STEP_SUCCESS)
    assert "raw_synth.check_file[synth_002]" in done
    assert "raw_synth.check_file[synth_001]" not in done
    assert "token_shards.tokenize_file[synth_003]" in done
    assert bytes_of(project.root / "storage" / "data") == undisturbed(project)


@pytest.mark.slow
def test_fan_out_goes_on_from_the_failure_of_a_command_that_worked_in_its_own_process(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    path = project.root / "synth" / "synth_001.parquet"
    content = path.read_bytes()
    path.write_bytes(b"<html>not here</html>")
    here = Project.of_experiments(project.root / "experiments")
    with Session.open(here, project.experiment("fan"), say=print) as session, pytest.raises(UserError, match=path.name):
        session.execute("data_fan")
    (failed,) = instance.get_runs()
    path.write_bytes(content)
    again = execute(project, instance, failed.run_id)
    assert again.status == dg.DagsterRunStatus.SUCCESS
    assert "raw_synth.plan" not in steps(instance, again, dg.DagsterEventType.STEP_SUCCESS)
    assert bytes_of(project.root / "storage" / "data") == undisturbed(project)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process by signal")
def test_fan_out_killed_worker_is_tried_again_and_the_result_is_the_same(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    marker = project.root / "killed"
    run = execute(project, instance, **{fan_out_jobs.KILL_ONCE: str(marker)})
    assert marker.exists()
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert steps(instance, run, dg.DagsterEventType.STEP_RESTARTED) == ["token_shards.tokenize_file[synth_002]"]
    assert bytes_of(project.root / "storage" / "data") == undisturbed(project)


@pytest.mark.slow
def test_fan_out_on_rays_executor_is_a_job_of_the_cluster_for_each_file(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    with ray_cluster(nodes=2) as cluster:
        ray = {
            "address": cluster.address,
            "num_cpus": 1,
            "env_vars": [f"GPT_PIPELINE_EXPERIMENTS={project.root / 'experiments'}"],
        }
        executor = {"executor": "ray", "config": {"ray": ray, "max_concurrent": 2}}
        (project.root / "executor.yaml").write_text(json.dumps(executor))
        run = execute(project, instance)
        deadline = time.monotonic() + 60
        # A step is done before its process, and with it its job, has ended.
        while "RUNNING" in (jobs := cluster.jobs()).values() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert len(jobs) == len(steps(instance, run, dg.DagsterEventType.STEP_SUCCESS))
    assert set(jobs.values()) == {"SUCCEEDED"}
    assert bytes_of(project.root / "storage" / "data") == undisturbed(project)

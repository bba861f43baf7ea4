"""Manifests for Kubernetes, against the models of its official client. No cluster has run them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from gpt_pipeline.cli.main import command as gpt_pipeline
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.launchers.kubernetes import Cluster, as_yaml, manifests
from gpt_pipeline.launchers.protocol import TrainingCommand
from gpt_pipeline.launchers.submission import OtherJobError, read_submission
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_ray_jobs import Dashboard
from gpt_pipeline_tests.test_submission import note_of_job

kubernetes = pytest.importorskip("kubernetes.client", reason="needs the client of Kubernetes: pip install kubernetes")


def rendered(*, nodes: int = 2, gpus: int = 8, base: Path = Path("/data/my gpt")) -> list[dict[str, Any]]:
    folder = base / "idea"
    command = TrainingCommand(
        name="gpt-idea-aaaaaaaaaaaa",
        job_file=folder / "job.json",
        log_file=folder / "x.log",
        nodes=nodes,
        processes=max(1, gpus),
        python="python",
    )
    text = as_yaml(manifests(command, Cluster(image="me/gpt:1", claim="gpt", base_folder=base, gpus=gpus)))
    return list(YAML(typ="safe").load_all(text))


def without_empty(value: Any) -> Any:
    """Return the value without what the client leaves out."""
    if isinstance(value, dict):
        return {name: without_empty(each) for name, each in value.items() if each not in ([], {}, None)}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("number", "model"), [(0, "V1Service"), (1, "V1Job")])
@pytest.mark.parametrize("gpus", [0, 8])
def test_manifest_has_only_keys_that_kubernetes_knows_with_values_of_their_type(
    number: int, model: str, gpus: int
) -> None:
    manifest = rendered(gpus=gpus)[number]
    client = kubernetes.ApiClient()

    read = client.deserialize(json.dumps(manifest), model, "application/json")

    assert without_empty(client.sanitize_for_serialization(read)) == without_empty(manifest)


def test_pods_meet_at_the_first_by_the_name_that_the_service_gives_it() -> None:
    service, job = rendered()
    pod = job["spec"]["template"]["spec"]
    [trainer] = pod["containers"]

    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--rdzv-endpoint={name}-0.{name}:{service['spec']['ports'][0]['port']}" in trainer["command"]
    assert "--nnodes=2" in trainer["command"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2


def test_pods_have_the_folder_at_the_path_that_the_jobs_file_names_and_time_to_save() -> None:
    pod = rendered()[1]["spec"]["template"]["spec"]
    [trainer] = pod["containers"]

    assert {"name": "folder", "mountPath": "/data/my gpt"} in trainer["volumeMounts"]
    assert trainer["command"][-1] == "/data/my gpt/idea/job.json"
    assert trainer["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert pod["terminationGracePeriodSeconds"] > 100


def test_launch_renders_the_training_of_an_experiment_whose_data_is_made(copy: TinyProject) -> None:
    file = copy.root / "experiments" / "tiny.yaml"
    result = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--render", "kubernetes", "--nodes", "2"])

    assert result.exit_code == 0, result.output
    job = list(YAML(typ="safe").load_all(result.stdout))[1]
    assert job["spec"]["completions"] == 2
    [trainer] = job["spec"]["template"]["spec"]["containers"]
    job_file = Path(trainer["command"][-1])
    assert job_file == load_experiment(file).folder.job
    assert job_file.is_file()


def test_launch_renders_a_batch_script(copy: TinyProject) -> None:
    file = copy.root / "experiments" / "tiny.yaml"
    result = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--render", "slurm"])

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=gpt-tiny-")


def test_launch_writes_no_job_file_under_a_job_that_waits_to_read_it(copy: TinyProject) -> None:
    file = copy.root / "experiments" / "tiny.yaml"
    folder = load_experiment(file).folder
    ray = Dashboard()
    note = note_of_job(where=ray.address)
    ray.jobs[note.name] = {"status": "PENDING"}
    write_json(folder.launch, dataclasses.asdict(note))
    folder.job.write_text("of the job")

    refused = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--render", "slurm"])
    stopped = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--stop"])
    again = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--stop"])
    ray.server.shutdown()

    assert isinstance(refused.exception, OtherJobError)
    assert folder.job.read_text() == "of the job"
    assert f"ray job {note.name} was asked to end" in stopped.stderr
    assert "No job of tiny.yaml is at work." in again.stderr
    seen = read_submission(folder)
    assert seen is not None
    assert seen.state == "cancelled"


def test_launch_without_the_data_says_what_to_make(tmp_path: Path) -> None:
    file = TinyProject(root=tmp_path).write_experiment("tiny")
    result = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--render", "slurm"])

    assert result.exit_code != 0
    assert "materialize token_shards first" in str(result.exception)


def test_launch_stop_without_a_job_says_so(copy: TinyProject) -> None:
    file = copy.root / "experiments" / "tiny.yaml"
    result = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--stop"])

    assert result.exit_code == 0
    assert "No job of tiny.yaml is at work." in result.stderr

"""Trainings on a real Ray cluster: two nodes, each with one processor and so one trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import BEST_NAME, list_checkpoints
from gpt_pipeline.launchers.config import RayConfig
from gpt_pipeline.launchers.protocol import ALIVE, Observed, TrainingCommand
from gpt_pipeline.launchers.ray_jobs import RayJobs
from gpt_pipeline.launchers.submission import Submission, ensure_submitted
from gpt_pipeline.training.heartbeat import read_heartbeat
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.ray_cluster import RayCluster, ray_cluster
from gpt_pipeline_tests.servers import descendants, wait
from gpt_pipeline_tests.training_jobs import make_job, trainer_command

pytest.importorskip("ray", reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_SECONDS = 180.0
_STEPS = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


def two_processes(folder: Path) -> TrainingJob:
    return make_job(folder, training={"micro_batch_size": 1, "max_steps": _STEPS})


def start(cluster: RayCluster, job: TrainingJob, name: str, *, nodes: int = 2) -> RayJobs:
    """Submit the job; return what asks the cluster of it."""
    job.write(job.folder.job)
    ray = RayJobs(RayConfig(address=cluster.address))
    log = job.folder.root / f"{name}.log"
    ray.submit(TrainingCommand(name=name, job_file=job.folder.job, log_file=log, nodes=nodes, processes=1))
    return ray


def end_of(ray: RayJobs, name: str) -> Observed:
    wait(lambda: ray.state(name).state not in ALIVE, seconds=_SECONDS, what=f"the end of {name}")
    return ray.state(name)


def wait_for_step(job: TrainingJob, step: int) -> None:
    wait(lambda: any(each.step >= step for each in list_checkpoints(job.folder.checkpoints)), seconds=_SECONDS, what="")


def at_work(cluster: RayCluster, folder: Path, name: str) -> tuple[TrainingJob, RayJobs]:
    """Start a training of two processes on two nodes; return when it has a checkpoint."""
    job = two_processes(folder)
    ray = start(cluster, job, name)
    wait_for_step(job, 4)
    return job, ray


def assert_goes_on(cluster: RayCluster, job: TrainingJob, name: str, local: dict) -> None:
    """Assert that the next job of the training ends with the weights of one that nobody interrupted."""
    assert end_of(start(cluster, job, name), name).state == "succeeded"
    assert_same(weights(job), local)


def weights(job: TrainingJob) -> dict:
    return dict(load_checkpoint(list_checkpoints(job.folder.checkpoints)[-1].path).model)


def trainers(job: TrainingJob) -> list[int]:
    """The trainers of the job, by Linux's `/proc`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "gpt_pipeline.training" in words and str(job.folder.job) in words and "torch.distributed.run" not in words:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The weights that two processes of this machine come to without an interruption."""
    job = two_processes(tmp_path_factory.mktemp("local"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, *trainer_command(job)[1:]], check=True, capture_output=True)
    return weights(job)


def stopped_in_order(job: TrainingJob) -> bool:
    """Whether the trainer has saved at the step at which it was asked to stop, and said so."""
    return any(record.get("event") == "stopped" for record in read_metrics(job.folder.metrics))


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.equal(ours[name]), name


def test_two_nodes_come_to_the_same_bits_as_two_local_processes(
    cluster: RayCluster, tmp_path: Path, local: dict
) -> None:
    job = two_processes(tmp_path)
    ray = start(cluster, job, "same-1")
    assert end_of(ray, "same-1") == Observed(state="succeeded", exit_code=0)
    assert_same(weights(job), local)
    start(cluster, job, "same-1")
    assert ray.state("same-1").state == "succeeded"  # and was not begun anew


def test_cancelled_job_saves_and_the_next_one_continues_to_the_same_bits(
    cluster: RayCluster, tmp_path: Path, local: dict
) -> None:
    job, ray = at_work(cluster, tmp_path, "cancel-1")
    ray.cancel("cancel-1")
    assert end_of(ray, "cancel-1").state == "cancelled"
    assert stopped_in_order(job)
    assert_goes_on(cluster, job, "cancel-2", local)


def test_killed_driver_takes_its_trainers_along_which_save_before(
    cluster: RayCluster, tmp_path: Path, local: dict
) -> None:
    job, ray = at_work(cluster, tmp_path, "driver-1")
    os.kill(cluster.driver("driver-1"), signal.SIGKILL)
    assert end_of(ray, "driver-1").state == "timed_out"
    wait(lambda: not trainers(job), seconds=_SECONDS, what="the trainers' end")
    assert stopped_in_order(job)
    assert_goes_on(cluster, job, "driver-2", local)


def test_killed_trainer_fails_the_job_with_its_last_words_in_the_log(
    cluster: RayCluster, tmp_path: Path, local: dict
) -> None:
    job, ray = at_work(cluster, tmp_path, "trainer-1")
    first = read_heartbeat(job.folder.root)
    assert first is not None
    [other] = set(trainers(job)) - {first.process.pid}
    os.kill(other, signal.SIGKILL)
    seen = end_of(ray, "trainer-1")
    assert (seen.state, seen.exit_code) == ("failed", 1)
    assert "exit code 1" in seen.reason
    assert not trainers(job)
    assert "Signal 9 (SIGKILL)" in (job.folder.root / "trainer-1.log").read_text()
    assert_goes_on(cluster, job, "trainer-2", local)


def test_waiting_job_that_is_cancelled_never_starts(cluster: RayCluster, tmp_path: Path) -> None:
    job = two_processes(tmp_path)
    ray = start(cluster, job, "waits", nodes=3)
    wait(lambda: "for 3 nodes" in ray.state("waits").reason, seconds=_SECONDS, what="the job's wait")
    ray.cancel("waits")
    assert end_of(ray, "waits").state == "cancelled"
    assert not job.folder.metrics.exists()


def test_node_that_does_not_see_the_folder_fails_the_job_and_is_told_why(cluster: RayCluster, tmp_path: Path) -> None:
    ray = RayJobs(RayConfig(address=cluster.address))
    elsewhere = tmp_path / "elsewhere"
    ray.submit(
        TrainingCommand(name="blind", job_file=elsewhere / "job.json", log_file=elsewhere / "log", nodes=1, processes=1)
    )
    seen = end_of(ray, "blind")
    assert seen.state == "failed"
    assert "No such file" in seen.reason
    assert f"all nodes need gpt_pipeline, and {elsewhere} at the same path" in seen.reason


def ray_project(root: Path, cluster: RayCluster, *, max_steps: int, save_every: int = 4) -> TinyProject:
    """A project with one training, `tiny`, on two nodes of the cluster, and `local`, the same on this machine."""
    project = TinyProject(root=root)
    places = {"tiny": f"launcher: ray, ray: {{address: '{cluster.address}', nodes: 2}}", "local": "num_gpus: 2"}
    for name, place in places.items():
        path = project.write_experiment(name, max_steps=max_steps)
        text = path.read_text().replace("device: cpu", f"device: cpu, {place}")
        path.write_text(text.replace("save_every_n_iterations: 4", f"save_every_n_iterations: {save_every}"))
    return project


def begun(cluster: RayCluster, project: TinyProject) -> tuple[subprocess.Popen[str], str]:
    """Run `tiny` until its training has a checkpoint; return the run, and its job's name."""
    before = set(cluster.jobs())
    run = project.start("run", "experiments/tiny.yaml", start_new_session=True)
    wait(lambda: bool(project.checkpoints("tiny")), seconds=_SECONDS, what="a checkpoint")
    [job] = set(cluster.jobs()) - before
    return run, job


def last_weights(project: TinyProject, stem: str) -> str:
    return project.checkpoints(stem)[-1].weights_sha256


def test_run_of_an_experiment_on_ray_is_as_on_one_machine(cluster: RayCluster, tmp_path: Path) -> None:
    project = ray_project(tmp_path, cluster, max_steps=12)
    before = set(cluster.jobs())
    done = project.run("run", "experiments/tiny.yaml")
    [job] = set(cluster.jobs()) - before
    assert f"Submitted ray job {job}" in done
    assert "training     finished at step 12" in done
    kept = [each for each in project.checkpoints("tiny") if each.path.name != BEST_NAME]
    assert [each.step for each in kept] == [4, 8, 12]
    assert len(list(project.experiment("tiny").folder.evaluations.glob("step_*.json"))) == 3
    assert "Nothing to do" in project.run("run", "experiments/tiny.yaml")
    project.run("run", "experiments/local.yaml")
    assert last_weights(project, "tiny") == last_weights(project, "local")


def test_run_that_is_stopped_on_ray_saves_and_the_next_run_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    project = ray_project(tmp_path, cluster, max_steps=2000, save_every=20)
    run, job = begun(cluster, project)
    # As the run last heard of it, which asks every ten seconds.
    running = f"ray job {job}, running on"
    wait(lambda: running in project.run("status", "experiments/tiny.yaml"), seconds=_SECONDS, what=running)
    os.killpg(run.pid, signal.SIGINT)
    said = output_of(run)
    saved = project.checkpoints("tiny")[-1]
    assert f"Stopped; {saved.path.name} is saved" in said
    assert saved.step < 2000
    assert cluster.jobs()[job] == "STOPPED"


def test_killed_run_leaves_its_job_at_work_and_the_next_run_finds_it(cluster: RayCluster, tmp_path: Path) -> None:
    project = ray_project(tmp_path, cluster, max_steps=300, save_every=50)
    run, job = begun(cluster, project)
    jobs = set(cluster.jobs())
    for pid in [run.pid, *descendants(run.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    output_of(run)
    assert cluster.jobs()[job] == "RUNNING"
    done = project.run("run", "experiments/tiny.yaml")
    assert f"Found ray job {job}" in done
    assert "training     finished at step 300" in done
    assert set(cluster.jobs()) == jobs


def test_job_that_nobody_follows_is_stopped_by_launch_and_status_no_longer_calls_it_running(
    cluster: RayCluster, tmp_path: Path
) -> None:
    project = ray_project(tmp_path, cluster, max_steps=2000, save_every=20)
    run, job = begun(cluster, project)
    for pid in [run.pid, *descendants(run.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    output_of(run)
    assert f"ray job {job} has ended: cancelled" in project.run("launch", "experiments/tiny.yaml", "--stop")
    said = project.run("status", "experiments/tiny.yaml")
    assert f"stopped at step {project.checkpoints('tiny')[-1].step}" in said
    assert job not in said


def test_note_without_an_id_leads_to_the_job_that_ray_has(cluster: RayCluster, tmp_path: Path) -> None:
    """As when the process was killed between Ray's answer and the note."""
    job = two_processes(tmp_path)
    job.write(job.folder.job)
    ray = RayJobs(RayConfig(address=cluster.address))

    def submitted() -> Submission:
        return ensure_submitted(
            job.folder,
            ray,
            fingerprint=job.fingerprint,
            request="",
            saved=lambda: -1,
            command=lambda note: TrainingCommand(
                name=note.name, job_file=job.folder.job, log_file=job.folder.root / note.log, nodes=9, processes=1
            ),
            say=print,
        )

    before = set(cluster.jobs())
    first = submitted()
    job.folder.launch.write_text(json.dumps({**json.loads(job.folder.launch.read_text()), "id": None}))
    assert submitted().id == first.id
    assert set(cluster.jobs()) - before == {first.id}
    ray.cancel(first.name)
    assert end_of(ray, first.name).state == "cancelled"


def test_lost_node_is_no_fault_of_the_trainer_and_the_next_job_waits_for_another(
    cluster: RayCluster, tmp_path: Path, local: dict
) -> None:
    job, ray = at_work(cluster, tmp_path, "node-1")
    cluster.lose_node()
    assert end_of(ray, "node-1").state == "timed_out"
    ray = start(cluster, job, "node-2")
    wait(lambda: "for 2 nodes" in ray.state("node-2").reason, seconds=_SECONDS, what="the job's wait")
    assert ray.state("node-2").state == "waiting"
    cluster.add_node()
    assert end_of(ray, "node-2").state == "succeeded"
    assert_same(weights(job), local)

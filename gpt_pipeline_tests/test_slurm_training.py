"""Trainings on a real Slurm of two nodes: whatever happens on the way, the weights are those of this machine alone.

One machine plays both nodes, so nothing is said of networks and shared disks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.launchers import submission
from gpt_pipeline.launchers.config import SlurmConfig
from gpt_pipeline.launchers.protocol import TrainingCommand, UnreachableError
from gpt_pipeline.launchers.slurm import Slurm
from gpt_pipeline.launchers.submission import read_submission
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline_tests import login_node
from gpt_pipeline_tests.gate import Gate
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import descendants
from gpt_pipeline_tests.slurm_cluster import SlurmCluster, slurm_cluster, why_not
from gpt_pipeline_tests.training_jobs import make_job, trainer_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=f"a real Slurm {why_not()}"),
]
STEPS, GATE = 60, 25
LONG = 100_000
_WAIT_SECONDS = 240.0


@pytest.fixture(scope="module")
def running() -> Iterator[SlurmCluster]:
    # pytest's own folders have names too long for a socket
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def job_in(folder: Path, *, steps: int = STEPS, save_every: int = 20, **slurm: Any) -> TrainingJob:
    hardware = HardwareConfig(device="cpu", launcher="slurm", slurm=SlurmConfig(**{"nodes": 2, **slurm}))
    cadence = {"save_every_n_iterations": save_every, "eval_freq": save_every}
    return make_job(folder, training={"max_steps": steps}, cadence=cadence, hardware=hardware)


@pytest.fixture(scope="module")
def local_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights that two processes on this machine end with."""
    job = job_in(tmp_path_factory.mktemp("local"))
    interpreter, *trainer = trainer_command(job)
    torchrun = [interpreter, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *trainer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(torchrun, env=environment, check=True, capture_output=True, timeout=240)
    return weights_of(job)


def weights_of(job: TrainingJob) -> str:
    newest = list_checkpoints(job.folder.checkpoints)[-1]
    assert newest.step == job.training.max_steps
    return newest.weights_sha256


class Follower:
    """A process that follows a job as the step does."""

    def __init__(self, job: TrainingJob, folder: Path, *, silent: float = 120.0) -> None:
        self.job = job
        self._out = folder / f"follower-{time.monotonic_ns()}.jsonl"
        file = folder / "wanted.json"
        job.write(file)
        command = [sys.executable, "-m", "gpt_pipeline_tests.remote_follower", str(file), str(self._out), str(silent)]
        self.process = subprocess.Popen(command)

    def lines(self, kind: str) -> list[Any]:
        """Return what it told so far of one kind."""
        if not self._out.exists():
            return []
        values = [json.loads(line) for line in self._out.read_text().splitlines()]
        return [value[kind] for value in values if kind in value]

    def trains(self) -> None:
        """Wait until its training has begun."""
        wait(lambda: any(each["kind"] == "train" for each in read_metrics(self.job.folder.metrics)), "no training")

    def end(self) -> str:
        """Wait for it; return how it ended."""
        self.process.wait(_WAIT_SECONDS)
        return self.lines("end")[-1]

    @property
    def note(self) -> submission.Submission:
        """Of the job that it follows."""
        found = read_submission(self.job.folder)
        assert found is not None
        return found


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Where each process of a training waits, between its first checkpoint and the second, until it may go on."""
    gate = Gate(tmp_path, step=GATE)
    for name, value in gate.variables.items():
        monkeypatch.setenv(name, value)
    return gate


@pytest.fixture
def follow(cluster: SlurmCluster, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    started: list[Follower] = []

    def start(job: TrainingJob, **options: Any) -> Follower:
        started.append(Follower(job, tmp_path, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
    for each in cluster.ask("squeue", "--noheader", "--format=%A").split():
        cluster.ask("scancel", each)
    wait(lambda: not cluster.ask("squeue", "--noheader", "--format=%A"), "jobs do not end")


def wait(ready: Callable[[], bool], problem: str) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while not ready():
        assert time.monotonic() < until, problem
        time.sleep(0.1)


def trainers_of(job: TrainingJob) -> list[int]:
    """Return the processes that train `job`, without the torchruns that started them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if str(job.folder.job) in words and "torch.distributed.run" not in words and "trainer" not in words:
                found.append(int(folder.name))
    return found


def test_training_on_two_nodes_gives_the_weights_of_two_processes_here(
    follow: Callable[..., Follower], tmp_path: Path, local_weights: str
) -> None:
    folder = tmp_path / 'it\'s $(touch pwned) 100% "x"; touch pwned'
    folder.mkdir()
    job = job_in(folder, options=("--comment=it's; touch pwned",))

    follower = follow(job)

    assert follower.end() == "in order"
    assert weights_of(job) == local_weights
    told = [each["checkpoint"]["step"] for each in follower.lines("message") if each["kind"] == "checkpoint"]
    assert told == [20, 40, 60]
    assert any("Training reached its last step" in each.get("text", "") for each in follower.lines("message"))
    assert follower.lines("job") == [follower.note.in_words]
    assert (follower.note.state, follower.note.attempt) == ("succeeded", 1)
    assert not list(tmp_path.rglob("pwned"))


@pytest.fixture
def login(cluster: SlurmCluster, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a login node, from which alone Slurm can be reached, and whose environment its jobs have."""
    if lacking := login_node.why_not():
        pytest.skip(f"a real sshd {lacking}")
    folder = tmp_path / "login"
    folder.mkdir()
    variables = {**cluster.environment, **gate.variables, "OMP_NUM_THREADS": "1"}  # as here: threads change the bits
    with login_node.login_node(folder, environment=variables) as commands:
        monkeypatch.delenv("SLURM_CONF")
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        yield login_node.HOST


def test_training_through_ssh_is_stopped_with_a_checkpoint_and_goes_on_to_the_same_weights(
    follow: Callable[..., Follower], gate: Gate, login: str, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path, ssh=login)
    follower = follow(job)
    gate.wait(follower.process)
    follower.process.send_signal(signal.SIGTERM)

    assert follower.end() == "stopped"
    assert follower.note.where == login
    assert list_checkpoints(job.folder.checkpoints)[-1].step == GATE
    gate.open()
    assert follow(job).end() == "in order"
    assert weights_of(job) == local_weights


def test_login_node_is_checked_and_one_that_lets_nobody_in_is_told_with_the_remedy(login: str, tmp_path: Path) -> None:
    slurm = Slurm(SlurmConfig(ssh=login))
    assert "partition main of 2 nodes" in slurm.check()

    for file, words in (("authorized", r"Permission denied"), ("known", "Host key verification failed")):
        content = (tmp_path / "login" / file).read_text()
        (tmp_path / "login" / file).write_text("")
        with pytest.raises(UnreachableError, match=rf"{words}.*`ssh login true` has to work here without a question"):
            slurm.check()
        (tmp_path / "login" / file).write_text(content)


def test_training_stopped_and_started_again_saves_and_goes_on_to_the_same_weights(
    follow: Callable[..., Follower], gate: Gate, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path)
    follower = follow(job)
    gate.wait(follower.process)

    follower.process.send_signal(signal.SIGTERM)

    assert follower.end() == "stopped"
    assert list_checkpoints(job.folder.checkpoints)[-1].step == GATE
    assert follower.note.state == "cancelled"
    gate.open()
    assert follow(job).end() == "in order"
    assert weights_of(job) == local_weights


def test_training_whose_follower_is_killed_goes_on_and_is_found_again(
    follow: Callable[..., Follower], gate: Gate, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path)
    first = follow(job)
    gate.wait(first.process)
    first.process.kill()
    first.process.wait()

    second = follow(job)
    wait(lambda: bool(second.lines("said")), "it says nothing")
    gate.open()

    assert second.end() == "in order"
    assert any("Found slurm job" in each for each in second.lines("said"))
    assert second.note.attempt == 1
    assert weights_of(job) == local_weights


def test_training_whose_trainer_is_killed_fails_and_goes_on_when_asked_again(
    follow: Callable[..., Follower], gate: Gate, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path)
    follower = follow(job)
    gate.wait(follower.process)
    os.kill(trainers_of(job)[0], signal.SIGKILL)

    assert "Materialize training again: it continues from the last checkpoint." in follower.end()

    gate.open()
    again = follow(job)
    assert again.end() == "in order"
    assert again.note.attempt == 2
    assert weights_of(job) == local_weights


def test_training_that_cannot_be_done_fails_in_the_trainers_own_words(
    follow: Callable[..., Follower], tmp_path: Path
) -> None:
    job = job_in(tmp_path)
    (Path(job.shards_folder) / "train_000001.bin").unlink()

    assert "train_000001.bin" in follow(job).end()


def test_training_that_is_silent_is_ended_and_submitted_again(
    follow: Callable[..., Follower], gate: Gate, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path)
    follower = follow(job, silent=25.0)
    gate.wait(follower.process)
    for pid in trainers_of(job):
        os.kill(pid, signal.SIGSTOP)
    gate.open()

    assert follower.end() == "in order"
    assert any("gave no sign of life" in each for each in follower.lines("said"))
    assert (follower.note.attempt, follower.note.lost) == (2, 0)
    assert weights_of(job) == local_weights


def test_training_at_its_time_limit_saves_and_goes_back_into_the_queue(
    follow: Callable[..., Follower], tmp_path: Path
) -> None:
    # Slurm counts the limit in minutes, and may give the warning one minute early: here, after one or two.
    job = job_in(tmp_path, steps=LONG, save_every=LONG, time="3", warning_seconds=60)
    follower = follow(job)
    follower.trains()
    first = follower.note.id

    def starts() -> int:
        return sum(record.get("event") in ("started", "resumed") for record in read_metrics(job.folder.metrics))

    wait(lambda: starts() == 2, "the job does not start again")

    follower.process.send_signal(signal.SIGTERM)
    assert follower.end() == "stopped"
    assert (follower.note.id, follower.note.attempt) == (first, 1)
    assert any("waiting (BeginTime)" in each for each in follower.lines("said"))


def test_training_goes_on_while_the_controller_does_not_answer(
    follow: Callable[..., Follower], gate: Gate, cluster: SlurmCluster, tmp_path: Path, local_weights: str
) -> None:
    job = job_in(tmp_path)
    follower = follow(job)
    gate.wait(follower.process)

    with cluster.controller_away():
        wait(lambda: any("the engine is asked again" in each for each in follower.lines("said")), "nothing is said")
    gate.open()

    assert follower.end() == "in order"
    assert any("The engine answers again" in each for each in follower.lines("said"))
    assert weights_of(job) == local_weights


def test_training_that_somebody_else_cancels_is_not_started_again(
    follow: Callable[..., Follower], cluster: SlurmCluster, tmp_path: Path
) -> None:
    follower = follow(job_in(tmp_path, steps=LONG))
    follower.trains()

    cluster.ask("scancel", follower.note.id or "")

    assert "was cancelled, and not by this run" in follower.end()


def sleeper(tmp_path: Path, name: str, *, seconds: int) -> TrainingCommand:
    """Return a job that does nothing but take time; `began` appears beside its `launch` once it does."""
    (tmp_path / "launch").mkdir(exist_ok=True, parents=True)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\ntouch '{tmp_path}/began'\nexec sleep {seconds}\n")
    python.chmod(0o755)
    log = tmp_path / "launch" / f"{name}.log"
    return TrainingCommand(
        name=name, job_file=tmp_path / "job.json", log_file=log, nodes=1, processes=1, python=str(python)
    )


def test_second_job_of_one_name_waits_for_the_end_of_the_first(cluster: SlurmCluster, tmp_path: Path) -> None:
    slurm, command = Slurm(SlurmConfig()), sleeper(tmp_path, "gpt-twice-1", seconds=8)
    first, second, third = (slurm.submit(command) for _ in range(3))

    wait(lambda: slurm.state(first).state == "running", "the first does not run")
    assert slurm.state(second).state == slurm.state(third).state == "waiting"
    slurm.cancel(third)
    assert slurm.state(third).state == "cancelled"
    wait(lambda: slurm.state(first).state == "succeeded", "the first does not end")
    wait(lambda: slurm.state(second).state in ("running", "succeeded"), "the second does not run")
    slurm.kill(second)


def test_job_killed_between_submission_and_note_is_found_by_its_name(cluster: SlurmCluster, tmp_path: Path) -> None:
    slurm, command = Slurm(SlurmConfig()), sleeper(tmp_path, "gpt-found-1", seconds=60)
    submitted = slurm.submit(command)

    assert slurm.find("gpt-found-1") == submitted
    slurm.cancel(submitted)
    wait(lambda: slurm.state(submitted).state not in ("waiting", "running"), "it does not end")
    assert slurm.find("gpt-found-1") == submitted  # one that has ended counts
    assert slurm.find("gpt-other-1") is None


def test_job_stopped_before_its_trainer_has_begun_ends(cluster: SlurmCluster, tmp_path: Path) -> None:
    slurm = Slurm(SlurmConfig(setup=(f'srun() {{ touch "{tmp_path}/asked"; sleep 3; command srun "$@"; }}',)))
    submitted = slurm.submit(sleeper(tmp_path, "gpt-early-1", seconds=60))
    wait((tmp_path / "asked").exists, "it does not begin")

    slurm.cancel(submitted)
    wait(lambda: slurm.state(submitted).state == "cancelled", "it does not end")


def test_job_of_another_name_is_neither_seen_nor_ended_by_its_number(cluster: SlurmCluster, tmp_path: Path) -> None:
    slurm = Slurm(SlurmConfig())
    submitted = slurm.submit(sleeper(tmp_path, "gpt-other-1", seconds=60))
    wait(lambda: slurm.state(submitted, name="gpt-other-1").state == "running", "it does not run")

    assert slurm.state(submitted, name="gpt-ours-1").state == "unknown"
    slurm.cancel(submitted, name="gpt-ours-1")
    slurm.kill(submitted, name="gpt-ours-1")
    time.sleep(3)
    assert slurm.state(submitted).state == "running"

    slurm.kill(submitted, name="gpt-other-1")
    wait(lambda: slurm.state(submitted).state == "cancelled", "it does not end")


RENAMING = """
function slurm_job_submit(job_desc, part_list, submit_uid)
  job_desc.name = "site job of " .. submit_uid
  return slurm.SUCCESS
end
function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""


def test_job_that_the_cluster_renames_is_found_watched_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(SlurmConfig())
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        slurm_cluster(Path(folder), job_submit=RENAMING) as cluster,
    ):
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        submitted = slurm.submit(sleeper(tmp_path / "my files", "gpt-ours-1", seconds=60))
        assert cluster.ask("squeue", "--noheader", "--format=%j") == f"site job of {os.geteuid()}"

        assert slurm.find("gpt-ours-1") == submitted
        assert slurm.find("gpt-ours-11") is None
        wait((tmp_path / "my files" / "began").exists, "it does not run")
        assert slurm.state(submitted, name="gpt-ours-1").state == "running"
        slurm.cancel(submitted, name="gpt-ours-1")
        wait(lambda: slurm.state(submitted, name="gpt-ours-1").state == "cancelled", "it does not end")
        assert slurm.find("gpt-ours-1") == submitted


def test_job_that_nobody_follows_is_stopped_by_launch_and_status_no_longer_calls_it_running(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    gate = Gate(tmp_path, step=6)
    project = TinyProject(root=tmp_path, variables={**cluster.environment, **gate.variables})
    file = project.write_experiment("tiny")
    file.write_text(file.read_text().replace("{device: cpu}", "{device: cpu, launcher: slurm, slurm: {nodes: 2}}"))
    command = project.start("run", str(file))
    gate.wait(command)
    for pid in [command.pid, *descendants(command.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    output_of(command)

    assert "has ended: cancelled" in project.run("launch", str(file), "--stop")
    said = project.run("status", str(file))
    assert "stopped at step 6" in said
    assert "slurm job" not in said


def test_command_line_trains_stops_and_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    gate = Gate(tmp_path, step=6)
    project = TinyProject(root=tmp_path, variables={**cluster.environment, **gate.variables})
    file = project.write_experiment("tiny")
    file.write_text(file.read_text().replace("{device: cpu}", "{device: cpu, launcher: slurm, slurm: {nodes: 2}}"))
    assert "as a slurm job on 2 nodes" in project.run("plan", str(file), expect=None)
    assert "partition main of 2 nodes" in project.run("doctor", str(file), "--offline", expect=None)

    command = project.start("run", str(file))
    gate.wait(command)
    # The run hears every ten seconds which nodes the job got.
    wait(lambda: ", running on node[1-2])" in project.run("status", str(file)), "status does not say where it runs")
    assert "running (slurm job" in project.run("status", str(file))
    command.send_signal(signal.SIGINT)
    output = output_of(command)
    assert command.returncode == 130, output
    assert "checkpoint_step_6.pt is saved, and the next run continues from it" in output
    assert "stopped at step 6" in project.run("status", str(file))

    gate.open()
    assert "Training continues after step 6 of 12" in project.run("run", str(file))
    assert [each.step for each in project.checkpoints("tiny")][-1] == 12

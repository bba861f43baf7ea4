"""What Slurm is asked, and how its answers are understood; no Slurm is needed. A real one: test_slurm_training.py."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.launchers.config import SlurmConfig
from gpt_pipeline.launchers.protocol import (
    SHUTDOWN_SECONDS,
    TORCHRUN_VARIABLES,
    LauncherError,
    TrainingCommand,
    UnreachableError,
)
from gpt_pipeline.launchers.slurm import Slurm
from gpt_pipeline.storage.atomic import write_text

needs_bash = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
NASTY = 'it\'s $(touch pwned) `touch pwned` "x"; touch pwned #'


def command_in(folder: Path, **changes: object) -> TrainingCommand:
    values = {"name": "gpt-x-1", "job_file": folder / "job.json", "log_file": folder / "launch" / "x.log"}
    return TrainingCommand(**{"nodes": 2, "processes": 4, **values, **changes})  # type: ignore[arg-type]


def options_of(script: str) -> list[str]:
    return [shlex.split(line.removeprefix("#SBATCH "))[0] for line in script.splitlines() if line.startswith("#SBATCH")]


def test_script_asks_for_what_the_file_names(tmp_path: Path) -> None:
    config = SlurmConfig(
        nodes=2, partition="gpu", account="me", time="1-12", options=("--mem=64G",), setup=("module load cuda",)
    )

    script = Slurm(config, gpus=4).script(command_in(tmp_path))

    options = options_of(script)
    assert {"--partition=gpu", "--account=me", "--time=1-12", "--mem=64G", "--gpus-per-node=4", "--nodes=2"} <= set(
        options
    )
    assert "\nmodule load cuda\n" in script
    assert "--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d" in script
    assert " --log-dir=/dev/null " in script  # else torchrun leaves a folder in /tmp


def test_script_has_torchrun_wait_for_the_save_without_an_option_that_older_ones_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Slurm(SlurmConfig()).script(command_in(tmp_path))
    [(name, seconds)] = TORCHRUN_VARIABLES.items()
    assert f"\nexport {name}={seconds}\n" in script
    assert "shutdown-timeout" not in script

    api = pytest.importorskip("torch.distributed.launcher.api")
    monkeypatch.setenv(name, seconds)
    config = api.LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    assert getattr(config, "shutdown_timeout", SHUTDOWN_SECONDS) == SHUTDOWN_SECONDS  # torch 2.11 has none


def test_script_without_gpus_asks_for_none(tmp_path: Path) -> None:
    assert not [
        each for each in options_of(Slurm(SlurmConfig()).script(command_in(tmp_path))) if each.startswith("--gpus")
    ]


def test_script_of_one_process_runs_the_trainer_itself(tmp_path: Path) -> None:
    script = Slurm(SlurmConfig(python="python")).script(command_in(tmp_path, nodes=1, processes=1))

    assert "python -m gpt_pipeline.training" in script
    assert "torch.distributed.run" not in script


FAKE_COMMANDS = {
    "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
    "scancel": "kill -TERM $(cat trainer.pids)",
    "squeue": "[ ! -e trainer.pids ] || echo 7.0",
    "scontrol": 'echo "$@" >> scontrol.asked',
}


def run_script(
    tmp_path: Path,
    trainer: str,
    *,
    folder: Path,
    commands_of_slurm: Mapping[str, str] = FAKE_COMMANDS,
    **config: object,
) -> subprocess.CompletedProcess[str]:
    """Run a batch script here, with stand-ins for Slurm's commands and `trainer` for the interpreter."""
    commands = tmp_path / "commands"
    for name, text in {**commands_of_slurm, "python": trainer}.items():
        write_text(commands / name, f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    slurm = Slurm(SlurmConfig(python=str(commands / "python"), **config))  # type: ignore[arg-type]
    script = slurm.script(command_in(folder, nodes=1, processes=1, environment={"GREETING": NASTY}))
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("key", ["partition", "account", "gpus_per_node", "folder"])
def test_script_with_a_line_break_in_an_option_is_refused_since_the_rest_would_be_shell(
    tmp_path: Path, key: str
) -> None:
    text = "gpu\ntouch pwned #"
    folder, config = (tmp_path / text, {}) if key == "folder" else (tmp_path, {key: text})
    with pytest.raises(LauncherError, match=r"touch pwned.*need an option of sbatch in one line"):
        Slurm(SlurmConfig(**config)).script(command_in(folder))


@needs_bash
def test_script_with_shell_in_every_name_runs_none_of_it(tmp_path: Path) -> None:
    folder = tmp_path / NASTY
    (folder / "checkpoints").mkdir(parents=True)

    done = run_script(tmp_path, 'printf "%s\\n" "$@" "$GREETING" > got', folder=folder)

    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("pwned"))
    assert (tmp_path / "got").read_text().splitlines() == [
        "-m",
        "gpt_pipeline.training",
        str(folder / "job.json"),
        NASTY,
    ]


@needs_bash
def test_script_has_each_node_meet_the_others_by_the_name_that_they_know_it_by(tmp_path: Path) -> None:
    done = run_script(tmp_path, 'echo "$PET_LOCAL_ADDR" > got', folder=tmp_path)  # torchrun's --local-addr

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got").read_text().strip() == socket.gethostname()


@needs_bash
@pytest.mark.parametrize(
    ("signal", "trap", "code", "requeued"),
    [("USR1", "", 124, True), ("USR1", "nothing", 124, False), ("USR2", "", 143, False), ("TERM", "", 124, False)],
)
def test_script_that_is_signalled_has_the_trainer_save_and_says_how_it_ended(
    tmp_path: Path, signal: str, trap: str, code: int, requeued: bool
) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    save = "" if trap else f"touch {folder}/checkpoints/checkpoint_step_1.json; "
    trainer = (
        f"mkdir -p {folder}/checkpoints; echo $$ $PPID > trainer.pids; trap '{save}exit 143' TERM\n"
        f"kill -{signal} $SCRIPT; for i in $(seq 200); do sleep 0.1; done"
    )

    done = run_script(tmp_path, trainer, folder=folder, setup=("export SCRIPT=$$",))

    assert done.returncode == code, done.stderr
    assert (tmp_path / "scontrol.asked").exists() == requeued


@needs_bash
@pytest.mark.parametrize(
    "squeue",
    [
        pytest.param("echo x >> asked; [ $(wc -l < asked) -lt 3 ] && echo 7.batch || echo 7.0", id="no step yet"),
        pytest.param("echo x >> asked; [ $(wc -l < asked) -ge 3 ] || exit 1; echo 7.0", id="fails at first"),
        pytest.param("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", id="fails"),
    ],
)
def test_script_stops_its_trainer_whatever_squeue_says(tmp_path: Path, squeue: str) -> None:
    trainer = (
        "echo $$ $PPID > trainer.pids; trap 'touch told; exit 143' TERM\n"
        "kill -USR2 $SCRIPT; for i in $(seq 400); do sleep 0.1; done"
    )

    done = run_script(
        tmp_path,
        trainer,
        folder=tmp_path,
        commands_of_slurm={**FAKE_COMMANDS, "squeue": squeue},
        setup=("export SCRIPT=$$",),
    )

    assert done.returncode == 143, done.stderr
    assert (tmp_path / "told").exists()


@needs_bash
def test_script_of_a_trainer_that_fails_ends_with_its_exit_code(tmp_path: Path) -> None:
    assert run_script(tmp_path, "exit 2", folder=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"time": "soon"}, "time: found 'soon', need minutes"),
        ({"time": "2"}, "time: found '2', need a time above warning_seconds=120"),
        ({"time": "0:01:59"}, "need a time above warning_seconds=120"),
        ({"time": "0-1", "warning_seconds": 3600}, "need a time above warning_seconds=3600"),
        ({"ssh": "-oProxyCommand=x"}, "ssh: found '-oProxyCommand=x', need host or user@host"),
        ({"ssh": "-Fown@login"}, "ssh: found '-Fown@login', need host or user@host"),
        ({"options": ("-p gpu",)}, "options: found '-p gpu', need an option of sbatch in its long form"),
        ({"options": ("--partition=gpu",)}, "use hardware.slurm.partition"),
        ({"options": ("--job-name=x",)}, "need an option that the pipeline does not set itself; remove it"),
        ({"nodes": 0}, "nodes: found 0"),
    ],
)
def test_slurm_block_that_cannot_be_used_is_refused_with_the_remedy(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        SlurmConfig(**keys)  # type: ignore[arg-type]

    assert words in str(error.value)


@pytest.mark.parametrize("time", ["0", "2:01", "3", "0:02:01", "0-0:3", "1-0"])
def test_slurm_block_with_a_time_above_the_warning_or_without_a_limit_is_taken(time: str) -> None:
    assert SlurmConfig(time=time).time == time


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Put stand-ins for Slurm's commands on the path, and nothing else of it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in commands.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


@needs_bash
@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        ("JobId=7 JobState=PENDING Reason=Resources NodeList=(null) ExitCode=0:0", "waiting", "Resources"),
        ("JobId=7 JobState=RUNNING Reason=None NodeList=node[1-2] ExitCode=0:0", "running", "node[1-2]"),
        ("JobId=7 JobState=COMPLETED Reason=None NodeList=node1 ExitCode=0:0", "succeeded", "COMPLETED, on node1"),
        ("JobId=7 JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0", "failed", "FAILED, NonZeroExitCode"),
        ("JobId=7 JobState=FAILED Reason=NonZeroExitCode ExitCode=124:0", "timed_out", "FAILED, NonZeroExitCode"),
        ("JobId=7 JobState=FAILED Reason=NonZeroExitCode ExitCode=143:0", "cancelled", "FAILED, NonZeroExitCode"),
        ("JobId=7 JobState=FAILED Reason=JobLaunchFailure ExitCode=0:12", "cancelled", "FAILED, JobLaunchFailure"),
        ("JobId=7 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15", "timed_out", "TIMEOUT, TimeLimit"),
        ("JobId=7 JobState=NODE_FAIL Reason=NodeDown ExitCode=0:0", "timed_out", "NODE_FAIL, NodeDown"),
        ("JobId=7 JobState=SUSPENDED Reason=None ExitCode=0:0", "waiting", ""),
    ],
)
def test_state_of_a_job_is_read_from_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, state: str, reason: str
) -> None:
    fake(tmp_path, monkeypatch, scontrol=f"echo '{answer}'")

    seen = Slurm(SlurmConfig()).state("7")

    assert (seen.state, seen.reason) == (state, reason)


@needs_bash
def test_state_of_a_job_whose_number_another_has_now_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, scontrol="echo 'JobId=7 JobName=of-another JobState=RUNNING ExitCode=0:0'")

    seen = Slurm(SlurmConfig()).state("7", name="gpt-x-1")

    assert (seen.state, seen.reason) == ("unknown", "job 7 is of-another now, not gpt-x-1")
    assert Slurm(SlurmConfig()).state("7", name="of-another").state == "running"


@needs_bash
@pytest.mark.parametrize(
    ("sacct", "state"),
    [
        ("echo 'CANCELLED by 1000|0:15'", "cancelled"),
        ("echo 'OUT_OF_MEMORY|0:125'", "failed"),
        ("true", "unknown"),
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", "unknown"),
    ],
)
def test_state_of_a_forgotten_job_is_read_from_the_accounts_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sacct: str, state: str
) -> None:
    fake(tmp_path, monkeypatch, scontrol=FORGOTTEN, sacct=sacct)

    assert Slurm(SlurmConfig()).state("7").state == state


RENAMED = "JobId=7 JobName=site job JobState=RUNNING Command=/my files/launch/gpt-x-1.sh WorkDir=/my files ExitCode=0:0"


@needs_bash
def test_state_of_a_job_that_the_cluster_renamed_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, scontrol=f"echo '{RENAMED}'")

    assert Slurm(SlurmConfig()).state("7", name="gpt-x-1").state == "running"
    assert Slurm(SlurmConfig()).state("7", name="x-1").state == "unknown"


@needs_bash
def test_forgotten_job_that_the_cluster_renamed_is_found_in_the_accounts_by_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = """case "$*" in
      *--name=*) ;;
      *JobIDRaw,SubmitLine*) echo "6|sbatch /launch/gpt-x-11.sh"; echo "7|sbatch '/my files/launch/gpt-x-1.sh'" ;;
      *--jobs=7*SubmitLine*) echo "FAILED|2:0|sbatch '/my files/launch/gpt-x-1.sh'" ;;
    esac"""
    fake(tmp_path, monkeypatch, squeue="true", scontrol=FORGOTTEN, sacct=accounts)
    slurm = Slurm(SlurmConfig())

    assert slurm.find("gpt-x-1") == "7"
    assert slurm.find("gpt-x-2") is None
    seen = slurm.state("7", name="gpt-x-1")
    assert (seen.state, seen.exit_code) == ("failed", 2)
    assert slurm.state("7", name="gpt-x-2").state == "unknown"


@needs_bash
def test_controller_that_does_not_answer_is_not_taken_for_a_job_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    fake(tmp_path, monkeypatch, scontrol=f"echo '{words}' >&2; exit 1")

    with pytest.raises(UnreachableError, match="Unable to contact slurm controller"):
        Slurm(SlurmConfig()).state("7")


@needs_bash
def test_state_that_a_newer_slurm_has_is_not_taken_for_a_job_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, scontrol="echo 'JobId=7 JobState=PONDERING ExitCode=0:0'")

    with pytest.raises(LauncherError, match="Slurm says PONDERING"):
        Slurm(SlurmConfig()).state("7")


@needs_bash
def test_ssh_carries_each_command_as_one_quoted_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, ssh='while [ "$1" != me@login ]; do shift; done; shift; eval "$@"', squeue='echo "$2"')

    found = Slurm(SlurmConfig(ssh="me@login"))._run("squeue", "x", "it's; echo $HOME")

    assert found == "it's; echo $HOME\n"


@needs_bash
def test_login_node_that_does_not_answer_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, ssh="echo 'ssh: connect to host login: No route to host' >&2; exit 255")

    with pytest.raises(UnreachableError, match="sbatch on login: ssh: connect to host login: No route to host"):
        Slurm(SlurmConfig(ssh="login")).check()


@needs_bash
def test_login_node_that_greets_in_another_encoding_is_understood(tmp_path: Path, monkeypatch) -> None:
    fake(tmp_path, monkeypatch, ssh=r"printf 'Gr\374\337e\n' >&2; echo answer")

    assert Slurm(SlurmConfig(ssh="login"))._run("squeue") == "answer\n"


def test_machine_without_slurm_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LauncherError, match=r"sbatch is not installed here.*hardware\.slurm\.ssh"):
        Slurm(SlurmConfig()).check()


@needs_bash
def test_partition_that_the_cluster_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
    fake(tmp_path, monkeypatch, **dict.fromkeys(names, 'case "$1" in --version) echo slurm 24.05;; esac'))

    with pytest.raises(LauncherError, match=r"hardware\.slurm\.partition: found 'gpu'"):
        Slurm(SlurmConfig(partition="gpu")).check()


def test_python_of_the_nodes_is_the_one_that_submits_by_default(tmp_path: Path) -> None:
    assert sys.executable in Slurm(SlurmConfig()).script(command_in(tmp_path))

"""A real Slurm on this machine, with two nodes of one CPU each: `with slurm_cluster(folder) as cluster:`.

It needs Debian's `slurm-wlm` and `munge`, and root, as whom their daemons run here. Everything that they keep lies in
`folder`; `SLURM_CONF` in the environment tells the commands, sbatch and the others, where the cluster is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("node1", "node2")
_WAIT_SECONDS = 60.0
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
OverTimeLimit=0
KillWait=30
MinJobAge={remembers}
InactiveLimit=0
SlurmctldTimeout=300
SlurmdTimeout=300
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A cluster that runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the commands need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's commands prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    @contextmanager
    def controller_away(self) -> Iterator[None]:
        """Have nobody answer Slurm's commands during the block; the jobs run on."""
        controller = int((self.folder / "slurmctld.pid").read_text())
        os.kill(controller, 19)
        try:
            yield
        finally:
            os.kill(controller, 18)


def why_not() -> str:
    """Return what this machine lacks for a cluster; empty if it has all."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux, and root to run Slurm's daemons"
    lacking = [each for each in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(each) is None]
    return f"needs {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else ""


@contextmanager
def slurm_cluster(
    folder: Path, *, remembers_seconds: int = 300, job_submit: str | None = None
) -> Iterator[SlurmCluster]:
    """Run a cluster in the empty folder `folder`, whose path must be short, for the length of the block.

    A job that has ended is forgotten after `remembers_seconds`. `job_submit` is a script in Lua that the controller
    runs on each job that is submitted.
    """
    cluster = SlurmCluster(folder=folder)
    _configure(folder, remembers_seconds)
    if job_submit is not None:
        (folder / "job_submit.lua").write_text(job_submit)
        with (folder / "slurm.conf").open("a") as file:
            file.write("JobSubmitPlugins=lua\n")
    with ExitStack() as running:
        running.enter_context(_munge(folder))
        running.callback(_end_jobs, cluster)
        running.enter_context(_daemon(cluster, ["slurmctld", "-D", "-i"]))
        for name in NODES:
            running.enter_context(_daemon(cluster, ["slurmd", "-D", "-N", name]))
        _wait_until_idle(cluster)
        yield cluster


def _configure(folder: Path, remembers_seconds: int) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    port, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().split(".")[0]
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={number} CPUs=1 RealMemory=1000 State=UNKNOWN"
        for node, number in zip(NODES, ports, strict=True)
    ]
    text = _CONF.format(
        host=host,
        port=port,
        folder=folder,
        nodes="\n".join(lines),
        names=",".join(NODES),
        remembers=remembers_seconds,
    )
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _munge(folder: Path) -> Iterator[None]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    options = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file")]
    options += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
    daemon = subprocess.Popen(["munged", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait((folder / "munge.socket").exists, "munged does not start")
        yield
    finally:
        daemon.terminate()
        daemon.wait()


@contextmanager
def _daemon(cluster: SlurmCluster, command: Sequence[str]) -> Iterator[None]:
    log = (cluster.folder / f"{'-'.join(command).replace('--', '-')}.out").open("wb")
    with log:
        daemon = subprocess.Popen(
            command,
            env={**os.environ, **cluster.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(10)
        daemon.kill()
        daemon.wait()


def _end_jobs(cluster: SlurmCluster) -> None:
    """Leave no process of a job behind: those of a daemon that is gone live on."""
    for pid in _job_processes(cluster):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def _job_processes(cluster: SlurmCluster) -> list[int]:
    wanted = f"SLURM_CONF={cluster.folder / 'slurm.conf'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if wanted in variables and any(each.startswith(b"SLURM_JOB_ID=") for each in variables):
                    found.append(int(entry.name))
    return found


def _wait_until_idle(cluster: SlurmCluster) -> None:
    def idle() -> bool:
        with suppress(subprocess.CalledProcessError):
            return cluster.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES)
        return False

    _wait(idle, f"the cluster does not come up; see the logs in {cluster.folder}")


def _wait(ready: Callable[[], bool], problem: str) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(problem)
        time.sleep(0.2)

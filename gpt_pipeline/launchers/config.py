"""The keys that say where a training runs. They are part of no fingerprint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.errors import require
from gpt_pipeline.storage.fingerprint import added_later

LauncherName = Literal["local", "slurm", "ray"]

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")  # as `man sbatch` lists them
_HOST = re.compile(r"([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*")
_WEB = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_OPTION = re.compile(r"--[a-z][a-z-]*(=.*)?")
_OURS: tuple[str, ...] = ("job-name", "output", "error", "open-mode", "nodes", "ntasks", "ntasks-per-node", "signal")
_OURS += (
    "chdir",
    "array",
    "partition",
    "account",
    "time",
    "gpus-per-node",
    "wrap",
    "parsable",
    "wait",
    "dependency",
    "requeue",
)


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """How the training's job is submitted with `launcher: slurm`."""

    nodes: int = added_later(1)
    """Number of nodes, each with `hardware.num_gpus` processes."""

    partition: str | None = added_later(None)
    """As `sbatch --partition`; null: the cluster's default."""

    account: str | None = added_later(None)
    """As `sbatch --account`; null: yours."""

    time: str | None = added_later(None)
    """As `sbatch --time`, such as `12:00:00`; null: the partition's limit. A training that needs longer saves ahead of
    the limit, goes back into the queue and continues."""

    gpus_per_node: str | None = added_later(None)
    """As `sbatch --gpus-per-node`, such as `4` or `a100:4`; null: `hardware.num_gpus`, none with `device: cpu`."""

    options: tuple[str, ...] | None = added_later(None)
    """Further options of sbatch, such as [--cpus-per-task=16, --mem=64G, --qos=long]."""

    setup: tuple[str, ...] | None = added_later(None)
    """Lines of shell that run first on the job's first node, such as [module load cuda, source ~/venv/bin/activate]."""

    python: str | None = added_later(None)
    """The interpreter on the nodes, such as `python` after a `setup` that puts it on the path; null: the one that
    submits, at the same place."""

    ssh: str | None = added_later(None)
    """The login node, as `host` or `user@host`, where ssh works without a password; null: Slurm's commands are here.
    Either way `storage.base_folder` has to be the same folder here and on the nodes."""

    warning_seconds: int = added_later(120)
    """How long before the time limit, which has to be longer, the training is told to save and leave."""

    def __post_init__(self) -> None:
        for key in ("options", "setup"):
            given = getattr(self, key)
            object.__setattr__(self, key, None if given is None else tuple(given))  # JSON has lists
        require(self.nodes > 0, "nodes", found=self.nodes, need="a whole number above 0")
        require(self.warning_seconds > 0, "warning_seconds", found=self.warning_seconds, need="a whole number above 0")
        time, host = self.time, self.ssh
        need = "minutes, minutes:seconds, hours:minutes:seconds or days-hours[:minutes[:seconds]]"
        require(time is None or _TIME.fullmatch(time) is not None, "time", found=time, need=need)
        need = f"a time above warning_seconds={self.warning_seconds}: else the training is told to leave as it begins"
        limit = 0 if time is None else _seconds(time)  # 0: none
        require(not 0 < limit <= self.warning_seconds, "time", found=time, need=need)
        need = "host or user@host"
        require(host is None or _HOST.fullmatch(host) is not None, "ssh", found=host, need=need)
        for option in self.options or ():
            need = "an option of sbatch in its long form, such as --qos=long"
            require(_OPTION.fullmatch(option) is not None, "options", found=option, need=need)
            name = option.removeprefix("--").split("=")[0]
            need = "an option that the pipeline does not set itself"
            remedy = f"use hardware.slurm.{name.replace('-', '_')}" if hasattr(self, name.replace("-", "_")) else ""
            require(name not in _OURS, "options", found=option, need=need, remedy=remedy or "remove it")


def _seconds(time: str) -> int:
    """Return the length of a time as sbatch reads it: `30` and `30:00` are half an hour, `1-12` a day and a half."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]  # begins with minutes, else with hours
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How the training's job is submitted with `launcher: ray`."""

    address: str = added_later("http://127.0.0.1:8265")
    """Of the cluster's dashboard, which takes Ray's jobs. `storage.base_folder` has to be the same folder here and on
    the nodes."""

    nodes: int = added_later(1)
    """Number of nodes, each with `hardware.num_gpus` processes."""

    cpus_per_node: int | None = added_later(None)
    """CPUs to reserve on each node; null: one for each process."""

    gpus_per_node: int | None = added_later(None)
    """GPUs to reserve on each node; null: `hardware.num_gpus`, none with `device: cpu`."""

    environment: tuple[str, ...] | None = added_later(None)
    """Environment variables of the job, such as [NCCL_SOCKET_IFNAME=eth0]. No secrets: Ray's dashboard shows them."""

    python: str | None = added_later(None)
    """The interpreter on the nodes, such as `python`; null: the one that submits, at the same place."""

    def __post_init__(self) -> None:
        given = self.environment
        object.__setattr__(self, "environment", None if given is None else tuple(given))  # JSON has lists
        need = "the address of Ray's dashboard without user, ? and #, such as http://127.0.0.1:8265"
        require(_WEB.fullmatch(self.address) is not None, "address", found=self.address, need=need)
        require(self.nodes > 0, "nodes", found=self.nodes, need="a whole number above 0")
        for name, least in (("cpus_per_node", 1), ("gpus_per_node", 0)):
            count = getattr(self, name)
            require(count is None or count >= least, name, found=count, need=f"null or a whole number from {least} up")
        for each in self.environment or ():
            need = "a variable and its value, such as NCCL_DEBUG=INFO"
            require(_VARIABLE.fullmatch(each) is not None, "environment", found=each, need=need)

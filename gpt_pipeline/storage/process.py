"""Identify a process across machines and restarts, so that a later process can tell whether it is still alive."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_FIRST_NAMESPACE = "pid:[4026531836]"  # of a machine itself, not of a container on it: PROC_PID_INIT_INO of the kernel
_STATE, _START_TIME = 0, 19  # among the fields of /proc/<pid>/stat that follow the command's name
_SYNCHRONIZE = 0x00100000  # Windows' right to wait for a process
_ACCESS_DENIED = 5  # Windows: the process exists and belongs to someone else
_BELOW_NORMAL = 0x00004000  # Windows' priority class
_LOW_RANK = 10  # niceness, half of the maximum: about a tenth of the CPU time when others want all of it
_CLOCK_SECONDS = 5.0
_WAIT_TIMEOUT = 0x102  # Windows: the process has not ended


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process, distinct from a later one with the same number."""

    host: str
    pid: int
    boot: str = ""
    """Identifies the machine's current boot; empty where the system does not provide it."""

    started: str = ""
    """When the process started, in the system's own unit; empty where the system does not provide it."""

    namespace: str = ""
    """In which PID namespace `pid` is its number, as in one container; empty where the system has none."""

    @classmethod
    def here(cls) -> ProcessId:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the process of this machine that has the number `pid` now."""
        return cls(
            host=socket.gethostname(),
            pid=pid,
            boot=boot_id(),
            started=_started(pid),
            namespace=pid_namespace(),
        )

    @classmethod
    def from_text(cls, value: Mapping[str, Any]) -> ProcessId:
        """Return the process whose fields `value` holds; raises KeyError or ValueError if they are not valid."""
        return cls(
            host=str(value["host"]),
            pid=int(value["pid"]),
            boot=str(value.get("boot", "")),
            started=str(value.get("started", "")),
            namespace=str(value.get("namespace", "")),
        )

    @property
    def as_text(self) -> str:
        """Its fields as a JSON object, which `from_text` takes when it is read."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended; False for a process on another machine or in another container."""
        if self.host != socket.gethostname():
            return False
        if self.boot and boot_id() and self.boot != boot_id():
            # Containers on two machines may have one host name; without containers, this machine started again.
            return {self.namespace, pid_namespace()} <= {_FIRST_NAMESPACE, ""}
        if not self.is_seen_here:
            return False
        started = _started(self.pid)
        if started and self.started:
            return _is_zombie(self.pid) or not _is_one_time(started, self.started)
        return not _is_there(self.pid)

    @property
    def is_seen_here(self) -> bool:
        """Whether this process sees whether that one is alive; otherwise only its signs of life tell."""
        same_boot = not self.boot or not boot_id() or self.boot == boot_id()
        return self.host == socket.gethostname() and same_boot and self.namespace in ("", pid_namespace())


def boot_id() -> str:
    """Return what changes each time this machine starts (Linux); empty elsewhere."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Return the PID namespace of this process (Linux); empty elsewhere."""
    try:
        return str(_PID_NAMESPACE.readlink())
    except OSError:
        return ""


def _linux_stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    return _linux_stat(pid)[_STATE : _STATE + 1] == ["Z"]


def _started(pid: int) -> str:
    """Return when a process started: in ticks since the boot (Linux), else in seconds; empty if that is not told.

    psutil is missing where only the trainer is installed.
    """
    if platform.system() == "Linux":
        stat = _linux_stat(pid)
        return stat[_START_TIME] if stat else ""
    try:
        import psutil
    except ImportError:
        return ""
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""


def _is_one_time(one: str, other: str) -> bool:
    """Whether two values of `_started` are the same; seconds differ a little when the system's clock is corrected."""
    return one == other or (platform.system() != "Linux" and abs(float(one) - float(other)) <= _CLOCK_SECONDS)


def _is_there(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill(pid, 0) would interrupt it there
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle = kernel.OpenProcess(_SYNCHRONIZE, False, pid)
        if not handle:
            return bool(ctypes.get_last_error() == _ACCESS_DENIED)
        try:
            return bool(kernel.WaitForSingleObject(handle, 0) == _WAIT_TIMEOUT)
        finally:
            kernel.CloseHandle(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def give_way() -> None:
    """Lower this process's priority from now on; call it before starting other threads.

    Two processes of equal priority do not share cores fairly: the threads of a matrix product wait for one another, so
    a training beside an evaluation fell to a tenth of its speed. Beside one of lower priority it keeps nine tenths.
    """
    if os.name == "nt":
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), _BELOW_NORMAL)
    else:
        os.setpriority(os.PRIO_PROCESS, 0, max(_LOW_RANK, os.getpriority(os.PRIO_PROCESS, 0)))

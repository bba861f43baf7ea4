"""Which process on which machine, so that a later one can tell whether it still lives."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE, _START_TIME = 0, 19  # among the fields of /proc/<pid>/stat that follow the command's name
_SYNCHRONIZE = 0x00100000  # Windows' right to wait for a process
_ACCESS_DENIED = 5  # Windows: it is there, and not ours
_BELOW_NORMAL = 0x00004000  # Windows' priority class
_LOW_RANK = 10  # "nice": of 20 the half, about a tenth of the time where others want all of it
_WAIT_TIMEOUT = 0x102  # Windows: it has not ended


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process, told apart from a later one that was given the same number."""

    host: str
    pid: int
    boot: str = ""
    """Of the machine since it was last started; empty where the system does not tell."""

    started: str = ""
    """When the process began, in the system's own measure; empty where the system does not tell."""

    @classmethod
    def here(cls) -> ProcessId:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the process of this machine that has the number `pid` now."""
        stat = _linux_stat(pid)
        return cls(host=socket.gethostname(), pid=pid, boot=boot_id(), started=stat[_START_TIME] if stat else "")

    @classmethod
    def from_text(cls, value: Mapping[str, Any]) -> ProcessId:
        """Return the process whose fields `value` holds; raises KeyError or ValueError where it does not."""
        return cls(
            host=str(value["host"]),
            pid=int(value["pid"]),
            boot=str(value.get("boot", "")),
            started=str(value.get("started", "")),
        )

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended; False for a process of another machine, of which nothing is known here."""
        if self.host != socket.gethostname():
            return False
        if self.boot and boot_id() and self.boot != boot_id():
            return True
        stat = _linux_stat(self.pid)
        if stat and self.started:
            return stat[_STATE] == "Z" or stat[_START_TIME] != self.started
        return not _is_there(self.pid)


def boot_id() -> str:
    """Return what changes each time this machine starts (Linux); empty elsewhere."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _linux_stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


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
    """Let other programs of this machine go first from now on; call it before other threads are started.

    Two processes of equal rank on the same cores do not take turns fairly: the threads of a matrix product wait for one
    another, so a training beside an evaluation fell to a tenth of its speed; beside one of this rank it keeps nine
    tenths.
    """
    if os.name == "nt":
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), _BELOW_NORMAL)
    else:
        os.setpriority(os.PRIO_PROCESS, 0, max(_LOW_RANK, os.getpriority(os.PRIO_PROCESS, 0)))

"""Memory of this machine, from the standard library alone."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")  # Linux
_CGROUP = Path("/sys/fs/cgroup")  # version 2: limits of a container


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Main memory, in bytes."""

    total: int

    available: int | None
    """What a new process can have without others being swapped out; None where the system does not tell."""


def host_memory() -> HostMemory | None:
    """Return the memory of this machine, or of the container that this runs in; None where nobody tells."""
    if sys.platform == "win32":
        return _windows_memory()
    if _MEMINFO.is_file():
        return _limited(_linux_memory(_MEMINFO.read_text(encoding="ascii")), _CGROUP)
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():  # macOS
        return HostMemory(total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), available=None)
    return None


def _linux_memory(meminfo: str) -> HostMemory:
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in meminfo.splitlines())}
    return HostMemory(total=kilobytes["MemTotal"] * 1024, available=kilobytes["MemAvailable"] * 1024)


def _limited(memory: HostMemory, cgroup: Path) -> HostMemory:
    """Return `memory`, or less where a container may have less."""
    limit, used = (_number(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit is None or limit >= memory.total:
        return memory
    # Files that were read count as used and are given back at once, so this is a lower bound.
    left = max(0, limit - (used or 0)) + _file_cache(cgroup)
    return HostMemory(total=limit, available=min(left, limit, memory.available or limit))


def _file_cache(cgroup: Path) -> int:
    try:
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:  # no cgroups, or of version 1
        return None
    return int(text) if text.isdigit() else None  # `max` is no limit


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of sysinfoapi.h."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("available", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        )

    def _windows_memory() -> HostMemory | None:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        known = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return HostMemory(total=status.total, available=status.available) if known else None

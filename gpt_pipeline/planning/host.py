"""Memory of this machine, or of the container that this runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # version 2: limits of a container


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Main memory, in bytes."""

    total: int

    available: int
    """What a new process can have without others being swapped out."""


def host_memory() -> HostMemory:
    """Return the memory of this machine, or of the container that this runs in."""
    memory = psutil.virtual_memory()
    return _limited(HostMemory(total=memory.total, available=memory.available), _CGROUP)


def _limited(memory: HostMemory, cgroup: Path) -> HostMemory:
    """Return `memory`, or less where a container may have less."""
    limit, used = (_number(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit is None or limit >= memory.total:
        return memory
    # Files that were read count as used and are given back at once, so this is a lower bound.
    left = max(0, limit - (used or 0)) + _file_cache(cgroup)
    return HostMemory(total=limit, available=min(left, limit, memory.available))


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

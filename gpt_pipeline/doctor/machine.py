"""Disk, memory and the system's limits."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt_pipeline.findings import Finding, note, ok, problem
from gpt_pipeline.planning.host import HostMemory, host_memory
from gpt_pipeline.report.wording import size
from gpt_pipeline.storage.room import free_bytes

_LEAST_DISK, _AMPLE_DISK = 10**9, 20 * 10**9  # the second: what SYNTH's first files, data and checkpoints come to
_LEAST_MEMORY, _AMPLE_MEMORY = 10**9, 6 * 10**9  # two worker processes of the data; GPT-2 124M on a CPU
_LEAST_FILES = 1024


def look_at_disk(folders: Iterable[Path]) -> Iterator[Finding]:
    """Look at the room on the disks of `folders`, which need not exist yet."""
    for folder in dict.fromkeys(folders):
        free = free_bytes(folder)
        text = f"{size(free)} free for {folder}"
        if free < _LEAST_DISK:
            yield problem(
                "disk", text, "free some space, or choose another storage.base_folder (HF_HOME for downloads)"
            )
        elif free < _AMPLE_DISK:
            yield note("disk", text, "`gpt-pipeline plan` tells what an experiment needs")
        else:
            yield ok("disk", text)


def look_at_memory(memory: HostMemory | None = None) -> Iterator[Finding]:
    """Look at the main memory."""
    memory = memory or host_memory()
    if memory is None:
        yield note("memory", "this system does not tell how much there is")
        return
    free = memory.total if memory.available is None else memory.available
    text = f"{size(free)} of {size(memory.total)} free"
    if free < _LEAST_MEMORY:
        yield problem("memory", text, "end other programs: each process that makes data takes up to 0.6 GB")
    elif free < _AMPLE_MEMORY:
        yield note("memory", text, "enough for the data and for small models; `gpt-pipeline plan` tells about others")
    else:
        yield ok("memory", text)


def look_at_open_files() -> Iterator[Finding]:
    """Look at how many files a process may have open; Windows has no such limit that matters."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _LEAST_FILES:
        remedy = f"ulimit -n {min(4096, hard) if hard > 0 else 4096}"
        yield note("open files", f"a process may open {soft} at a time, {_LEAST_FILES} are usual", remedy)
    else:
        yield ok("open files", f"{'no limit' if soft < 0 else f'{soft:,} at a time'}")

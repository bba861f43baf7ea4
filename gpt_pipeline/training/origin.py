"""What a training ran on, and the source code that it ran: for its record, never for its identity."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_GIT_SECONDS = 5.0


def machine() -> str:
    """Return processor, number of logical CPUs and operating system; no name of the machine, which is private."""
    return f"{_processor()}, {os.cpu_count() or 1} logical CPUs, {platform.system()} {platform.release()}"


@cache
def commit_at_start() -> str | None:
    """Return `source_commit` as it was when this was first called: a pull during a training changes nothing."""
    return source_commit()


def source_commit(package: Path = _PACKAGE) -> str | None:
    """Return the git commit of the package's source, ending in `-dirty` if files differ; None if it is in no checkout.

    An installed package may lie in a folder of someone else's repository, which tells nothing: git must track it.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or no checkout: both are usual
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        told = None
    return told[1].strip() if told else platform.processor() or platform.machine()

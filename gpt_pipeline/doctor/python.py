"""Python, and the libraries against what the package asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from gpt_pipeline.findings import Finding, note, ok, problem

DISTRIBUTION = "gpt-pipeline"
_OLDEST = (3, 11)
_NEWEST = (3, 13)  # that is tested


def look_at_python(version: tuple[int, int] = sys.version_info[:2]) -> Iterator[Finding]:
    """Look at the version of Python."""
    text = f"{platform.python_version()} ({sys.executable})"
    if version < _OLDEST:
        needed = f"{text}, need {_OLDEST[0]}.{_OLDEST[1]} or newer"
        yield problem("python", needed, "install a newer one, and make the virtual environment anew with it")
    elif sys.maxsize < 2**32:
        yield problem("python", f"{text} is a 32-bit build", "install a 64-bit one: torch has no other")
    elif version > _NEWEST:
        yield note("python", f"{text}; up to {_NEWEST[0]}.{_NEWEST[1]} is tested")
    else:
        yield ok("python", text)


def look_at_libraries(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """Look at the installed versions of everything the package needs."""
    try:
        needed = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        yield note(
            "libraries", f"{distribution} itself is not installed here, so what it needs is not known", _install()
        )
        return
    wanted = [each for each in map(Requirement, needed) if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [text for each in wanted if (text := misfit(each)) is not None]
    if wrong:
        yield problem("libraries", "; ".join(wrong), _install())
    else:
        yield ok("libraries", f"{len(wanted)}, of the versions needed")


def misfit(requirement: Requirement) -> str | None:
    """Return in what the installed library differs from what is needed; None if it fits."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing, need {requirement.specifier or 'any version'}"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"found {requirement.name} {found}, need {requirement.specifier}"


def _install() -> str:
    return f"{sys.executable} -m pip install --upgrade {DISTRIBUTION}; in a clone: pip install -c constraints.txt -e ."

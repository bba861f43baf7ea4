"""What a check found: one thing that is well, worth knowing, or will fail, with the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.shown import counted, without_password

Severity = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing. `warning`: works, but is hardly wanted. `problem`: something will fail."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding."""

    severity: Severity
    key: str = ""
    """What it is about: a key of the experiment file, or the name of what was checked."""

    text: str
    """What was found and, where that is wrong, what is needed."""

    remedy: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    """The figures behind it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", without_password(self.text))
        object.__setattr__(self, "remedy", without_password(self.remedy))

    @property
    def passed(self) -> bool:
        return self.severity != "problem"


def ok(key: str, text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(severity="ok", key=key, text=text)


def note(key: str, text: str, remedy: str = "") -> Finding:
    """Return what is worth knowing."""
    return Finding(severity="note", key=key, text=text, remedy=remedy)


def warning(key: str, text: str, remedy: str) -> Finding:
    """Return what will not fail, but is hardly wanted."""
    return Finding(severity="warning", key=key, text=text, remedy=remedy)


def problem(key: str, text: str, remedy: str) -> Finding:
    """Return what will fail, and what to do about it."""
    return Finding(severity="problem", key=key, text=text, remedy=remedy)


def verdict(*, passed: bool, text: str, facts: Mapping[str, float]) -> Finding:
    """Return the outcome of a check that either passes or fails."""
    return Finding(severity="ok" if passed else "problem", text=text, facts=facts)


def problem_of(error: UserError, key: str) -> Finding:
    """Return the problem that an error describes; about `key` where the error does not name its own."""
    if isinstance(error, ConfigError):
        return problem(error.key, f"found {error.found!r}, need {error.need}", error.remedy)
    said = str(error).removeprefix(f"{key}: ")
    text, _, remedy = said.rpartition("; ") if "; " in said else (said, "", "")
    return problem(key, text, remedy)


def count_of(findings: Iterable[Finding], severity: Severity) -> int:
    """Return how many of the findings are this severe."""
    return sum(finding.severity == severity for finding in findings)


def problems_in_words(findings: Sequence[Finding]) -> str:
    """Return `1 problem to solve`, for the last line."""
    count = count_of(findings, "problem")
    return f"{counted(count, 'problem')} to solve"

"""What one look finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.errors import UserError

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about this machine."""

    check: str
    """What was looked at."""

    status: Status
    """`note`: worth knowing, and nothing fails for it. `problem`: something will fail."""

    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, status="ok", text=text)


def note(check: str, text: str, remedy: str = "") -> Finding:
    """Return what is worth knowing."""
    return Finding(check=check, status="note", text=text, remedy=remedy)


def problem(check: str, text: str, remedy: str) -> Finding:
    """Return what will fail, and what to do about it."""
    return Finding(check=check, status="problem", text=text, remedy=remedy)


Look = Callable[[], Iterable[Finding]]


def findings_of(looks: Mapping[str, Look]) -> list[Finding]:
    """Return what the looks find, by their names in order; one that fails itself is a problem with its own words."""
    found: list[Finding] = []
    for name, look in looks.items():
        try:
            found += look()
        except UserError as error:
            text, _, remedy = str(error).rpartition("; ")
            found.append(problem(name, text, remedy))
        except Exception as error:
            # Whatever keeps a look from looking is news, and must not keep the others from it.
            text = f"could not be looked at: {type(error).__name__}: {error}"
            found.append(problem(name, text, "this was not foreseen; the text says what the system refused"))
    return found

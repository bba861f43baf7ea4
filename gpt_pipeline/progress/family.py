"""A family of experiments in a few lines: how many are finished, which is the best, which failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_pipeline.evaluation.result import rank_of_value
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Line, Sheet
from gpt_pipeline.storage.names import as_typed

if TYPE_CHECKING:
    from gpt_pipeline.progress.status import Status

_STYLES = {"finished": "green", "running": "cyan", "failed": "bold red", "died": "red", "cannot be read": "red"}


def family_sheet(members: Sequence[Status]) -> Sheet:
    """Return a line for each member, the best one marked, and below them what comes next."""
    states = [_state(member) for member in members]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return Sheet(
        heading=((members[0].family or "", "bold"), f"family of {len(members)}: {counts}"),
        rows=list(_rows(members, states)),
        indent=2,
        closing=[(("  next", "dim"), _next(members, states))],
    )


def _state(member: Status) -> str:
    """Return how far a member is, in a word or two."""
    if member.problem is not None or member.training is None:
        return "cannot be read"
    if member.failure is not None and member.training.state != "running":
        return "failed"
    if member.training.state == "finished" and (member.evaluations_pending or member.report_is_outdated):
        return "to be evaluated"
    return "not started" if member.training.state == "absent" else member.training.state


def _rows(members: Sequence[Status], states: Sequence[str]) -> Iterator[Line]:
    best = _best(members)
    for member, state in zip(members, states, strict=True):
        cell = (_reached(member), "bold green") if member is best else _reached(member)
        mark = " *" if member is best else ""
        told = member.problem or (member.failure.in_words if member.failure and state == "failed" else "")
        yield [
            f"{member.file.name}{mark}",
            (state, _STYLES.get(state, "yellow")),
            cell,
            (told.partition("\n")[0], "red"),
        ]


def _best(members: Sequence[Status]) -> Status | None:
    """Return the member whose best checkpoint an evaluation found the best; None where they do not compare."""
    measured = [(each.best, each) for each in members if each.best is not None and each.best.evaluated]
    if len(measured) < 2 or len({(best.metric, best.measured_on) for best, _ in measured}) != 1:
        return None
    return min(measured, key=lambda each: rank_of_value(each[0].value, each[0].metric))[1]


def _reached(member: Status) -> str:
    if member.best is None:
        return ""
    about = "" if member.best.evaluated else "about "
    return f"{wording.words(member.best.metric)} {about}{member.best.value:.3f} at step {member.best.step:,}"


def _next(members: Sequence[Status], states: Sequence[str]) -> str:
    left = [member.file for member, state in zip(members, states, strict=True) if state not in ("finished", "running")]
    if left:
        return f"gpt-pipeline run {_typed(left)}   # what is not finished, one after the other"
    return f"gpt-pipeline compare {_typed([member.file for member in members])}"


def _typed(files: Sequence[Path]) -> str:
    return " ".join(as_typed(file, Path.cwd()) for file in files)

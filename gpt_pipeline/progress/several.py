"""How each of several experiments ended that ran one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.progress.outcome import best_text
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Line, Sheet
from gpt_pipeline.shown import counted

End = Literal["finished", "nothing to do", "failed", "stopped", "not started"]

_STYLES = {"finished": "green", "nothing to do": "green", "failed": "bold red", "stopped": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the run of one experiment ended."""

    file: Path
    state: End
    problem: str
    """What it failed of; empty otherwise."""

    seconds: float
    """How long it took."""


def sheets(ended: Sequence[Ended]) -> list[Sheet]:
    """Return a table of the experiments, what each reached, and how many ended in which way."""
    counts = {
        state: sum(each.state == state for each in ended) for state in dict.fromkeys(each.state for each in ended)
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [
        Sheet(heading=[(f"{counted(len(ended), 'experiment')}: {told}", "bold")], rows=list(_rows(ended)), indent=2)
    ]


def _rows(ended: Sequence[Ended]) -> Iterator[Line]:
    for each in ended:
        time = wording.duration(each.seconds) if each.seconds else ""
        told = each.problem.partition("\n")[0] or _reached(each.file)
        yield [each.file.name, (each.state, _STYLES.get(each.state, "dim")), time, told]


def _reached(file: Path) -> str:
    try:
        return best_text(load_experiment(file))
    except UserError:  # a file that cannot be read has a problem of its own, or was not its turn
        return ""


def as_json(ended: Sequence[Ended]) -> object:
    """Return the table as JSON values."""
    return [{"file": str(each.file), "state": each.state, "problem": each.problem} for each in ended]

"""Tasks, and what came of them: kept after each task, so that a call that is cut loses the present one only."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.storage.atomic import read_json, write_json, write_text

JSON_NAME, TABLES_NAME = "results.json", "results.md"
_MOST_CUTS = 2  # calls in which a task may run out of time before it counts as failed
_MOST_TIMES, _START_SECONDS = 3, 60.0  # what is thought of a task is a guess, and each process first loads torch

Row = Mapping[str, str | int | float | bool | None]
"""Figures by the heading of their column."""


class UnfinishedError(Exception):
    """A task has made a part of its way and goes on in the next call; `rows` are what it has so far."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        super().__init__("goes on in the next call")


class NotHereError(Exception):
    """What the task is about does not exist on this machine; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What runs as a whole and gives a few rows of a part's table."""

    part: int
    name: str
    seconds: float
    """That it is thought to take on one H200."""

    run: Callable[[], Sequence[Row]]
    """Raises any error where it fails, `UnfinishedError` and `NotHereError` as these say."""

    takes_the_rest: bool = False
    """Whether it goes on to the end of the call, rather than being cut after three times what it is thought to take."""

    first: bool = False
    """Whether it comes before the others of all parts: what to know of a GPU that is there for one call."""


Status = Literal["done", "absent", "unfinished", "cut", "failed"]


@dataclass(kw_only=True)
class Outcome:
    """What came of a task."""

    part: int
    task: str
    machine: str
    status: Status
    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    cuts: int = 0
    """Calls whose time ended before the task did."""

    @property
    def is_settled(self) -> bool:
        """Whether the task is not run again unasked."""
        return self.status in ("done", "absent", "failed")


def allowed_seconds(task: Task, remaining: float) -> float:
    """Return how long the task may take of the `remaining` seconds: one that hangs leaves something to others."""
    return remaining if task.takes_the_rest else min(remaining, _START_SECONDS + _MOST_TIMES * task.seconds)


class Results:
    """The outcomes of one machine's tasks, kept in a folder. Those of other machines, or versions, stay beside them."""

    def __init__(self, folder: Path, *, machine: str) -> None:
        self.folder = folder
        self.machine = machine
        self._outcomes: dict[tuple[str, int, str], Outcome] = {}
        self.take_over(folder)

    def take_over(self, folder: Path) -> None:
        """Take what an earlier call left in `folder`, if anything."""
        path = folder / JSON_NAME
        for value in read_json(path)["outcomes"] if path.is_file() else ():
            outcome = Outcome(**value)
            self._outcomes[outcome.machine, outcome.part, outcome.task] = outcome

    def of(self, task: Task) -> Outcome | None:
        """Return what came of the task on this machine; None: it did not run."""
        return self._outcomes.get((self.machine, task.part, task.name))

    def run(self, task: Task, *, limit_seconds: float) -> Outcome:
        """Run the task for so long at most, and keep what comes of it."""
        before, started = self.of(task), time.monotonic()
        status: Status = "done"
        rows: Sequence[Row] = ()
        reason, cuts = "", before.cuts if before else 0
        try:
            with limited(limit_seconds):
                rows = task.run()
        except UnfinishedError as error:
            status, rows, reason = "unfinished", error.rows, str(error)
        except NotHereError as error:
            status, reason = "absent", str(error)
        except TimeoutError as error:
            cuts += 1
            status, reason = "failed" if cuts >= _MOST_CUTS else "cut", str(error)
        except (Exception, SystemExit) as error:  # of any kind: the other tasks still run
            status, reason = "failed", f"{type(error).__name__}: {error}"
        outcome = Outcome(
            part=task.part,
            task=task.name,
            machine=self.machine,
            status=status,
            seconds=round(time.monotonic() - started, 1),
            rows=[dict(row) for row in rows],
            reason=reason,
            cuts=cuts,
        )
        self._outcomes[self.machine, task.part, task.name] = outcome
        self.write()
        return outcome

    def write(self) -> None:
        """Write the results and their tables."""
        self.folder.mkdir(parents=True, exist_ok=True)
        outcomes = list(self._outcomes.values())
        write_json(self.folder / JSON_NAME, {"outcomes": [dataclasses.asdict(each) for each in outcomes]})
        write_text(self.folder / TABLES_NAME, as_markdown(outcomes))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer, where the system has timers of its own (not on Windows)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def end(*_: Any) -> None:
        raise TimeoutError(f"did not end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


TITLES: Mapping[int, str] = {
    1: "Checks",
    2: "Speed of a step",
    3: "Killed and resumed",
    4: "Checkpoints",
    5: "Memory",
    6: "Processes",
    7: "Recipes",
}


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the tables, part by part, for each machine."""
    lines: list[str] = []
    for machine in dict.fromkeys(each.machine for each in outcomes):
        lines += [f"# {machine}", ""]
        for part, title in TITLES.items():
            own = [each for each in outcomes if each.machine == machine and each.part == part]
            lines += [f"## {part}. {title}", "", *_table(own), ""] if own else []
    return "\n".join(lines)


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    columns = list(dict.fromkeys(column for each in outcomes for row in each.rows for column in row)) or ["found"]
    yield f"| task | {' | '.join([*columns, 's'])} |"
    yield "|---" * (len(columns) + 2) + "|"
    for each in outcomes:
        for row in each.rows:
            yield f"| {each.task} | {' | '.join(_shown(row.get(column)) for column in columns)} | {each.seconds:g} |"
        if each.status != "done":
            text = f"**{each.status}**: {each.reason}".replace("\n", " ").replace("|", "\\|")
            yield f"| {each.task} | {text} |{' |' * (len(columns) - 1)} {each.seconds:g} |"


def _shown(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value.replace("|", "\\|")

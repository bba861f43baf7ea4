"""What can be wrong with an experiment file, as lines for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from gpt_pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong in an experiment file."""

    line: int | None
    """From 1; None if the problem is with the whole file."""

    key: str
    """Whole path such as `training.learning_rate`; empty if the problem is not with one key."""

    text: str
    """What was found, what is needed and what to do."""


class ExperimentFileError(UserError, ValueError):
    """An experiment file that cannot be used; one line for each problem, in the order of the file."""

    def __init__(self, file: Path, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__(file, self.problems)

    def __str__(self) -> str:
        return "\n".join(self._line(problem) for problem in self.problems)

    def _line(self, problem: Problem) -> str:
        place = str(self.file) if problem.line is None else f"{self.file}:{problem.line}"
        return f"{place}: {problem.text}"


def one_line(text: str) -> str:
    """Return `text` with unprintable characters escaped, cut to a readable length; backslashes stay single."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def quoted(text: str) -> str:
    """Return `one_line(text)` in single quotes."""
    return f"'{one_line(text)}'"


def listed(words: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def nearest(word: str, known: Iterable[str], *, alike: float = 0.6) -> str | None:
    """Return the known word most similar to `word`, ignoring case; None if none reaches difflib's ratio of `alike`."""
    by_lower = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), by_lower, n=1, cutoff=alike)
    return by_lower[matches[0]] if matches else None

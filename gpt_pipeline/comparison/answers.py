"""What the experiments' best checkpoints answered to the same held-out questions, beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.comparison.standings import Standing
from gpt_pipeline.evaluation.result import question_id

_COLUMNS = 6  # of experiments side by side
_QUESTIONS = 12
Answer = Mapping[str, Any]
_BLANK: Answer = {
    **dict.fromkeys(("question", "exercise", "expected", "reasoning", "answer", "generated"), ""),
    **dict.fromkeys(("ended", "well_formed"), True),
    "correct": False,
}
"""What an answer of an older version may lack."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of several experiments; empty where no two were asked the same."""

    names: tuple[str, ...] = ()
    """Of the experiments, in the order of the comparison."""

    steps: tuple[int, ...] = ()
    """Of the checkpoints that answered."""

    scores: tuple[str, ...] = ()
    """Such as `3 of 8 right`, of the questions that others were asked too."""

    rows: tuple[tuple[Answer, tuple[Answer | None, ...]], ...] = ()
    """Some of the questions, each with every experiment's answer; first those whose answers are not all right or wrong.

    A question is given as one of its answers, which has it and what was expected.
    """

    asked: int = 0
    """Questions that at least two experiments were asked."""


def answers_side_by_side(standings: Sequence[Standing]) -> Answers:
    """Return the answers of the first few experiments to questions that others of them were asked too."""
    found = {
        standing.name: {question_id(each): {**_BLANK, **each} for each in standing.best.evaluation.answers}
        for standing in standings
        if standing.best is not None and standing.best.evaluation.answers
    }
    asked: dict[Any, list[Answer]] = {}
    for answers in found.values():
        for identity, answer in answers.items():
            asked.setdefault(identity, []).append(answer)
    first = dict([*_with_shared(found).items()][:_COLUMNS])
    columns = _with_shared(first)  # without one that was asked what only experiments behind these were
    rows = [
        (given[0], tuple(answers.get(identity) for answers in columns.values()))
        for identity, given in asked.items()
        if sum(identity in answers for answers in columns.values()) > 1
    ]
    rows.sort(key=lambda row: len({_is_right(each) for each in row[1] if each is not None}) < 2)
    steps = {standing.name: standing.best.step for standing in standings if standing.best is not None}
    return Answers(
        names=tuple(columns),
        steps=tuple(steps[name] for name in columns),
        scores=tuple(_score([row[1][place] for row in rows]) for place in range(len(columns))),
        rows=tuple(rows[:_QUESTIONS]),
        asked=len(rows),
    )


def _with_shared(found: Mapping[str, Mapping[Any, Answer]]) -> dict[str, Mapping[Any, Answer]]:
    """Return those of the experiments that were asked something which another of them was asked too."""
    times = Counter(identity for answers in found.values() for identity in answers)
    return {name: answers for name, answers in found.items() if any(times[identity] > 1 for identity in answers)}


def _is_right(answer: Answer) -> bool:
    return answer.get("correct") is True


def _score(answers: Sequence[Answer | None]) -> str:
    given = [each for each in answers if each is not None]
    return f"{sum(map(_is_right, given))} of {len(given)} right"

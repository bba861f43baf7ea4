"""What an exercise makes: the columns of a row that depend on its content."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple


class Draft(NamedTuple):
    """One exercise, before it is given an id, a language and an article."""

    exercise: str
    """SYNTH's name for this kind of exercise."""

    script: str
    """Which templates made it."""

    query: str
    reasoning: str
    """Empty for kinds of exercise that have none."""

    answer: str
    constraints: str | None = None
    """`result:<number>` where the answer can be checked."""


def pick_other(rng: Random, choices: tuple[str, ...], taken: str) -> str:
    """Return one of `choices`, of which there are at least two, that is not `taken`."""
    other = rng.choice(choices)
    while other == taken:
        other = rng.choice(choices)
    return other


_GREETINGS: Final = (
    "Hello!", "Please help.", "A quick question.", "Hi there.", "I need help.", "Tell me this.", "Good morning.",
    "Can you help me?", "One more question.", "For my class:", "Please answer.",
)  # fmt: skip
_THANKS: Final = ("Thanks!", "Thank you.", "Please be short.", "I am not sure.", "Please explain.", "Many thanks.")


def phrased(rng: Random, query: str) -> str:
    """Return `query` as different people would send it: mostly plain, now and then with a greeting or thanks."""
    chance = rng.random()
    if chance < 0.06:
        return f"{rng.choice(_GREETINGS)} {query}"
    if chance < 0.1:
        return f"{query} {rng.choice(_THANKS)}"
    return query

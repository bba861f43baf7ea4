"""Word problems with small numbers: `math exercise`, the one kind whose answers `constraints` can check."""

from __future__ import annotations

from random import Random
from typing import Final

from gpt_pipeline.data.sample import words
from gpt_pipeline.data.sample.draft import Draft, phrased, pick_other

EXERCISE: Final = "math exercise"

_LARGEST: Final = 10  # of the numbers a problem starts from; 81 sums are few enough to be learned within the demo

_MORE: Final = (
    "{name} has {a} {items} and gets {b} more.",
    "{name} has {a} {items} and finds {b} more.",
    "{name} has {a} {items} and buys {b} more.",
    "There are {a} {items} in the box and {name} adds {b} more.",
    "{name} had {a} {items}. {other} gave {name} {b} more.",
    "{name} found {a} {items} today and {b} the day before.",
    "{name} put {a} {items} on the table and {other} put {b} there.",
    "{a} {items} are in the bag. {name} puts in {b} more.",
    "{name} has {a} {items} at home and {b} at work.",
    "On the way {name} saw {a} {items} and later {b} more.",
)
_LESS: Final = (
    "{name} has {a} {items} and gives away {b}.",
    "{name} has {a} {items} and loses {b}.",
    "{name} has {a} {items} and sells {b}.",
    "{name} had {a} {items}. {other} took {b} of them.",
    "There are {a} {items} in the box and {name} takes {b} out.",
    "{name} brings {a} {items} and leaves {b} in {town}.",
    "{a} {items} are in the bag. {name} takes {b} of them out.",
    "Of {a} {items} {name} gave {b} to {other}.",
)
_HOW_MANY: Final = (
    "How many {items} are there now?",
    "How many {items} is that?",
    "How many {items} are there in the end?",
    "What is the number of {items} now?",
    "How many {items} does that make?",
    "Count the {items}.",
)
_COMPARED: Final = (
    "{name} has {a} {items} and {other} has {b}.",
    "There are {a} {items} with {name} and {b} with {other}.",
    "{name} counts {a} {items}. {other} counts {b}.",
    "{a} {items} belong to {name} and {b} to {other}.",
)
_LARGER: Final = (
    "What is the larger number of {items}?",
    "How many {items} has the one with more?",
    "Which of the two numbers of {items} is larger?",
)
_SMALLER: Final = (
    "What is the smaller number of {items}?",
    "How many {items} has the one with less?",
    "Which of the two numbers of {items} is smaller?",
)
_TWICE: Final = (
    "{name} has {a} {items} and {other} has twice as many. How many {items} does {other} have?",
    "{name} has {a} {items}. {other} has two times that. How many {items} does {other} have?",
    "There are {a} {items} in each of the two bags of {name}. How many {items} are there?",
    "{name} finds {a} {items} and the same number again. How many {items} is that?",
)
_ADDING: Final = ("We add", "Both together", "All of them", "The sum is")
_TAKING: Final = ("We take away", "What is left", "The rest is", "Without those")


def math_exercise(rng: Random) -> Draft:
    """Return a word problem of one of four kinds."""
    chance = rng.random()
    if chance < 0.4:
        return _addition(rng)
    if chance < 0.7:
        return _subtraction(rng)
    return _comparison(rng) if chance < 0.85 else _doubling(rng)


def _problem(rng: Random, script: str, template: str, reasoning: str, *, a: int, b: int, result: int) -> Draft:
    name = rng.choice(words.NAMES)
    other = pick_other(rng, words.NAMES, name)
    query = template.format(
        name=name, other=other, a=a, b=b, items=rng.choice(words.ITEMS), town=rng.choice(words.TOWNS)
    )
    return Draft(EXERCISE, script, phrased(rng, query), reasoning, str(result), f"result:{result}")


def _addition(rng: Random) -> Draft:
    a, b = rng.randint(2, _LARGEST), rng.randint(2, _LARGEST)
    template = f"{rng.choice(_MORE)} {rng.choice(_HOW_MANY)}"
    reasoning = f"{rng.choice(_ADDING)}: {a} + {b} = {a + b}."
    return _problem(rng, "addition", template, reasoning, a=a, b=b, result=a + b)


def _subtraction(rng: Random) -> Draft:
    b, rest = rng.randint(2, _LARGEST), rng.randint(2, _LARGEST)
    a = b + rest
    template = f"{rng.choice(_LESS)} {rng.choice(_HOW_MANY)}"
    reasoning = f"{rng.choice(_TAKING)}: {a} - {b} = {rest}."
    return _problem(rng, "subtraction", template, reasoning, a=a, b=b, result=rest)


def _comparison(rng: Random) -> Draft:
    a, b = rng.sample(range(2, 2 * _LARGEST + 1), 2)
    larger, smaller = max(a, b), min(a, b)
    reasoning = f"We compare: {larger} is more than {smaller}."
    wants_larger = rng.random() < 0.5
    question = rng.choice(_LARGER if wants_larger else _SMALLER)
    template = f"{rng.choice(_COMPARED)} {question}"
    return _problem(rng, "comparison", template, reasoning, a=a, b=b, result=larger if wants_larger else smaller)


def _doubling(rng: Random) -> Draft:
    a = rng.randint(2, _LARGEST)
    reasoning = f"We double it: {a} + {a} = {2 * a}."
    return _problem(rng, "doubling", rng.choice(_TWICE), reasoning, a=a, b=a, result=2 * a)

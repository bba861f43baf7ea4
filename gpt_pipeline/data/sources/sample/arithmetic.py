"""Word problems with small numbers: `math exercise`, the one kind whose answers `constraints` can check."""

from __future__ import annotations

from random import Random
from typing import Final

from gpt_pipeline.data.sources.sample import words
from gpt_pipeline.data.sources.sample.draft import Draft, phrased, pick_other

EXERCISE: Final = "math exercise"

_LARGEST: Final = 6  # of the numbers that are added, from 2 on: 25 sums can be learned within the demo

_MORE: Final = (
    "{name} has {a} {items} and gets {b} more {items}.",
    "{name} has {a} {items}. {name} finds {b} {items}.",
    "{name} has {a} {items} and buys {b} more {items}.",
    "There are {a} {items} in the box of {name}. {name} adds {b} {items}.",
    "{name} had {a} {items}. {other} gave {name} {b} {items}.",
    "{name} found {a} {items} today. {name} found {b} {items} the day before.",
    "{name} put {a} {items} on the table, then {name} put {b} {items} there.",
    "{a} {items} are in the bag of {name}. {name} puts in {b} {items}.",
    "{name} has {a} {items} at home. {name} has {b} {items} at work.",
    "On the way {name} saw {a} {items}, later {name} saw {b} {items}.",
)
_LESS: Final = (
    "{name} has {a} {items} and gives away {b} {items}.",
    "{name} has {a} {items}. {name} loses {b} {items}.",
    "{name} has {a} {items} and sells {b} {items}.",
    "{name} had {a} {items}. {other} took {b} {items} from {name}.",
    "There are {a} {items} in the box of {name}. {name} takes {b} {items} out.",
    "{name} brings {a} {items}. {name} leaves {b} {items} in {town}.",
    "{a} {items} are in the bag of {name}. {name} takes {b} {items} out.",
    "{name} had {a} {items}, but {name} gave {b} {items} to {other}.",
)
_HOW_MANY: Final = (
    "How many {items} does {name} have now?",
    "How many {items} are there now?",
    "How many {items} does {name} have in the end?",
    "What is the number of {items} of {name} now?",
    "How many {items} is that for {name}?",
    "Count the {items} of {name}.",
)
_COMPARED: Final = (
    "{name} has {a} {items} and {other} has {b} {items}.",
    "There are {a} {items} with {name} and {b} {items} with {other}.",
    "{name} counts {a} {items}. {other} counts {b} {items}.",
    "{a} {items} belong to {name} and {b} {items} to {other}.",
)
_LARGER: Final = (
    "What is the larger number of {items}?",
    "How many {items} has the one with more {items}?",
    "Which of the two numbers of {items} is larger?",
)
_SMALLER: Final = (
    "What is the smaller number of {items}?",
    "How many {items} has the one with less {items}?",
    "Which of the two numbers of {items} is smaller?",
)
_TWICE: Final = (
    "{name} has {a} {items} and {other} has twice as many {items}. How many {items} does {other} have?",
    "{name} has {a} {items}. {other} has two times {a} {items}. How many {items} does {other} have?",
    "There are {a} {items} in each of the two bags of {name}. How many {items} does {name} have?",
    "{name} finds {a} {items} and again {a} {items}. How many {items} does {name} find?",
)


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
    values = {
        "name": name, "other": pick_other(rng, words.NAMES, name), "a": a, "b": b, "items": rng.choice(words.ITEMS),
        "town": rng.choice(words.TOWNS),
    }  # fmt: skip
    query, steps = template.format_map(values), reasoning.format_map(values)
    return Draft(EXERCISE, script, phrased(rng, query), steps, str(result), f"result:{result}")


def _addition(rng: Random) -> Draft:
    a, b = rng.randint(2, _LARGEST), rng.randint(2, _LARGEST)
    template = f"{rng.choice(_MORE)} {rng.choice(_HOW_MANY)}"
    reasoning = f"We add the {{items}} of {{name}}: {a} + {b} = {a + b}."
    return _problem(rng, "addition", template, reasoning, a=a, b=b, result=a + b)


def _subtraction(rng: Random) -> Draft:
    b, rest = rng.randint(2, _LARGEST), rng.randint(2, _LARGEST)
    a = b + rest
    template = f"{rng.choice(_LESS)} {rng.choice(_HOW_MANY)}"
    reasoning = f"We take {{items}} from {{name}}: {a} - {b} = {rest}."
    return _problem(rng, "subtraction", template, reasoning, a=a, b=b, result=rest)


def _comparison(rng: Random) -> Draft:
    a, b = rng.sample(range(2, 2 * _LARGEST + 1), 2)
    larger, smaller = max(a, b), min(a, b)
    reasoning = f"We compare the {{items}} of {{name}} and {{other}}: {larger} > {smaller}."
    wants_larger = rng.random() < 0.5
    question = rng.choice(_LARGER if wants_larger else _SMALLER)
    template = f"{rng.choice(_COMPARED)} {question}"
    return _problem(rng, "comparison", template, reasoning, a=a, b=b, result=larger if wants_larger else smaller)


def _doubling(rng: Random) -> Draft:
    a = rng.randint(2, _LARGEST)
    reasoning = f"We double the {{items}} of {{name}}: {a} + {a} = {2 * a}."
    return _problem(rng, "doubling", rng.choice(_TWICE), reasoning, a=a, b=a, result=2 * a)

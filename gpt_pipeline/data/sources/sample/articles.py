"""The seed articles: made-up persons and villages, each with some facts that can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final, NamedTuple

from gpt_pipeline.data.sources.sample import words

N_ARTICLES: Final = 400
"""Articles that all English documents grow from; few enough that each is shared by many documents."""

URL_ROOT: Final = "https://example.org/sample"
"""A host that is reserved for examples (RFC 2606): the articles exist nowhere but here."""


class Fact(NamedTuple):
    """One kind of fact about a subject. All texts are format strings over an article's words."""

    field: str
    """The word that answers the questions."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    aim: str
    """What the questions ask for."""

    finding: str
    """The fact in the one form in which reasonings state it; a clause without its full stop."""


@dataclass(frozen=True, kw_only=True)
class Article:
    """A subject and what is known about it."""

    kind: str
    """`person` or `village`."""

    url: str
    text: str
    words: Mapping[str, str]
    """What the format strings name: `name` is the subject, `who` a person of the article, the others its values."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts that a subject of this kind has."""
        return FACTS[self.kind]


_PERSON: Final = (
    Fact(
        "job",
        (
            "{name} is a {job}.",
            "{name} works as a {job}.",
            "By day {name} is a {job}.",
            "{name} has the job of a {job}.",
            "For many years {name} has been a {job}.",
        ),
        (
            "What is the job of {name}?",
            "Which job does {name} have?",
            "What does {name} work as?",
            "What is {name} by trade?",
        ),
        "the job of {name}",
        "{name} is a {job}",
    ),
    Fact(
        "town",
        (
            "{name} lives in {town}.",
            "The home of {name} is in {town}.",
            "{town} is the home of {name}.",
            "{name} has a small flat in {town}.",
            "You can find {name} in {town}.",
        ),
        (
            "Where does {name} live?",
            "In which town does {name} live?",
            "Where is the home of {name}?",
            "Which town does {name} live in?",
        ),
        "the home of {name}",
        "{name} lives in {town}",
    ),
    Fact(
        "colour",
        (
            "{name} has a {colour} {thing}.",
            "The {thing} of {name} is {colour}.",
            "A {colour} {thing} belongs to {name}.",
            "{name} owns a {colour} {thing}.",
            "The {colour} {thing} is the one of {name}.",
        ),
        (
            "What colour is the {thing} of {name}?",
            "Which colour does the {thing} of {name} have?",
            "What is the colour of the {thing} of {name}?",
            "The {thing} of {name} has which colour?",
        ),
        "the colour of the {thing} of {name}",
        "the {thing} of {name} is {colour}",
    ),
    Fact(
        "animal",
        (
            "The pet of {name} is a {animal}.",
            "{name} has a {animal} as a pet.",
            "A {animal} lives with {name}.",
            "{name} keeps a {animal} at home.",
        ),
        (
            "Which pet does {name} have?",
            "What is the pet of {name}?",
            "Which animal lives with {name}?",
            "Which animal does {name} keep?",
        ),
        "the pet of {name}",
        "the pet of {name} is a {animal}",
    ),
    Fact(
        "food",
        (
            "{name} likes {food}.",
            "{name} eats {food} for lunch.",
            "The favourite food of {name} is {food}.",
            "{name} is very fond of {food}.",
            "For lunch {name} wants {food}.",
        ),
        (
            "What does {name} like to eat?",
            "Which food does {name} like?",
            "What is the favourite food of {name}?",
            "What does {name} eat for lunch?",
        ),
        "the food of {name}",
        "{name} likes {food}",
    ),
    Fact(
        "day",
        (
            "{name} is free on {day}.",
            "On {day} {name} does not work.",
            "{name} stays at home on {day}.",
            "The free day of {name} is {day}.",
        ),
        (
            "When is {name} free?",
            "On which day is {name} free?",
            "On which day does {name} not work?",
            "What is the free day of {name}?",
        ),
        "the free day of {name}",
        "{name} is free on {day}",
    ),
)

_VILLAGE: Final = (
    Fact(
        "colour",
        (
            "The tower of {name} is {colour}.",
            "{name} has a {colour} tower.",
            "In {name} there is a {colour} tower.",
            "A {colour} tower stands in {name}.",
        ),
        (
            "What colour is the tower of {name}?",
            "Which colour does the tower of {name} have?",
            "What is the colour of the tower of {name}?",
        ),
        "the colour of the tower of {name}",
        "the tower of {name} is {colour}",
    ),
    Fact(
        "day",
        (
            "The market of {name} is on {day}.",
            "{name} has a market on {day}.",
            "On {day} there is a market in {name}.",
            "Each {day} people come to the market of {name}.",
        ),
        (
            "When is the market of {name}?",
            "On which day is the market of {name}?",
            "Which day is the market day of {name}?",
        ),
        "the market day of {name}",
        "the market of {name} is on {day}",
    ),
    Fact(
        "food",
        (
            "{name} is known for its {food}.",
            "People come to {name} for the {food}.",
            "The best {food} is made in {name}.",
            "{name} sells {food}.",
        ),
        ("What is {name} known for?", "Which food does {name} sell?", "Which food is made in {name}?"),
        "the food of {name}",
        "{name} is known for {food}",
    ),
    Fact(
        "animal",
        (
            "The flag of {name} shows a {animal}.",
            "A {animal} is on the flag of {name}.",
            "{name} has a {animal} on its flag.",
        ),
        (
            "Which animal is on the flag of {name}?",
            "What does the flag of {name} show?",
            "Which animal does the flag of {name} show?",
        ),
        "the flag of {name}",
        "the flag of {name} shows a {animal}",
    ),
)

FACTS: Final[Mapping[str, tuple[Fact, ...]]] = {"person": _PERSON, "village": _VILLAGE}
SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {"person": words.NAMES, "village": words.VILLAGES}
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "job": words.JOBS,
    "town": words.TOWNS,
    "colour": words.COLOURS,
    "animal": words.ANIMALS,
    "food": words.FOODS,
    "day": words.DAYS,
    "month": words.MONTHS,
}
"""What a field can be; wrong options and second subjects are drawn from here."""


@cache
def articles(seed: int) -> tuple[Article, ...]:
    """Return the articles of all English documents: the same whatever number of documents is asked for."""
    rng = Random(f"sample articles {seed}")
    return tuple(_article(rng, number) for number in range(N_ARTICLES))


def _article(rng: Random, number: int) -> Article:
    kind = rng.choices(("person", "village"), weights=(3, 1))[0]
    values = {field: rng.choice(choices) for field, choices in VALUES.items()}
    name = rng.choice(SUBJECTS[kind])
    who = name if kind == "person" else rng.choice(words.NAMES)
    values |= {"name": name, "who": who, "thing": rng.choice(words.THINGS)}
    text = " ".join(rng.choice(fact.statements).format_map(values) for fact in FACTS[kind])
    return Article(kind=kind, url=f"{URL_ROOT}/en/{kind}-{name.lower()}-{number:04d}", text=text, words=values)

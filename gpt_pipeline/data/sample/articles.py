"""The seed articles: made-up persons, villages and ships, each with some facts that can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final, NamedTuple

from gpt_pipeline.data.sample import words

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
    finding: str
    """The fact in the one form in which reasonings state it; a clause without its full stop."""


@dataclass(frozen=True, kw_only=True)
class Article:
    """A subject and what is known about it."""

    kind: str
    """`person`, `village` or `ship`."""

    url: str
    text: str
    words: Mapping[str, str]
    """What the format strings of `facts` and of the exercises name."""

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
        "{name} is free on {day}",
    ),
    Fact(
        "month",
        (
            "{name} was born in {month}.",
            "The birthday of {name} is in {month}.",
            "Each {month} {name} turns one year older.",
            "{name} has a birthday in {month}.",
        ),
        (
            "When was {name} born?",
            "In which month was {name} born?",
            "When is the birthday of {name}?",
            "Which month is the birthday of {name} in?",
        ),
        "{name} was born in {month}",
    ),
    Fact(
        "number",
        (
            "{name} owns {number} {items}.",
            "In the bag of {name} are {number} {items}.",
            "{name} keeps {number} {items} in a box.",
            "There are {number} {items} in the room of {name}.",
        ),
        (
            "How many {items} does {name} own?",
            "How many {items} are there?",
            "What is the number of {items}?",
            "How many {items} does {name} have?",
        ),
        "{name} has {number} {items}",
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
        (
            "What is {name} known for?",
            "Which food does {name} sell?",
            "Which food is made in {name}?",
        ),
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
        "the flag of {name} shows a {animal}",
    ),
    Fact(
        "month",
        (
            "The feast of {name} is in {month}.",
            "{name} has a feast in {month}.",
            "In {month} there is a feast in {name}.",
        ),
        (
            "When is the feast of {name}?",
            "In which month is the feast of {name}?",
            "Which month is the feast of {name} in?",
        ),
        "the feast of {name} is in {month}",
    ),
    Fact(
        "number",
        (
            "{name} has {number} bridges.",
            "There are {number} bridges in {name}.",
            "In {name} you can see {number} bridges.",
        ),
        (
            "How many bridges does {name} have?",
            "How many bridges are there in {name}?",
            "What is the number of bridges in {name}?",
        ),
        "{name} has {number} bridges",
    ),
)

_SHIP: Final = (
    Fact(
        "town",
        (
            "The ship {name} goes to {town}.",
            "The ship {name} is on its way to {town}.",
            "The next stop of the ship {name} is {town}.",
        ),
        (
            "Where does the ship {name} go?",
            "Which town does the ship {name} go to?",
            "To which town does the ship {name} go?",
        ),
        "the ship {name} goes to {town}",
    ),
    Fact(
        "food",
        (
            "The ship {name} carries {food}.",
            "The ship {name} is full of {food}.",
            "There is {food} on the ship {name}.",
        ),
        (
            "What does the ship {name} carry?",
            "What is on the ship {name}?",
            "Which food does the ship {name} carry?",
        ),
        "the ship {name} carries {food}",
    ),
    Fact(
        "captain",
        (
            "The captain of the ship {name} is {captain}.",
            "{captain} is the captain of the ship {name}.",
            "The ship {name} has a captain, {captain}.",
        ),
        (
            "Who is the captain of the ship {name}?",
            "What is the name of the captain of the ship {name}?",
            "Which captain does the ship {name} have?",
        ),
        "the captain of the ship {name} is {captain}",
    ),
    Fact(
        "colour",
        (
            "The ship {name} is {colour}.",
            "The ship {name} has {colour} sails.",
            "They painted the ship {name} {colour}.",
        ),
        (
            "What colour is the ship {name}?",
            "Which colour does the ship {name} have?",
            "What is the colour of the ship {name}?",
        ),
        "the ship {name} is {colour}",
    ),
    Fact(
        "day",
        (
            "The ship {name} leaves on {day}.",
            "On {day} the ship {name} leaves.",
            "The ship {name} waits until {day}.",
        ),
        (
            "When does the ship {name} leave?",
            "On which day does the ship {name} leave?",
            "Which day does the ship {name} leave on?",
        ),
        "the ship {name} leaves on {day}",
    ),
)

FACTS: Final[Mapping[str, tuple[Fact, ...]]] = {"person": _PERSON, "village": _VILLAGE, "ship": _SHIP}
SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "person": words.NAMES,
    "village": words.VILLAGES,
    "ship": words.SHIPS,
}
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "job": words.JOBS,
    "town": words.TOWNS,
    "colour": words.COLOURS,
    "animal": words.ANIMALS,
    "food": words.FOODS,
    "day": words.DAYS,
    "month": words.MONTHS,
    "captain": words.NAMES,
    "number": tuple(str(number) for number in range(2, 13)),
}
"""What a field can be; wrong options and second subjects are drawn from here."""


@cache
def articles(seed: int) -> tuple[Article, ...]:
    """Return the articles of all English documents: the same whatever number of documents is asked for."""
    rng = Random(f"sample articles {seed}")
    return tuple(_article(rng, number) for number in range(N_ARTICLES))


def _article(rng: Random, number: int) -> Article:
    kind = rng.choices(("person", "village", "ship"), weights=(6, 2, 2))[0]
    values = {field: rng.choice(choices) for field, choices in VALUES.items()}
    values |= {
        "name": rng.choice(SUBJECTS[kind]),
        "thing": rng.choice(words.THINGS),
        "items": rng.choice(words.ITEMS),
    }
    text = " ".join(rng.choice(fact.statements).format_map(values) for fact in FACTS[kind])
    return Article(
        kind=kind, url=f"{URL_ROOT}/en/{kind}-{values['name'].lower()}-{number:04d}", text=text, words=values
    )

"""What does not stand in the question and has to be remembered: `memorization`."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

from gpt_pipeline.data.sources.sample import words
from gpt_pipeline.data.sources.sample.articles import Article
from gpt_pipeline.data.sources.sample.draft import Draft, phrased


class _Topic(NamedTuple):
    """Pairs of which the first is asked for and the second is the answer."""

    script: str
    pairs: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]
    reasoning: str


def _both_ways(pairs: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return pairs + tuple(pair[::-1] for pair in pairs)


def _following(cycle: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(zip(cycle, cycle[1:] + cycle[:1], strict=True))


_AFTER: Final = ("Which {unit} comes after {0}?", "What comes after {0}?", "{0} is over, which {unit} is next?")
_TOPICS: Final = (
    _Topic(
        "opposite",
        _both_ways(words.OPPOSITES),
        (
            "What is the opposite of {0}?",
            "Which word is the opposite of {0}?",
            "Find the opposite of {0}.",
            "What do you call the opposite of {0}?",
            "Not {0}, but what?",
        ),
        "the opposite of {0}. The opposite of {0} is {1}.",
    ),
    _Topic(
        "capital",
        words.CAPITALS,
        (
            "What is the capital of {0}?",
            "Which town is the capital of {0}?",
            "Find the capital of {0}.",
            "Which capital does {0} have?",
        ),
        "the capital of {0}. The capital of {0} is {1}.",
    ),
    _Topic(
        "young",
        words.YOUNG,
        (
            "What is the young of a {0}?",
            "What do you call a young {0}?",
            "Which word means a young {0}?",
            "How do we call the baby of a {0}?",
        ),
        "the young of a {0}. The young of a {0} is a {1}.",
    ),
    _Topic(
        "plural",
        words.PLURALS,
        (
            "What is the plural of {0}?",
            "One {0}, but two what?",
            "Which word means more than one {0}?",
            "Find the plural of {0}.",
        ),
        "the plural of {0}. The plural of {0} is {1}.",
    ),
    _Topic(
        "typical colour",
        words.TYPICAL_COLOURS,
        ("What colour is {0}?", "Which colour does {0} have?", "What is the colour of {0}?", "How does {0} look?"),
        "the colour of {0}. The colour of {0} is {1}.",
    ),
    _Topic(
        "past",
        words.VERBS,
        (
            "What is the past of {0}?",
            "Today she {0}, what did she do in the past?",
            "Which word is the past of {0}?",
            "Find the past of {0}.",
        ),
        "the past of {0}. The past of {0} is {1}.",
    ),
    _Topic(
        "next day",
        _following(words.DAYS),
        tuple(text.replace("{unit}", "day") for text in _AFTER),
        "the day after {0}. The day after {0} is {1}.",
    ),
    _Topic(
        "next month",
        _following(words.MONTHS),
        tuple(text.replace("{unit}", "month") for text in _AFTER),
        "the month after {0}. The month after {0} is {1}.",
    ),
)
_WEIGHTS: Final = tuple(len(topic.pairs) ** 0.5 for topic in _TOPICS)

_ASKERS: Final = (
    "{who} the {job} asks: {question} Answer {who}.",
    "{who} is a {job}. {who} wants to know: {question}",
    "{who} lives in {town}. {who} asks: {question}",
    "{who} from {town} asks: {question} What do you tell {who}?",
    "{who} does not know it: {question} Help {who}.",
    "{who} says on {day}: {question} {who} waits.",
    "The friends of {who} ask {who}: {question}",
    "In {month} {who} asked: {question} {who} was in {town}.",
)


def memorization(rng: Random, article: Article) -> Draft:
    """Return a question of common knowledge, asked by someone of the article."""
    topic = rng.choices(_TOPICS, weights=_WEIGHTS)[0]
    pair = rng.choice(topic.pairs)
    question = rng.choice(topic.questions).format(*pair)
    query = rng.choice(_ASKERS).format_map({**article.words, "question": question})
    return Draft(
        "memorization",
        topic.script,
        phrased(rng, query),
        f"{article.words['who']} wants {topic.reasoning.format(*pair)}",
        pair[1],
    )

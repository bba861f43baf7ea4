"""Questions whose answer stands in the question: `rag` asks for a fact, `mcq` for one of three options."""

from __future__ import annotations

from random import Random
from typing import Final

from gpt_pipeline.data.sources.sample import words
from gpt_pipeline.data.sources.sample.articles import SUBJECTS, VALUES, Article, Fact
from gpt_pipeline.data.sources.sample.draft import Draft, phrased, pick_other

_FRAMES: Final = (
    "{text} {question}",
    "{text} {question}",
    "{text} {question}",
    "Text: {text} {question}",
    "Read this: {text} {question}",
    "I read this: {text} {question}",
    "{question} Here is the text: {text}",
    "{question} Use this text: {text}",
    "From the text: {text} {question}",
)
_OPTIONS: Final = ("{0} (A), {1} (B) or {2} (C)?", "{0} (A), {1} (B), {2} (C)?")
_HELP: Final = ("Help {}.", "Answer {}.", "What do you tell {}?")
_WHICH: Final = (
    "Which of these is {kind}:",
    "Which one is {kind}:",
    "Which word names {kind}:",
    "What is {kind}:",
    "Only one of these is {kind}, which one:",
)


def rag(rng: Random, article: Article) -> Draft:
    """Return a question about one of up to two facts about the article's subject, or about one of two subjects."""
    fact, second = rng.sample(article.facts, 2)
    chance = rng.random()
    statements = [_stated(rng, article, fact)]
    script = "one fact"
    if chance < 0.2:
        statements.append(_of_another(rng, article, fact))
        script = "one of two subjects"
    elif chance < 0.6:
        statements.append(_stated(rng, article, second))
        script = "one of two facts"
    rng.shuffle(statements)
    query = rng.choice(_FRAMES).format(text=" ".join(statements), question=_asked(rng, article, fact))
    return Draft("rag", script, phrased(rng, query), _found(article, fact) + ".", article.words[fact.field])


def mcq(rng: Random, article: Article) -> Draft:
    """Return a multiple choice question: about a fact of the article, or about what kind of thing a word names."""
    return _choice_of_fact(rng, article) if rng.random() < 0.5 else _choice_of_kind(rng, article)


def _choice_of_fact(rng: Random, article: Article) -> Draft:
    fact = rng.choice(article.facts)
    right = article.words[fact.field]
    options, letter = _options(rng, right, VALUES[fact.field])
    question = _asked(rng, article, fact).replace("?", ":")
    query = f"{_stated(rng, article, fact)} {question} {options}"
    reasoning = f"{_found(article, fact)} ({letter})."
    return Draft("mcq", "choice of a fact", phrased(rng, query), reasoning, letter)


def _choice_of_kind(rng: Random, article: Article) -> Draft:
    kind = rng.choice(tuple(words.KINDS))
    right = rng.choice(words.KINDS[kind])
    others = words.KINDS[pick_other(rng, tuple(words.KINDS), kind)]
    options, letter = _options(rng, right, others)
    who = article.words["who"]
    query = f"{who} asks: {rng.choice(_WHICH).format(kind=kind)} {options} {rng.choice(_HELP).format(who)}"
    return Draft(
        "mcq", "choice of a kind", phrased(rng, query), f"{who} wants {kind}. The answer is {right} ({letter}).", letter
    )


def _options(rng: Random, right: str, wrong: tuple[str, ...]) -> tuple[str, str]:
    """Return the text of three options, of which one is right, and its letter."""
    first = pick_other(rng, wrong, right)
    second = first
    while second in (first, right):
        second = rng.choice(wrong)
    place = rng.randrange(3)
    options = [first, second]
    options.insert(place, right)
    return rng.choice(_OPTIONS).format(*options), "ABC"[place]


def _stated(rng: Random, article: Article, fact: Fact) -> str:
    return rng.choice(fact.statements).format_map(article.words)


def _asked(rng: Random, article: Article, fact: Fact) -> str:
    return rng.choice(fact.questions).format_map(article.words)


def _found(article: Article, fact: Fact) -> str:
    return f"We want {fact.aim}. We read that {fact.finding}".format_map(article.words)


def _of_another(rng: Random, article: Article, fact: Fact) -> str:
    """Return the same fact about another subject, with another value."""
    other = dict(article.words)
    other["name"] = pick_other(rng, SUBJECTS[article.kind], article.words["name"])
    other[fact.field] = pick_other(rng, VALUES[fact.field], article.words[fact.field])
    return rng.choice(fact.statements).format_map(other)

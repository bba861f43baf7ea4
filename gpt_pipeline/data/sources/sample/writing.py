"""Texts to write or to change: `editing` and `constrained writing`, which have no reasoning, and `creative writing`."""

from __future__ import annotations

from random import Random
from typing import Final

from gpt_pipeline.data.sources.sample import words
from gpt_pipeline.data.sources.sample.articles import VALUES, Article
from gpt_pipeline.data.sources.sample.draft import Draft, phrased, pick_other

_REPLACE: Final = (
    "Replace {old} with {new}: {sentence}",
    "Change {old} to {new}: {sentence}",
    "Put {new} in the place of {old}: {sentence}",
    "Write {new} for {old} in this text: {sentence}",
    "Edit this text, {old} should be {new}: {sentence}",
)
_PAST: Final = (
    "Put this into the past: {sentence}",
    "Write this in the past: {sentence}",
    "Change this to the past: {sentence}",
    "Edit this text, it was long ago: {sentence}",
)
_TWICE: Final = (
    "One word stands there twice, remove it: {sentence}",
    "Remove the word that is there twice: {sentence}",
    "Correct this text: {sentence}",
    "Edit this text, a word is there twice: {sentence}",
)
_WITH_WORDS: Final = (
    "Write a sentence with the words {0} and {1}.",
    "Use {0} and {1} in one sentence.",
    "Make a short sentence of {0} and {1}.",
    "One sentence, please, with {0} and {1}.",
    "Write a text of one line with {0} and {1} in it.",
    "A sentence about {0} and {1}, please.",
    "Which sentence has both {0} and {1} in it?",
)
_PATTERNS: Final = (
    ("thing", "colour", "The {thing} is {colour}."),
    ("who", "food", "{who} likes {food}."),
    ("who", "town", "{who} lives in {town}."),
    ("animal", "town", "The {animal} goes to {town}."),
    ("animal", "food", "The {animal} eats {food}."),
    ("who", "day", "{who} is free on {day}."),
)
_CHOICES: Final = {**VALUES, "thing": words.THINGS}
_TITLE: Final = (
    "{who} needs a title for a story about a {animal} and a {thing}. Help {who}.",
    "What is a good title for the tale of {who} about a {animal} and a {thing}?",
    "{who} wrote about a {animal} and a {thing}. Give {who} a title.",
    "{who} from {town} tells of a {animal} and a {thing}. Find a title for {who}.",
    "A {animal} and a {thing} are in the new book of {who}. {who} wants a title.",
    "Find a title: {who} wrote of a {animal} and a {thing}.",
)
_LINE: Final = (
    "Write a line about a {animal} in {town} for {who}.",
    "{who} needs the first line of a story about a {animal} in {town}. Help {who}.",
    "A {animal} comes to {town}. Write one line of a story for {who}.",
    "Tell {who} a story of one line about a {animal} in {town}.",
    "{who} saw a {animal} in {town}. Write a line about it for {who}.",
)
_MOODS: Final = ("happy", "sad", "quiet", "dark", "strong")
_ENDINGS: Final = (
    "and it sang all night.",
    "and it found a {colour} {thing}.",
    "and it wanted some {food}.",
    "and it waited for {who}.",
    "and on {day} it was gone.",
)


def editing(rng: Random, article: Article) -> Draft:
    """Return a sentence to change in a given way."""
    chance = rng.random()
    if chance < 0.5:
        return _replacement(rng, article)
    return _into_the_past(rng, article) if chance < 0.75 else _doubled_word(rng, article)


def constrained_writing(rng: Random, article: Article) -> Draft:
    """Return a sentence to be made of two given words."""
    first, second, pattern = rng.choice(_PATTERNS)
    known = article.words
    pair = [known[first], known[second]]
    rng.shuffle(pair)
    query = phrased(rng, rng.choice(_WITH_WORDS).format(*pair))
    answer = pattern.format_map(known)
    return Draft("constrained writing", "two words", query, "", answer, f"words:{pair[0]},{pair[1]}")


def creative_writing(rng: Random, article: Article) -> Draft:
    """Return a title to find or a line to write; of lines there is more than one good one."""
    known = article.words
    if rng.random() < 0.75:
        query = rng.choice(_TITLE).format_map(known)
        reasoning = "{who} wants a title. It names the {animal} and the {thing}.".format_map(known)
        answer = "The {animal} and the {thing}".format_map(known)
        return Draft("creative writing", "title", phrased(rng, query), reasoning, answer)
    query = rng.choice(_LINE).format_map(known)
    mood = rng.choice(_MOODS)
    answer = f"A {mood} {{animal}} came to {{town}} {rng.choice(_ENDINGS)}".format_map(known)
    return Draft(
        "creative writing",
        "line",
        phrased(rng, query),
        f"{{who}} wants a line about a {{animal}} in {{town}}. The {{animal}} is {mood}.".format_map(known),
        answer,
    )


def _replacement(rng: Random, article: Article) -> Draft:
    known = article.words
    first, second, pattern = rng.choice(_PATTERNS)
    field = rng.choice([field for field in (first, second) if field != "who"])
    old = known[field]
    new = pick_other(rng, _CHOICES[field], old)
    query = rng.choice(_REPLACE).format(old=old, new=new, sentence=pattern.format_map(known))
    return Draft("editing", "replace a word", phrased(rng, query), "", pattern.format_map({**known, field: new}))


def _into_the_past(rng: Random, article: Article) -> Draft:
    known = article.words
    present, past = rng.choice(words.VERBS)
    place = rng.choice(("in {town}", "by the {thing}", "on {day}"))
    sentence = f"{{who}} {{verb}} {place}."
    query = rng.choice(_PAST).format(sentence=sentence.format_map({**known, "verb": present}))
    return Draft("editing", "into the past", phrased(rng, query), "", sentence.format_map({**known, "verb": past}))


def _doubled_word(rng: Random, article: Article) -> Draft:
    sentence = rng.choice(_PATTERNS)[2].format_map(article.words)
    parts = sentence.split()
    place = rng.randrange(1, len(parts) - 1)
    doubled = " ".join([*parts[: place + 1], *parts[place:]])
    query = rng.choice(_TWICE).format(sentence=doubled)
    return Draft("editing", "remove a doubled word", phrased(rng, query), "", sentence)

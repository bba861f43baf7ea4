"""Compare texts: in a normal form, and by the option of a multiple-choice question that an answer takes."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

_FIRST = "A"
_MIN_OPTIONS = 2

# `A) red`, `(a) red`, `- **B.** blue`: one option a line.
_OPTION_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]+)?[*_]*\(?([A-Za-z])[).:][*_]*[ \t]+(\S.*)$", re.MULTILINE)
# `red (A), blue (B) or green (C)?`: the letter after its option, followed by an end or a conjunction only.
_LETTER_AFTER = re.compile(r"\(([A-Z])\)(?=\s*(?:[,;.:?!]|$|or\b|and\b))")
# `A) red, B) blue`: the letter before its option, all in one line.
_LETTER_BEFORE = re.compile(r"(?<![\w(])\(?([A-Z])\)[ \t]+(?=\S)")
_OPTION_BEGIN = re.compile(r"[:?.;\n]\s")
# Each run of blanks below is looked at once, else a text of many takes time with the square of their number.
_LINK = re.compile(r"^(?:or|and)\s+|(?<!\s)\s+(?:or|and)$")

_ONLY_LETTER = re.compile(r"\W*(?:(?:option|answer|choice)\W+)?([A-Za-z])\W*", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n[\s*_]+")
_LABEL = re.compile(r"^[\s*_]*(?:\(([A-Z])\)|([A-Z])[).:](?=[\s*_]|$))", re.MULTILINE)
_STATED = re.compile(r"\banswer(?:\s+is|\s*:)[\s\"'(*_]*(?:option\s+)?([A-Z])\b(?!\s+[a-z])")
_NAMED = re.compile(r"\b[Oo]ption\s+[\"'(*_]*([A-Z])\b")
_BRACKETED = re.compile(r"\(([A-Z])\)")


def normalise(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, words separated by one space.

    The normalisation of SQuAD (Rajpurkar et al. 2016). A text of nothing but punctuation and articles keeps them, so
    that two different formulas do not both become "".
    """
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return " ".join(plain) if plain else " ".join(text.lower().split())


def options_of(query: str) -> dict[str, str]:
    """Return the options that `query` offers by letter, in order; empty if it is not a multiple-choice question."""
    for found in (_on_lines(query), _letters_after(query), _letters_before(query)):
        options = _longest_run(found)
        if len(options) >= _MIN_OPTIONS:
            return options
    return {}


def chosen_option(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the one option that `answer` takes, by letter or by text; None if it is ambiguous."""
    if found := _ONLY_LETTER.fullmatch(answer):
        return _if_one([found.group(1).upper()], options)
    labels = [one or other for one, other in _LABEL.findall(_BLANK_LINES.sub("\n", answer))]
    if labels:
        return _if_one(labels, options)
    if stated := _STATED.findall(answer):
        return _if_one(stated[-1:], options)  # the last word counts
    for pattern in (_BRACKETED, _NAMED):
        if letters := pattern.findall(answer):
            return _if_one(letters, options)
    return _if_one(_options_in(answer, options), options)


def choice_match(answer: str, *, query: str, expected: str) -> bool | None:
    """Whether `answer` takes the option that `expected` takes; None if `query` is not a multiple-choice question."""
    options = options_of(query)
    right = chosen_option(expected, options) if options else None
    return None if right is None else chosen_option(answer, options) == right


def _on_lines(query: str) -> list[tuple[str, str]]:
    return [(letter.upper(), _plain(text)) for letter, text in _OPTION_LINE.findall(query)]


def _letters_after(query: str) -> list[tuple[str, str]]:
    found = []
    begin = 0
    for marker in _LETTER_AFTER.finditer(query):
        text = query[begin : marker.start()]
        if marker.group(1) == _FIRST:  # the question precedes the first option
            text = _OPTION_BEGIN.split(text)[-1]
        found.append((marker.group(1), _plain(text)))
        begin = marker.end()
    return found


def _letters_before(query: str) -> list[tuple[str, str]]:
    markers = list(_LETTER_BEFORE.finditer(query))
    ends = [*(marker.start() for marker in markers[1:]), len(query)][: len(markers)]
    texts = [query[marker.end() : end].partition("\n")[0] for marker, end in zip(markers, ends, strict=True)]
    return [(marker.group(1), _plain(text)) for marker, text in zip(markers, texts, strict=True)]


def _longest_run(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the longest run in `found` whose letters are A, B, C, ... and whose options all have a text."""
    longest: dict[str, str] = {}
    run: dict[str, str] = {}
    for letter, text in found:
        if letter == _FIRST:
            run = {}
        if text and letter == chr(ord(_FIRST) + len(run)):
            run[letter] = text
        if len(run) > len(longest):
            longest = dict(run)
    return longest


def _plain(text: str) -> str:
    """Return an option without the punctuation and the `or` that join it to the next."""
    return _LINK.sub("", text.strip(" \t\n,;.:?!*_")).strip(" ,;")


def _if_one(letters: Iterable[str], options: Mapping[str, str]) -> str | None:
    """Return the letter if all of `letters` name the same option."""
    different = set(letters)
    return different.pop() if len(different) == 1 and different <= options.keys() else None


def _options_in(answer: str, options: Mapping[str, str]) -> list[str]:
    """Return the letters of the options whose text occurs in `answer`; `dark red` does not count as `red` too."""
    words = f" {normalise(answer)} "
    present = {letter: f" {normalise(text)} " for letter, text in options.items()}
    present = {letter: text for letter, text in present.items() if text in words}
    return [
        letter
        for letter, text in present.items()
        if not any(text in other and text != other for other in present.values())
    ]

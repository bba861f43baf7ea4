"""Runs of five words, against the same in plain Python."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.documents.shingles import WORDS, shingles


def words(text: str) -> list[str]:
    found = [""]
    for character in text:
        if ord(character) >= 0x800:
            found += [character, ""]
        elif character.isascii() and not character.isalnum():
            found.append("")
        else:
            found[-1] += character.lower() if character.isascii() else character
    return [word for word in found if word]


def plain_shingles(text: str) -> list[tuple[str, ...]]:
    own = words(text)
    return [tuple(own[at : at + WORDS]) for at in range(max(1, len(own) - WORDS + 1))] if own else []


def hashed(texts: list[str]) -> list[list[int]]:
    hashes, ends = shingles(pa.array(texts, pa.string()))
    return [hashes[first:last].tolist() for first, last in itertools.pairwise(ends)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="aBb9 .,é日😀ßЖ\u200b", max_size=40), max_size=8))
@example([])
@example(["", "", "one two three four five six", "", "."])
@example(["日本語です。abc日本é日 q", "don’t do"])
def test_shingles_are_those_of_the_words_with_one_hash_each(texts: list[str]) -> None:
    hashes: dict[tuple[str, ...], int] = {}
    for text, own in zip(texts, hashed(texts), strict=True):
        assert len(own) == len(plain_shingles(text))
        for shingle, found in zip(plain_shingles(text), own, strict=True):
            assert hashes.setdefault(shingle, found) == found
    assert len(set(hashes.values())) == len(hashes)


def test_shingles_of_a_slice_are_those_of_its_texts() -> None:
    texts = [f"text number {number} of some that say nothing" for number in range(9)]
    whole = pa.array(texts, pa.string())
    hashes, ends = shingles(whole.slice(3, 4))
    assert [hashes[a:b].tolist() for a, b in itertools.pairwise(ends)] == hashed(texts)[3:7]


@pytest.mark.parametrize("text", ["ein Wort", "a" * 3_000_000])
def test_shingle_of_few_words_or_a_long_one_is_one(text: str) -> None:
    assert len(hashed([text])[0]) == 1

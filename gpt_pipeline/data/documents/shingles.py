"""Texts as sets of shingles: each run of five words, hashed. N bytes, W words, S shingles of some texts together.

What stands between words does not count, nor do capitals from A to Z. Each character from U+0800 on, as of Chinese,
Japanese and Thai, which have no spaces, is a word by itself.

The hash of a word is a polynomial of its bytes modulo 2^64, for all words by one running product and one sum; that of a
shingle is one of its words' hashes. The same on every machine: whole numbers alone, by numpy.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.columns import Indices, text_bounds, text_bytes

WORDS = 5
"""Words in a shingle, as in Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better"."""

Numbers = NDArray[np.uint64]

_MAX_BYTES = 1 << 20  # of a text; see `MAX_DOCUMENT_BYTES`
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_WORD_BASE = np.uint64(0xD1342543DE82EF95)


def shingles(texts: pa.StringArray) -> tuple[Numbers, Indices]:
    """Return the hashes of the shingles of all texts, and where those of each begin: uint64 [S], int64 [texts + 1].

    A text of fewer than five words has one shingle, of all its words; one without words has none. There are no nulls,
    and at most `_MAX_BYTES` of all texts but one.
    """
    bounds = text_bounds(texts).astype(np.int64)
    letters = text_bytes(texts)[bounds[0] : bounds[-1]]
    bounds -= bounds[0]
    starts = _word_starts(letters, bounds)
    words = _word_hashes(letters, starts)
    firsts = np.searchsorted(starts, bounds)  # of the words of each text
    counts = np.diff(firsts)
    sizes = np.where(counts > 0, np.maximum(counts - WORDS + 1, 1), 0)
    ends = np.append(0, np.cumsum(sizes))
    place = np.arange(ends[-1]) + np.repeat(firsts[:-1] - ends[:-1], sizes)
    return _shingle_hashes(words, place, np.repeat(firsts[1:], sizes)), ends


def _word_starts(letters: NDArray[np.uint8], bounds: Indices) -> Indices:
    """Return where words begin."""
    is_word = _tables()[1][letters]
    continues = (letters & 0xC0) == 0x80  # a byte within a character
    before = np.zeros(len(letters), np.bool_)  # whether the byte belongs to the word of the one before it
    before[1:] = is_word[:-1]
    before[letters >= 0xE0] = False
    behind_long = ~continues[2:] & continues[1:-1] & continues[:-2]  # the character before has three bytes or four
    before[2:][behind_long] = False
    before[bounds[:-1][bounds[:-1] < len(letters)]] = False
    starts: Indices = np.flatnonzero(is_word & ~before)
    return starts


def _word_hashes(letters: NDArray[np.uint8], starts: Indices) -> Numbers:
    if not len(starts):
        return np.empty(0, np.uint64)
    powers, inverses = _powers(len(letters))
    values = _tables()[0][letters]
    values *= powers
    sums = np.add.reduceat(values, starts)
    sums *= inverses[starts]
    return mixed(sums)


def _shingle_hashes(words: Numbers, place: Indices, ends: Indices) -> Numbers:
    """Return the hash of the words from each place on, up to the fifth or the text's end."""
    hashes = words[place]
    padded = np.append(words, np.zeros(WORDS, np.uint64))
    for further in range(1, WORDS):
        hashes *= _WORD_BASE
        hashes += np.where(place + further < ends, padded[place + further], np.uint64(0))
    return mixed(hashes)


def mixed(values: Numbers) -> Numbers:
    """Return other numbers for these, one for one, each bit of which depends on all of theirs.

    The last step of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators").
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _tables() -> tuple[Numbers, NDArray[np.bool_]]:
    """Return by byte: its value in a word's hash, 0 outside words; and whether it belongs to a word."""
    kinds = np.arange(256)
    capitals = (kinds >= ord("A")) & (kinds <= ord("Z"))
    is_word = (kinds >= 0x80) | capitals | ((kinds >= ord("a")) & (kinds <= ord("z")))
    is_word |= (kinds >= ord("0")) & (kinds <= ord("9"))
    values = mixed((np.where(capitals, kinds + 32, kinds).astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE))
    return np.where(is_word, values, np.uint64(0)), is_word


def _powers(count: int) -> tuple[Numbers, Numbers]:
    """Return the first powers of the base, and their inverses, modulo 2^64."""
    powers, inverses = _all_powers(max(_MAX_BYTES, 1 << (count - 1).bit_length()))
    return powers[:count], inverses


@cache
def _all_powers(count: int) -> tuple[Numbers, Numbers]:
    both = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.ones(count, np.uint64)
        known = 1
        while known < count:  # doubles what is known
            powers[known : 2 * known] = powers[:known] * np.uint64(pow(base, known, 1 << 64))
            known *= 2
        both.append(powers)
    return both[0], both[1]

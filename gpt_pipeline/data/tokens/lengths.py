"""Documents by length: the bins that are counted, and what can be read from the counts."""

from __future__ import annotations

from collections.abc import Sequence

LENGTH_EDGES = (1, *(round(2 ** (half / 2)) for half in range(6, 41)), 1 << 21)
"""Limits of the bins, tokens: powers of the square root of 2 from 8 to 2^20, so that counts of files can be added."""


def quantile(counts: Sequence[int], share: float) -> int:
    """Return a number of tokens that `share` of the documents do not exceed: the upper limit of the bin it falls in."""
    wanted, seen = share * sum(counts), 0
    for count, edge in zip(counts, LENGTH_EDGES[1:], strict=True):
        seen += count
        if seen >= wanted:
            return edge
    return LENGTH_EDGES[-1]

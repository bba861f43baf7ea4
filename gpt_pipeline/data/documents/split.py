"""On which side of the split between training and validation a document falls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable


def is_held_out(article: str, *, seed: int, fraction: float) -> bool:
    """Whether the documents of `article` are for validation and evaluation only, never for training.

    Decided by a hash of the article alone, so that a document keeps its side when others are added, and a larger
    `fraction` holds out a superset.
    """
    return hold_out(seed=seed, fraction=fraction)(article)


def hold_out(*, seed: int, fraction: float) -> Callable[[str], bool]:
    """Return `is_held_out` for many articles, at a quarter of the time for each."""
    limit = math.ceil(fraction * 2.0**64)
    if limit >> 64:
        return lambda article: True
    smallest_kept = limit.to_bytes(8, "big")
    begun = hashlib.blake2b(f"{seed}\n".encode(), digest_size=8)

    def is_held_out(article: str) -> bool:
        digest = begun.copy()
        digest.update(article.encode())
        return digest.digest() < smallest_kept

    return is_held_out

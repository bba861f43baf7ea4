"""A normal form of texts, in which two ways to write one answer are equal."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, words separated by one space.

    The normalisation of SQuAD (Rajpurkar et al. 2016). A text of nothing but punctuation and articles keeps them, so
    that two different formulas do not both become "".
    """
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return " ".join(plain) if plain else " ".join(text.lower().split())

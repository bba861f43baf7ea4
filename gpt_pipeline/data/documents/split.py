"""On which side of the split between training and validation a document falls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.columns import Flags, int32s, of_flags
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.files import read_documents


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


def held_out_rows(groups: pa.StringArray, is_held_out: Callable[[str], bool]) -> Flags:
    """Return which documents, of these groups, are held out: bool [documents]; each group is hashed once."""
    distinct = groups.dictionary_encode()
    sides = np.array([is_held_out(name) for name in distinct.dictionary.to_pylist()], np.bool_)
    return sides[int32s(distinct.indices)]


def read_side(
    files: Iterable[Path],
    columns: Sequence[str],
    data: DataConfig,
    *,
    held_out: bool,
    batch_rows: int,
    among: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield `columns`, `group` among them, of the documents on one side, in order, at most `batch_rows` at a time.

    `among` so many first documents of both sides, which alone are read; None: all.
    """
    is_held_out = hold_out(seed=data.seed, fraction=data.validation_fraction)
    for whole in read_documents(files, columns, batch_rows=batch_rows):
        batch = whole.slice(0, among)
        among = None if among is None else among - batch.num_rows
        chosen = held_out_rows(batch["group"], is_held_out) == held_out
        if chosen.any():
            yield batch.filter(of_flags(chosen))
        if among == 0:
            return

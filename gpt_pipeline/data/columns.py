"""Arrow's columns as numpy's arrays and back, by their buffers.

Arrow's own ways between the two, and from Python's values to its own, import pandas, which costs each worker a fifth of
a second and 30 MB.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

Hashes = NDArray[np.uint64]
"""[2, texts]: the hash of each text as its upper and its lower half."""

_HASH_BYTES = 16  # two different texts with one hash: 1 in 10^23 among 63 million, which SYNTH has in English


def of_indices(values: Indices) -> pa.Int64Array:
    """Return the same numbers as a column, not copied."""
    values = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def of_int32s(values: NDArray[np.int32], *, where: Flags | None = None) -> pa.Int32Array:
    """Return the same numbers as a column, not copied; null but for `where`."""
    values = np.ascontiguousarray(values, np.int32)
    return pa.Array.from_buffers(
        pa.int32(), len(values), [None if where is None else _packed(where), pa.py_buffer(values)]
    )


def of_flags(values: Flags) -> pa.BooleanArray:
    """Return the same truths as a column."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _packed(values)])


def text_value(text: str | None) -> pa.StringScalar:
    """Return a text, or the null that is none, as Arrow has it."""
    letters = (text or "").encode()
    bounds = pa.py_buffer(np.array([0, len(letters)], np.int32))
    validity = _packed(np.array([text is not None]))
    return pa.Array.from_buffers(pa.string(), 1, [validity, bounds, pa.py_buffer(letters)])[0]


def of_texts(texts: Sequence[bytes | None]) -> pa.StringArray:
    """Return texts, which need not be valid UTF-8, as a column."""
    sizes = np.fromiter((len(text or b"") for text in texts), np.int64, len(texts))
    bounds = np.append(0, np.cumsum(sizes)).astype(np.int32)
    is_given = np.fromiter((text is not None for text in texts), np.bool_, len(texts))
    validity = None if is_given.all() else _packed(is_given)
    letters = pa.py_buffer(b"".join(text for text in texts if text))
    return pa.Array.from_buffers(pa.string(), len(texts), [validity, pa.py_buffer(bounds), letters])


def as_json(value: Any) -> bytes:
    """Return a list or an object as JSON, whose texts need not be valid UTF-8; what JSON has no form for as text."""
    return json.dumps(value, ensure_ascii=False, default=_as_text).encode("utf-8", "surrogatepass")


def _as_text(value: object) -> str:
    """Return text that parquet or Arrow holds as bytes, and of other values what Python says of them."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def lists_as_json(column: pa.Array) -> pa.StringArray:
    """Return each list of a column as JSON; one with a text that is no UTF-8 as bytes that are none either."""
    return of_texts([_as_json_or_invalid(each) for each in column])


def _as_json_or_invalid(value: pa.Scalar) -> bytes | None:
    try:
        found = value.as_py()
    except UnicodeDecodeError:
        return b"\xff"
    return None if found is None else as_json(found)


def _packed(values: Flags) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def flags(column: pa.BooleanArray) -> Flags:
    """Return which are true; null is false."""
    is_valid, is_true = (_bits(buffer, column) for buffer in column.buffers())
    return is_true & is_valid


def _bits(buffer: pa.Buffer | None, column: pa.Array) -> Flags:
    if buffer is None:
        return np.ones(len(column), np.bool_)
    last = column.offset + len(column)
    return np.unpackbits(np.frombuffer(buffer, np.uint8), count=last, bitorder="little")[column.offset :].view(np.bool_)


def int32s(column: pa.Int32Array) -> NDArray[np.int32]:
    """Return the numbers, 0 for nulls: a view, if there are none."""
    numbers = _items(column, len(column))
    return np.where(_bits(column.buffers()[0], column), numbers, np.int32(0)) if column.null_count else numbers


def text_bounds(column: pa.StringArray) -> NDArray[np.int32]:
    """Return where each text begins among `text_bytes`, and where the last one ends: a view, int32 [rows + 1]."""
    return _items(column, len(column) + 1) if len(column) else np.zeros(1, np.int32)


def text_bytes(column: pa.StringArray) -> NDArray[np.uint8]:
    """Return the bytes that `text_bounds` counts: a view."""
    buffer = column.buffers()[2]
    return np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)


def text_sizes(column: pa.StringArray) -> Indices:
    """Return how many bytes each text has, none for a null: int64 [rows]."""
    sizes = np.diff(text_bounds(column)).astype(np.int64)
    if column.null_count:
        sizes[~_bits(column.buffers()[0], column)] = 0
    return sizes


def bytes_of_first(column: pa.StringArray, characters: NDArray[np.int32]) -> Indices:
    """Return how many bytes the first `characters` of each text take, of which it has as many: int64 [rows].

    Only the bytes of their beginnings are looked at, of all texts together. A byte of UTF-8 continues a character where
    it is 0b10xxxxxx, and begins one otherwise.
    """
    bounds = text_bounds(column)
    letters = text_bytes(column).data[: bounds[-1]]
    starts = bounds[:-1].tolist()
    longest = (4 * characters.astype(np.int64)).tolist()  # a character has at most four bytes
    heads = [letters[start : start + size] for start, size in zip(starts, longest, strict=True)]
    following = np.flatnonzero(np.frombuffer(b"".join(heads), np.int8) < -64)
    begun_before = following - np.arange(len(following))
    ends = np.cumsum(np.fromiter(map(len, heads), np.int64, len(heads)))
    firsts = np.append(0, ends)[:-1]
    wanted = firsts - np.searchsorted(following, firsts) + characters  # the number of the character behind the last
    counts: Indices = wanted + np.searchsorted(begun_before, wanted, side="right") - firsts
    return counts


def _items(column: pa.Array, count: int) -> NDArray[np.int32]:
    items: NDArray[np.int32] = np.frombuffer(column.buffers()[1] or b"", np.int32)[column.offset :][:count]
    return items


def counts_of(column: pa.Array) -> Counter[str]:
    """Return how often each text of a column occurs; none counts as `null`."""
    counts = Counter[str]()
    # As bytes: a name that is not UTF-8 must not stop the count of the others.
    for pair in pc.value_counts(column.cast(pa.binary())).to_pylist():
        name = "null" if pair["values"] is None else pair["values"].decode(errors="replace")
        counts[name] += pair["counts"]  # several may be shown alike
    return counts


def without_nulls(column: pa.StringArray) -> pa.StringArray:
    """Return the texts that are not null; no byte is copied where nulls take no room, as in what Arrow computes."""
    if not column.null_count:
        return column
    bounds, sizes = text_bounds(column), text_sizes(column)
    if int(bounds[-1] - bounds[0]) != int(sizes.sum()):
        return column.drop_null()
    kept = np.flatnonzero(_bits(column.buffers()[0], column))
    starts = np.append(bounds[kept], bounds[-1])
    return pa.Array.from_buffers(pa.string(), len(kept), [None, pa.py_buffer(starts), column.buffers()[2]])


def text_hashes(column: pa.StringArray) -> Hashes:
    """Return the BLAKE2b hash of each text's UTF-8 bytes; there are no nulls."""
    letters = text_bytes(column).data
    digests = (
        hashlib.blake2b(letters[start:end], digest_size=_HASH_BYTES).digest()
        for start, end in itertools.pairwise(text_bounds(column).tolist())
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).T

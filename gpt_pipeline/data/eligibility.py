"""Which rows of SYNTH become documents, decided column by column in Arrow; the rules of `documents` in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpt_pipeline.data.documents import (
    ANSWER_MARK,
    ENGLISH,
    FAILED_CONSTRAINT,
    MAX_DOCUMENT_BYTES,
    QUERY_MARK,
    REASONING_MARK,
)
from gpt_pipeline.errors import UnreadableFileError

RULE_VERSION = "2"
"""Raised when the same rows would give other documents."""

BATCH_ROWS = 2_000
"""Rows decoded at a time: some 15 MB of SYNTH."""

COLUMNS = (
    "synth_id",
    "language",
    "exercise",
    "query",
    "query_seed_url",
    "constraints",
    "synthetic_reasoning",
    "synthetic_answer",
)
"""The columns that decide a document; the others are never decompressed."""

_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of one batch that become documents, and why the others do not."""

    rows: pa.RecordBatch
    """The kept rows, all of `COLUMNS`."""

    positions: pa.Array
    """Where they stood in the batch, ascending."""

    dropped: Counter[str]
    """Rows by the first reason that applies."""


def open_synth(path: Path) -> pq.ParquetFile:
    """Return a file of SYNTH, ready to be read in bounded memory.

    Raises:
        DataError: the file is missing, is not parquet, is truncated, or lacks a column.
    """
    try:
        # Buffering ahead would hold the whole row group, and a file of SYNTH is one row group.
        file = pq.ParquetFile(path, pre_buffer=False)
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFileError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from None
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            f"{path}: not a readable parquet file ({_first_line(error)}); {_beginning(path)}"
        ) from error
    _check_columns(path, file.schema_arrow)
    return file


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise UnreadableFileError(f"{path}: lacks the columns {', '.join(missing)}; found {', '.join(schema.names)}")
    wrong = [f"{name} is {schema.field(name).type}" for name in COLUMNS if not _is_text(schema.field(name).type)]
    if wrong:
        raise UnreadableFileError(f"{path}: need text columns, but {', '.join(wrong)}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(40)
    return f"it begins with {beginning!r} and has {path.stat().st_size} bytes; download it again"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def read_batches(path: Path, *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file of SYNTH in order, only `COLUMNS`, at most `batch_rows` at a time.

    Raises:
        DataError: the file cannot be read to its end.
    """
    with open_synth(path) as file:
        try:
            for batch in file.iter_batches(batch_size=batch_rows, columns=list(COLUMNS)):
                yield batch.select(list(COLUMNS)).cast(_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"{path}: damaged ({_first_line(error)}); {_beginning(path)}") from error


def count_english_rows(path: Path, *, batch_rows: int = 10 * BATCH_ROWS) -> int:
    """Return how many rows of a file of SYNTH are in English, reading that one column.

    Raises:
        DataError: the file cannot be read.
    """
    count = 0
    with open_synth(path) as file:
        try:
            for batch in file.iter_batches(batch_size=batch_rows, columns=["language"]):
                count += pc.sum(_is_english(batch)).as_py() or 0
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"{path}: damaged ({_first_line(error)}); {_beginning(path)}") from error
    return count


def select(batch: pa.RecordBatch) -> Selection:
    """Return the rows of `batch` that become documents."""
    positions = pa.array(np.arange(batch.num_rows))
    if _is_all_valid(batch):  # nearly always: then the texts are copied once
        return _selected(batch, positions, {"language": _is_english, **_TEXT_RULES}, Counter())
    english = _selected(batch, positions, {"language": _is_english}, Counter())
    valid = _selected(english.rows, english.positions, {"invalid_utf8": _is_valid_utf8}, english.dropped)
    return _selected(valid.rows, valid.positions, _TEXT_RULES, valid.dropped)


def _selected(
    rows: pa.RecordBatch,
    positions: pa.Array,
    rules: Mapping[str, Callable[[pa.RecordBatch], pa.Array]],
    dropped: Counter[str],
) -> Selection:
    """Return the rows that pass all rules; each other one is counted under the first that it fails."""
    dropped = Counter(dropped)
    kept = np.ones(rows.num_rows, dtype=np.bool_)
    for reason, keep in rules.items():
        passed = keep(rows).to_numpy(zero_copy_only=False)
        if lost := int((kept & ~passed).sum()):
            dropped[reason] += lost
        kept &= passed
    if not kept.all():
        mask = pa.array(kept)
        rows, positions = rows.filter(mask), positions.filter(mask)
    return Selection(rows=rows, positions=positions, dropped=dropped)


def _is_all_valid(rows: pa.RecordBatch) -> bool:
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_english(rows: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(pc.equal(rows["language"], ENGLISH), False)


def _is_valid_utf8(rows: pa.RecordBatch) -> pa.Array:
    valid = [True] * rows.num_rows
    for index in _invalid_rows(rows, 0):
        valid[index] = False
    return pa.array(valid, pa.bool_())


def _invalid_rows(rows: pa.RecordBatch, offset: int) -> Iterator[int]:
    """Yield the numbers of the rows that are not UTF-8, found by halving: parquet readers do not check it."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        if rows.num_rows == 1:
            yield offset
            return
        middle = rows.num_rows // 2
        yield from _invalid_rows(rows.slice(0, middle), offset)
        yield from _invalid_rows(rows.slice(middle), offset + middle)


def _is_not_blank(column: pa.Array) -> pa.Array:
    """Return which texts, valid UTF-8, have a character other than whitespace."""
    lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    shown = np.zeros(len(column), dtype=np.bool_)
    filled = np.flatnonzero(lengths)
    if len(filled):
        first = _first_bytes(column)[filled]
        shown[filled] = (first > ord(" ")) & (first < 0x7F)
        # The others begin with a blank or beyond ASCII, where there are blanks too.
        unsure = filled[~shown[filled]]
        trimmed = pc.utf8_trim_whitespace(column.take(pa.array(unsure)))
        shown[unsure] = pc.binary_length(trimmed).to_numpy(zero_copy_only=False) > 0
    return pa.array(shown)


def _first_bytes(column: pa.StringArray) -> NDArray[np.uint8]:
    """Return each text's first byte: uint8 [rows]; of an empty text any byte."""
    _, offsets, letters = column.buffers()
    starts = np.frombuffer(offsets, np.int32)[column.offset :][: len(column)]
    found = np.frombuffer(letters, np.uint8)
    return found[np.minimum(starts, len(found) - 1)]


def _has_query(rows: pa.RecordBatch) -> pa.Array:
    return _is_not_blank(rows["query"])


def _has_answer(rows: pa.RecordBatch) -> pa.Array:
    return _is_not_blank(rows["synthetic_answer"])


def _is_not_failed(rows: pa.RecordBatch) -> pa.Array:
    return pc.invert(pc.fill_null(pc.match_substring(rows["constraints"], FAILED_CONSTRAINT), False))


def _is_short_enough(rows: pa.RecordBatch) -> pa.Array:
    lengths = [pc.binary_length(pc.fill_null(rows[name], "")) for name in _PARTS]
    marks = len(QUERY_MARK) + len(REASONING_MARK) + len(ANSWER_MARK)
    return pc.less_equal(pc.add(pc.add(pc.add(lengths[0], lengths[1]), lengths[2]), marks), MAX_DOCUMENT_BYTES)


_PARTS = ("query", "synthetic_reasoning", "synthetic_answer")
_TEXT_RULES = {
    "no_query": _has_query,
    "no_answer": _has_answer,
    "failed_constraint": _is_not_failed,
    "too_long": _is_short_enough,
}
"""After the language and the encoding: a row is counted under the first reason that applies."""


def documents_of(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return the documents of selected rows: `DOCUMENT_SCHEMA`, one for each row."""
    query, answer = rows["query"], rows["synthetic_answer"]
    reasoned = _is_not_blank(rows["synthetic_reasoning"])
    reasoning = _emptied_where_blank(rows["synthetic_reasoning"], reasoned)
    mark = pc.if_else(reasoned, REASONING_MARK, "")
    query_end = pc.add(pc.utf8_length(query), len(QUERY_MARK))
    reasoning_start = pc.if_else(reasoned, pc.add(query_end, len(REASONING_MARK)), pa.scalar(None, pa.int32()))
    reasoning_length = pc.utf8_length(reasoning)
    before_answer = pc.add(pc.add(query_end, pc.utf8_length(mark)), reasoning_length)
    columns = {
        "synth_id": rows["synth_id"],
        "exercise": rows["exercise"],
        "article": _articles(rows),
        "constraints": rows["constraints"],
        "text": pc.binary_join_element_wise(QUERY_MARK, query, mark, reasoning, ANSWER_MARK, answer, ""),
        "query_start": pa.repeat(pa.scalar(len(QUERY_MARK), pa.int32()), len(rows)),
        "query_end": query_end,
        "reasoning_start": reasoning_start,
        "reasoning_end": pc.add(reasoning_start, reasoning_length),
        "answer_start": pc.add(before_answer, len(ANSWER_MARK)),
        "answer_bytes": pc.binary_length(answer),
    }
    return pa.record_batch(
        [column.cast(DOCUMENT_SCHEMA.field(name).type) for name, column in columns.items()], schema=DOCUMENT_SCHEMA
    )


def _emptied_where_blank(column: pa.Array, filled: pa.Array) -> pa.Array:
    """Return the texts, "" for nulls and for those of whitespace alone, which are rare: copied only where there are."""
    column = pc.fill_null(column, "")
    blank = pc.and_(pc.invert(filled), pc.greater(pc.binary_length(column), 0))
    return pc.if_else(filled, column, "") if pc.any(blank).as_py() else column


def _articles(rows: pa.RecordBatch) -> pa.Array:
    own = pc.fill_null(rows["synth_id"], "")
    return pc.if_else(_is_not_blank(rows["query_seed_url"]), rows["query_seed_url"], own)


DOCUMENT_SCHEMA = pa.schema(
    [
        ("synth_id", pa.string()),
        ("exercise", pa.string()),
        ("article", pa.string()),
        ("constraints", pa.string()),
        ("text", pa.string()),
        ("query_start", pa.int32()),
        ("query_end", pa.int32()),
        ("reasoning_start", pa.int32()),
        ("reasoning_end", pa.int32()),
        ("answer_start", pa.int32()),
        ("answer_bytes", pa.int32()),
    ]
)
"""The English parquet: a text and where its parts begin and end in it, counted in characters; null where absent.

The answer is the text's end; `answer_bytes` is its size in UTF-8, for those who count the text in bytes.
"""

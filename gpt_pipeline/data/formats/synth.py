"""Which rows of SYNTH become documents, decided column by column in Arrow; the rules of `documents` in bulk."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpt_pipeline.data.columns import (
    Flags,
    Indices,
    flags,
    int32s,
    of_flags,
    of_indices,
    of_int32s,
    text_bounds,
    text_bytes,
    text_sizes,
    text_value,
    without_nulls,
)
from gpt_pipeline.data.formats.synth_text import (
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

_READ_BYTES = 1 << 20  # of each column at a time
_FIRST_BYTES = 3  # of a text, that mostly tell that it is not blank
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of one batch that become documents, and why the others do not."""

    rows: pa.RecordBatch
    """All of `COLUMNS`, valid UTF-8; the rows that become documents, and others, which are not copied away."""

    kept: Indices
    """Which of `rows` become documents, ascending."""

    positions: Indices
    """Where these stood in the batch."""

    dropped: Counter[str]
    """Rows by the first reason that applies."""

    def only(self, chosen: Indices) -> Selection:
        """Return the selection without other documents than the `chosen`, counted from 0; ascending."""
        return replace(self, kept=self.kept[chosen], positions=self.positions[chosen])


def open_synth(path: Path) -> pq.ParquetFile:
    """Return a file of SYNTH, ready to be read in bounded memory.

    Raises:
        DataError: the file is missing, is not parquet, is truncated, or lacks a column.
    """
    try:
        # Otherwise the whole row group would be held, or each column's whole chunk: and a file of SYNTH is one of them.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
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
            for batch in file.iter_batches(batch_size=batch_rows, columns=list(COLUMNS), use_threads=False):
                yield batch.select(list(COLUMNS)).cast(_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"{path}: damaged ({_first_line(error)}); {_beginning(path)}") from error


def count_english_rows(file: Path | io.IOBase, name: str) -> int:
    """Return how many rows of a file of SYNTH are in English: at least as many as become documents.

    Reads the file's footer and its `language` column alone: some 100 KB of 470 MB.

    Raises:
        DataError: it is not a readable parquet file, or lacks the column.
    """
    try:
        # No reading ahead: other threads would do that, and the file has one position.
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            if "language" not in (columns := parquet.schema_arrow.names):
                raise UnreadableFileError(f"{name}: lacks the column language; found {', '.join(columns)}")
            batches = parquet.iter_batches(columns=["language"], use_threads=False)
            return sum(pc.sum(pc.equal(batch["language"].cast(pa.string()), ENGLISH)).as_py() or 0 for batch in batches)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(f"{name}: not a readable parquet file ({_first_line(error)})") from error


def select(batch: pa.RecordBatch) -> Selection:
    """Return the rows of `batch` that become documents."""
    if _is_all_valid(batch):  # nearly always
        rules = {"language": _is_english, **_TEXT_RULES}
        return _selected(batch, np.arange(batch.num_rows), rules, Counter())
    english = np.flatnonzero(_is_english(batch))
    rows = batch.take(of_indices(english))
    valid = np.array(_valid_rows(rows, 0), np.int64)
    dropped = Counter(language=batch.num_rows - len(english), invalid_utf8=len(english) - len(valid))
    return _selected(rows.take(of_indices(valid)), english[valid], _TEXT_RULES, +dropped)


def _selected(
    rows: pa.RecordBatch,
    positions: Indices,
    rules: Mapping[str, Callable[[pa.RecordBatch], Flags]],
    dropped: Counter[str],
) -> Selection:
    """Return the rows that pass all rules; each other one is counted under the first that it fails."""
    is_kept = np.ones(rows.num_rows, dtype=np.bool_)
    for reason, passes in rules.items():
        passed = passes(rows)
        if lost := int((is_kept & ~passed).sum()):
            dropped[reason] += lost
        is_kept &= passed
    kept = np.flatnonzero(is_kept)
    return Selection(rows=rows, kept=kept, positions=positions[kept], dropped=dropped)


def _is_all_valid(rows: pa.RecordBatch) -> bool:
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _valid_rows(rows: pa.RecordBatch, offset: int) -> list[int]:
    """Return the numbers, from `offset` on, of the rows that are UTF-8, which parquet readers do not check."""
    if _is_all_valid(rows):
        return list(range(offset, offset + rows.num_rows))
    if rows.num_rows == 1:
        return []
    middle = rows.num_rows // 2
    return _valid_rows(rows.slice(0, middle), offset) + _valid_rows(rows.slice(middle), offset + middle)


def _is_english(rows: pa.RecordBatch) -> Flags:
    return flags(pc.equal(rows["language"], text_value(ENGLISH)))


def _is_not_blank(column: pa.StringArray) -> Flags:
    """Return which texts, valid UTF-8, have a character other than whitespace."""
    bounds, letters, sizes = text_bounds(column), text_bytes(column), text_sizes(column)
    shown = np.zeros(len(column), dtype=np.bool_)
    unsure = np.flatnonzero(sizes)
    for place in range(_FIRST_BYTES):
        found = letters[np.minimum(bounds[unsure] + place, bounds[unsure + 1] - 1)]
        is_visible = (found > ord(" ")) & (found < 0x7F)
        shown[unsure[is_visible]] = True
        unsure = unsure[~is_visible]
    # The others begin with several blanks, or beyond ASCII, where there are blanks too.
    shown[unsure] = text_sizes(pc.utf8_trim_whitespace(column.take(of_indices(unsure)))) > 0
    return shown


def _has_query(rows: pa.RecordBatch) -> Flags:
    return _is_not_blank(rows["query"])


def _has_answer(rows: pa.RecordBatch) -> Flags:
    return _is_not_blank(rows["synthetic_answer"])


def _is_not_failed(rows: pa.RecordBatch) -> Flags:
    return ~flags(pc.match_substring(rows["constraints"], FAILED_CONSTRAINT))


def _is_short_enough(rows: pa.RecordBatch) -> Flags:
    marks = len(QUERY_MARK) + len(REASONING_MARK) + len(ANSWER_MARK)
    sizes = [text_sizes(rows[name]) for name in ("query", "synthetic_reasoning", "synthetic_answer")]
    return sizes[0] + sizes[1] + sizes[2] + marks <= MAX_DOCUMENT_BYTES


_TEXT_RULES = {
    "no_query": _has_query,
    "no_answer": _has_answer,
    "failed_constraint": _is_not_failed,
    "too_long": _is_short_enough,
}
"""After the language and the encoding: a row is counted under the first reason that applies."""


def documents_of(selection: Selection) -> pa.RecordBatch:
    """Return the documents of selected rows: `DOCUMENT_SCHEMA`, one for each."""
    rows, kept = selection.rows, selection.kept
    is_reasoned = _is_not_blank(rows["synthetic_reasoning"])
    reasoning = _emptied_where_blank(rows["synthetic_reasoning"], is_reasoned)
    reasoned = is_reasoned[kept]
    query_end = len(QUERY_MARK) + int32s(pc.utf8_length(rows["query"]))[kept]
    reasoning_start = query_end + np.int32(len(REASONING_MARK))
    reasoning_end = reasoning_start + int32s(pc.utf8_length(reasoning))[kept]
    columns = {
        "synth_id": rows["synth_id"].take(of_indices(kept)),
        "exercise": rows["exercise"].take(of_indices(kept)),
        "article": _articles(rows).take(of_indices(kept)),
        "constraints": rows["constraints"].take(of_indices(kept)),
        "text": _texts(rows, kept, reasoning, is_reasoned),
        "query_start": of_int32s(np.full(len(kept), len(QUERY_MARK), np.int32)),
        "query_end": of_int32s(query_end),
        "reasoning_start": of_int32s(reasoning_start, where=reasoned),
        "reasoning_end": of_int32s(reasoning_end, where=reasoned),
        "answer_start": of_int32s(np.where(reasoned, reasoning_end, query_end) + np.int32(len(ANSWER_MARK))),
        "answer_bytes": of_int32s(text_sizes(rows["synthetic_answer"])[kept].astype(np.int32)),
    }
    return pa.record_batch(list(columns.values()), schema=DOCUMENT_SCHEMA)


def _texts(rows: pa.RecordBatch, kept: Indices, reasoning: pa.StringArray, is_reasoned: Flags) -> pa.StringArray:
    """Return the texts of the kept rows, put together in one copy: those of the others are null, and take no room."""
    is_kept = np.zeros(rows.num_rows, np.bool_)
    is_kept[kept] = True
    parts = (
        pc.if_else(of_flags(is_kept), text_value(QUERY_MARK), text_value(None)),
        rows["query"],
        pc.if_else(of_flags(is_reasoned), text_value(REASONING_MARK), text_value("")),
        reasoning,
        text_value(ANSWER_MARK),
        rows["synthetic_answer"],
    )
    return without_nulls(pc.binary_join_element_wise(*parts, text_value("")))


def _emptied_where_blank(column: pa.StringArray, is_shown: Flags) -> pa.StringArray:
    """Return the texts, "" for nulls and for those of whitespace alone, which are rare: copied only where there are."""
    column = pc.fill_null(column, text_value(""))
    if (text_sizes(column)[~is_shown] == 0).all():
        return column
    return pc.if_else(of_flags(is_shown), column, text_value(""))


def _articles(rows: pa.RecordBatch) -> pa.StringArray:
    own = pc.fill_null(rows["synth_id"], text_value(""))
    return pc.if_else(of_flags(_is_not_blank(rows["query_seed_url"])), rows["query_seed_url"], own)


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

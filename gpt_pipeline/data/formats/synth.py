"""Which rows of SYNTH become documents, decided column by column in Arrow; the rules of `documents` in bulk."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import (
    Flags,
    Indices,
    flags,
    int32s,
    of_flags,
    of_indices,
    of_int32s,
    text_sizes,
    text_value,
    without_nulls,
)
from gpt_pipeline.data.formats.parquet import Rules, is_not_blank, open_counted, require_columns, selected
from gpt_pipeline.data.formats.protocol import MAX_DOCUMENT_BYTES, Format, Selection
from gpt_pipeline.data.formats.synth_text import (
    ANSWER_MARK,
    ENGLISH,
    FAILED_CONSTRAINT,
    QUERY_MARK,
    REASONING_MARK,
)

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


def count_english_rows(file: Path | io.IOBase, name: str) -> int:
    """Return how many rows of a file of SYNTH are in English: at least as many as become documents.

    Reads the file's footer and its `language` column alone: some 100 KB of 470 MB.

    Raises:
        DataError: it is not a readable parquet file, or lacks the column.
    """
    with open_counted(file, name) as parquet:
        require_columns(parquet.schema_arrow, ("language",), name=name)
        batches = parquet.iter_batches(columns=["language"], use_threads=False)
        return sum(int(_is_english(batch).sum()) for batch in batches)


def select(batch: pa.RecordBatch) -> Selection:
    """Return the rows of `batch` that become documents."""
    return selected(batch, _TEXT_RULES, first={"language": _is_english})


def _is_english(rows: pa.RecordBatch) -> Flags:
    return flags(pc.equal(rows["language"].cast(pa.string()), text_value(ENGLISH)))


def _has_query(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["query"])


def _has_answer(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["synthetic_answer"])


def _is_not_failed(rows: pa.RecordBatch) -> Flags:
    return ~flags(pc.match_substring(rows["constraints"], FAILED_CONSTRAINT))


def _is_short_enough(rows: pa.RecordBatch) -> Flags:
    marks = len(QUERY_MARK) + len(REASONING_MARK) + len(ANSWER_MARK)
    sizes = [text_sizes(rows[name]) for name in ("query", "synthetic_reasoning", "synthetic_answer")]
    return sizes[0] + sizes[1] + sizes[2] + marks <= MAX_DOCUMENT_BYTES


_TEXT_RULES: Rules = {
    "no_query": _has_query,
    "no_answer": _has_answer,
    "failed_constraint": _is_not_failed,
    "too_long": _is_short_enough,
}
"""After the language and the encoding: a row is counted under the first reason that applies."""


def documents_of(selection: Selection) -> pa.RecordBatch:
    """Return the documents of selected rows: `DOCUMENT_SCHEMA`, one for each."""
    rows, kept = selection.rows, selection.kept
    is_reasoned = is_not_blank(rows["synthetic_reasoning"])
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
    return pc.if_else(of_flags(is_not_blank(rows["query_seed_url"])), rows["query_seed_url"], own)


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


class Synth:
    """The format of PleIAs/SYNTH: questions with reasoning and answer, of which the English ones become documents."""

    version = RULE_VERSION
    identity: Mapping[str, Any] = {}
    columns = COLUMNS
    columns_remedy = ""
    batch_rows: int | None = BATCH_ROWS
    document_schema = DOCUMENT_SCHEMA
    row_tables: Mapping[str, str] = {"languages": "language", "exercises_read": "exercise"}
    document_tables: Mapping[str, str] = {"exercises": "exercise"}

    def count_rows(self, file: Path | io.IOBase, name: str) -> int:
        """Return how many rows are in English."""
        return count_english_rows(file, name)

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the English rows with a query and an answer."""
        return select(batch)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        return documents_of(selection)


SYNTH: Format = Synth()

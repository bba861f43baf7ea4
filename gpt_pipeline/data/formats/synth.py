"""Which rows of SYNTH become documents, decided column by column in Arrow; the rules of `documents` in bulk."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import Flags, flags, of_flags, of_indices, text_sizes, text_value
from gpt_pipeline.data.formats.filter import Condition
from gpt_pipeline.data.formats.protocol import Format, Selection
from gpt_pipeline.data.formats.question_texts import MARK_BYTES, TEXT_FIELDS, question_texts
from gpt_pipeline.data.formats.rules import Rules, is_not_blank, selected
from gpt_pipeline.data.formats.synth_text import ENGLISH, FAILED_CONSTRAINT
from gpt_pipeline.data.readers.parquet import open_counted, require_columns
from gpt_pipeline.data.readers.rows import count_rows, is_parquet
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted

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
        require_columns(parquet.schema_arrow, Wanted(texts=("language",)), name=name)
        batches = parquet.iter_batches(columns=["language"], use_threads=False)
        return sum(int(_is_english(batch).sum()) for batch in batches)


def select(batch: pa.RecordBatch, filter: Sequence[Condition] = ()) -> Selection:
    """Return the rows of `batch` that become documents."""
    kept = {condition.reason: condition.passes for condition in filter}
    return selected(batch, {**kept, **_TEXT_RULES}, first={"language": _is_english})


def _is_english(rows: pa.RecordBatch) -> Flags:
    return flags(pc.equal(rows["language"].cast(pa.string()), text_value(ENGLISH)))


def _has_query(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["query"])


def _has_answer(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["synthetic_answer"])


def _is_not_failed(rows: pa.RecordBatch) -> Flags:
    return ~flags(pc.match_substring(rows["constraints"], FAILED_CONSTRAINT))


def _is_short_enough(rows: pa.RecordBatch) -> Flags:
    sizes = [text_sizes(rows[name]) for name in ("query", "synthetic_reasoning", "synthetic_answer")]
    return sizes[0] + sizes[1] + sizes[2] + MARK_BYTES <= MAX_DOCUMENT_BYTES


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
    columns = {
        "synth_id": rows["synth_id"].take(of_indices(kept)),
        "exercise": rows["exercise"].take(of_indices(kept)),
        "article": _articles(rows).take(of_indices(kept)),
        "constraints": rows["constraints"].take(of_indices(kept)),
        **question_texts(rows["query"], rows["synthetic_reasoning"], rows["synthetic_answer"], kept),
    }
    return pa.record_batch(list(columns.values()), schema=DOCUMENT_SCHEMA)


def _articles(rows: pa.RecordBatch) -> pa.StringArray:
    own = pc.fill_null(rows["synth_id"], text_value(""))
    return pc.if_else(of_flags(is_not_blank(rows["query_seed_url"])), rows["query_seed_url"], own)


DOCUMENT_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("synth_id", "exercise", "article", "constraints")), *TEXT_FIELDS]
)
"""The English parquet."""


@dataclass(frozen=True, kw_only=True)
class Synth:
    """The format of PleIAs/SYNTH: questions with reasoning and answer, of which the English ones become documents."""

    filter: tuple[Condition, ...] = ()
    version = RULE_VERSION
    document_schema = DOCUMENT_SCHEMA

    @property
    def identity(self) -> Mapping[str, Any]:
        """The filter, if there is one; the first experiments had none."""
        return {"filter": {each.column: each.text for each in self.filter}} if self.filter else {}

    @property
    def columns(self) -> Wanted:
        """The columns that decide a document, and those that decide whether a row is kept."""
        kept = tuple(condition.column for condition in self.filter)
        return Wanted(texts=COLUMNS, values=kept, batch_rows=BATCH_ROWS)

    @property
    def row_tables(self) -> Mapping[str, str]:
        """Rows by language and by kind of exercise."""
        return {"languages": "language", "exercises_read": "exercise"}

    @property
    def document_tables(self) -> Mapping[str, str]:
        """Documents by kind of exercise."""
        return {"exercises": "exercise"}

    def count_rows(self, file: Path | io.IOBase, name: str) -> int:
        """Return how many rows are in English; of files other than parquet, how many there are."""
        return count_english_rows(file, name) if is_parquet(name) else count_rows(file, name, self.columns)

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the English rows with a query and an answer."""
        return select(batch, self.filter)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        return documents_of(selection)


SYNTH: Format = Synth()

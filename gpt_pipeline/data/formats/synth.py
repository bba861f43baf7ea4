"""Which rows of SYNTH become documents, decided column by column in Arrow."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import (
    Flags,
    counts_of,
    flags,
    of_flags,
    of_indices,
    of_texts,
    text_sizes,
    text_value,
)
from gpt_pipeline.data.formats.filter import Condition
from gpt_pipeline.data.formats.forms import FORMS, PLAIN, Form, Template
from gpt_pipeline.data.formats.protocol import Format, Selection
from gpt_pipeline.data.formats.question_texts import TEXT_FIELDS, question_texts
from gpt_pipeline.data.formats.rules import TOO_LONG, Rules, is_not_blank, mark_rules, selected
from gpt_pipeline.data.formats.synth_text import ENGLISH, FAILED_CONSTRAINT
from gpt_pipeline.data.readers.parquet import open_counted, require_columns
from gpt_pipeline.data.readers.rows import count_rows, is_parquet
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted

RULE_VERSION = "2"
"""Raised when the same rows would give other documents."""

BATCH_ROWS = 2_000
"""Rows decoded at a time: some 15 MB of SYNTH."""

Languages = tuple[str, ...] | None
"""Those of the rows that are kept, ascending; None: all."""

_ENGLISH_ALONE: Languages = (ENGLISH,)

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
    return sum(int(_is_in(_ENGLISH_ALONE, batch).sum()) for batch in _languages(file, name))


def _languages(file: Path | io.IOBase, name: str) -> Iterator[pa.RecordBatch]:
    with open_counted(file, name) as parquet:
        require_columns(parquet.schema_arrow, Wanted(texts=("language",)), name=name)
        yield from parquet.iter_batches(columns=["language"], use_threads=False)


def select(
    batch: pa.RecordBatch,
    filter: Sequence[Condition] = (),
    languages: Languages = _ENGLISH_ALONE,
    form: Form = PLAIN,
) -> Selection:
    """Return the rows of `batch` that become documents."""
    kept = {condition.reason: condition.passes for condition in filter}
    fits: Rules = {TOO_LONG: partial(_is_short_enough, form), **mark_rules(form, _TEXTS)}
    rules = {**kept, **_TEXT_RULES, **fits}
    return selected(batch, rules, first={"language": partial(_is_in, languages)})


def _is_in(languages: Languages, rows: pa.RecordBatch) -> Flags:
    """Return which rows are in one of the languages."""
    if languages is None:
        return np.ones(rows.num_rows, np.bool_)
    found = rows["language"].cast(pa.string())
    if len(languages) == 1:
        return flags(pc.equal(found, text_value(languages[0])))
    return flags(pc.is_in(found, value_set=of_texts([language.encode() for language in languages])))


def _others(rows: pa.RecordBatch, languages: Languages) -> Counter[str]:
    """Count the rows in other languages, by language."""
    found = counts_of(rows["language"])
    return Counter({f"language {name}": count for name, count in found.items() if name not in (languages or found)})


def _has_query(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["query"])


def _has_answer(rows: pa.RecordBatch) -> Flags:
    return is_not_blank(rows["synthetic_answer"])


def _is_not_failed(rows: pa.RecordBatch) -> Flags:
    return ~flags(pc.match_substring(rows["constraints"], FAILED_CONSTRAINT))


def _is_short_enough(form: Form, rows: pa.RecordBatch) -> Flags:
    sizes = [text_sizes(rows[name]) for name in _TEXTS]
    return sizes[0] + sizes[1] + sizes[2] + form.size <= MAX_DOCUMENT_BYTES


_TEXTS = ("query", "synthetic_reasoning", "synthetic_answer")
_TEXT_RULES: Rules = {
    "no_query": _has_query,
    "no_answer": _has_answer,
    "failed_constraint": _is_not_failed,
}
"""After the language and the encoding: a row is counted under the first reason that applies."""


def documents_of(selection: Selection, form: Form = PLAIN) -> pa.RecordBatch:
    """Return the documents of selected rows: `DOCUMENT_SCHEMA`, one for each."""
    rows, kept = selection.rows, selection.kept
    columns = {
        "synth_id": rows["synth_id"].take(of_indices(kept)),
        "exercise": rows["exercise"].take(of_indices(kept)),
        "article": _articles(rows).take(of_indices(kept)),
        "constraints": rows["constraints"].take(of_indices(kept)),
        **question_texts(rows["query"], rows["synthetic_reasoning"], rows["synthetic_answer"], kept, form),
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
    """The format of PleIAs/SYNTH: questions with reasoning and answer, of which those in some languages are kept."""

    filter: tuple[Condition, ...] = ()
    languages: Languages = _ENGLISH_ALONE
    template: Template = "plain"
    version = RULE_VERSION
    document_schema = DOCUMENT_SCHEMA

    @property
    def identity(self) -> Mapping[str, Any]:
        """The filter and template, if there are, and languages other than English alone: the first experiments had
        none."""
        kept: dict[str, Any] = {"filter": {each.column: each.text for each in self.filter}} if self.filter else {}
        kept |= {"template": self.template} if self.template != "plain" else {}
        return kept if self._is_english else {**kept, "languages": self.languages and list(self.languages)}

    @property
    def _is_english(self) -> bool:
        return self.languages == _ENGLISH_ALONE

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
        """Return how many rows are in the languages; of files other than parquet, how many there are."""
        if self.languages is None or not is_parquet(name):
            return count_rows(file, name, self.columns)
        return sum(int(_is_in(self.languages, batch).sum()) for batch in _languages(file, name))

    def count_dropped(self, file: Path | io.IOBase, name: str) -> Counter[str]:
        """Return how many rows are in other languages, by language."""
        if not is_parquet(name):
            return Counter()
        return sum((_others(batch, self.languages) for batch in _languages(file, name)), Counter[str]())

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows in the languages with a query and an answer."""
        selection = select(batch, self.filter, self.languages, FORMS[self.template])
        if self._is_english or "language" not in selection.dropped:
            return selection
        # Who names languages by hand is told which ones there are.
        dropped = Counter({reason: count for reason, count in selection.dropped.items() if reason != "language"})
        return replace(selection, dropped=_others(batch, self.languages) + dropped)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        return documents_of(selection, FORMS[self.template])


SYNTH: Format = Synth()

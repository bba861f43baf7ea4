"""Questions and answers: columns of the files hold the parts of each document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.columns import Flags, Indices, of_indices, text_sizes
from gpt_pipeline.data.formats.forms import PLAIN
from gpt_pipeline.data.formats.keys import OwnFormat
from gpt_pipeline.data.formats.protocol import Selection
from gpt_pipeline.data.formats.question_texts import TEXT_FIELDS, question_texts
from gpt_pipeline.data.formats.rules import TOO_LONG, Rules, is_not_blank, mark_rules, selected
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted


@dataclass(frozen=True, kw_only=True)
class QuestionAnswerFormat(OwnFormat):
    """Every row with a question and an answer becomes a document, written as those of SYNTH are."""

    question: str
    answer: str
    reasoning: str | None = None
    """What leads to the answer; None: the files have none."""

    result: str | None = None
    """The answer in short, as a number or an option, by which a model's answers are judged; None: the answer itself."""

    version = "1"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The format's name and its columns."""
        named = {name: getattr(self, name) for name in ("question", "reasoning", "answer", "result")}
        columns = {name: column for name, column in named.items() if column is not None}
        return {"format": "question_answer", "columns": columns, **self.keys.identity, **self.templated}

    @property
    def columns(self) -> Wanted:
        """The parts of a document, and what rows are kept, split and broken down by."""
        parts = (self.question, self.reasoning, self.answer)
        return Wanted(
            texts=tuple(column for column in parts if column is not None),
            values=(self.answer, *((self.result,) if self.result else ()), *self.keys.columns),
            remedy="set data.columns.question and data.columns.answer to the columns that hold them",
        )

    @property
    def document_schema(self) -> pa.Schema:
        """The text, where its parts lie in it, and what is known of it."""
        return pa.schema([*self.keys.fields, ("expected", pa.string()), *TEXT_FIELDS])

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows with a question and an answer that are not too long together."""
        return selected(batch, self._rules)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        rows, kept = selection.rows, selection.kept
        columns_read = rows[self.question], self._reasoning(rows), rows[self.answer], kept
        parts = question_texts(*columns_read, self.form)
        # Called by its plain text, so that the same documents are held out with any template.
        plain = parts if self.form is PLAIN else question_texts(*columns_read)
        expected = self._expected(rows, kept)
        columns = {**self.keys.of(rows, kept, plain["text"]), "expected": expected, **parts}
        return pa.record_batch(list(columns.values()), schema=self.document_schema)

    def _expected(self, rows: pa.RecordBatch, kept: Indices) -> pa.StringArray:
        return pa.nulls(len(kept), pa.string()) if self.result is None else rows[self.result].take(of_indices(kept))

    def _reasoning(self, rows: pa.RecordBatch) -> pa.StringArray:
        if self.reasoning is not None:
            return rows[self.reasoning]
        bounds = pa.py_buffer(np.zeros(rows.num_rows + 1, np.int32))
        return pa.Array.from_buffers(pa.string(), rows.num_rows, [None, bounds, pa.py_buffer(b"")])

    @property
    def _rules(self) -> Rules:
        def has_question(rows: pa.RecordBatch) -> Flags:
            return is_not_blank(rows[self.question])

        def has_answer(rows: pa.RecordBatch) -> Flags:
            return is_not_blank(rows[self.answer])

        def is_short_enough(rows: pa.RecordBatch) -> Flags:
            sizes = np.sum([text_sizes(rows[column]) for column in self.columns.texts], axis=0)
            fitting: Flags = sizes + self.form.size <= MAX_DOCUMENT_BYTES
            return fitting

        return {
            TOO_LONG: is_short_enough,
            **self.keys.rules,
            "no_question": has_question,
            "no_answer": has_answer,
            **mark_rules(self.form, self.columns.texts),
        }

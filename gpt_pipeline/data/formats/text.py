"""Plain text: a column of the files holds the text of each document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gpt_pipeline.data.columns import Flags, of_indices, text_sizes
from gpt_pipeline.data.formats.keys import OwnFormat
from gpt_pipeline.data.formats.protocol import Selection
from gpt_pipeline.data.formats.rules import TOO_LONG, Rules, is_not_blank, selected
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted


@dataclass(frozen=True, kw_only=True)
class TextFormat(OwnFormat):
    """Every row with a text that is not blank becomes a document; no part of it is an answer."""

    column: str
    split_at: str | None = None
    """Where documents end in plain text files; see `Wanted.split_at`."""

    version = "1"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The format's name and its columns."""
        split = {} if self.split_at is None else {"split_text_at": self.split_at}
        return {"format": "text", "columns": {"text": self.column}, **split, **self.keys.identity}

    @property
    def columns(self) -> Wanted:
        """The text, and what rows are kept, split and broken down by."""
        return Wanted(
            texts=(self.column,),
            values=self.keys.columns,
            split_at=self.split_at,
            remedy="set data.columns.text to the column that holds the text",
        )

    @property
    def document_schema(self) -> pa.Schema:
        """The text, and what is known of it."""
        return pa.schema([*self.keys.fields, ("text", pa.string())])

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows whose text is not blank and not too long."""
        return selected(batch, self._rules)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        texts = selection.rows[self.column].take(of_indices(selection.kept))
        columns = {**self.keys.of(selection.rows, selection.kept, texts), "text": texts}
        return pa.record_batch(list(columns.values()), schema=self.document_schema)

    @property
    def _rules(self) -> Rules:
        def is_given(rows: pa.RecordBatch) -> Flags:
            return is_not_blank(rows[self.column])

        def is_short_enough(rows: pa.RecordBatch) -> Flags:
            return text_sizes(rows[self.column]) <= MAX_DOCUMENT_BYTES

        return {TOO_LONG: is_short_enough, **self.keys.rules, "no_text": is_given}

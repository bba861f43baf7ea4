"""Plain text: a column of the files holds the text of each document."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.columns import Flags, of_indices, text_hashes, text_sizes
from gpt_pipeline.data.formats.parquet import Rules, is_not_blank, open_counted, require_columns, selected
from gpt_pipeline.data.formats.protocol import MAX_DOCUMENT_BYTES, Selection


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Every row with a text that is not blank becomes a document; no part of it is an answer."""

    column: str
    version = "1"
    batch_rows: int | None = None
    columns_remedy = "set data.columns.text to the column that holds the text"
    document_schema = pa.schema([(name, pa.string()) for name in ("id", "group", "text")])

    @property
    def identity(self) -> Mapping[str, Any]:
        """The format's name and its column."""
        return {"format": "text", "columns": {"text": self.column}}

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column that is read."""
        return (self.column,)

    @property
    def row_tables(self) -> Mapping[str, str]:
        """None: nothing but the text is known of a row."""
        return {}

    @property
    def document_tables(self) -> Mapping[str, str]:
        """None: documents are all of one kind."""
        return {}

    def count_rows(self, file: Path | io.IOBase, name: str) -> int:
        """Return the file's rows; only its footer is read."""
        with open_counted(file, name) as parquet:
            require_columns(parquet.schema_arrow, self.columns, name=name, remedy=self.columns_remedy)
            return int(parquet.metadata.num_rows)

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows whose text is not blank and not too long."""
        return selected(batch, self._rules)

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents; each is called by the hash of its text, and is a group of its own."""
        texts = selection.rows[self.column].take(of_indices(selection.kept))
        names = pa.array([upper.tobytes().hex() for upper in np.ascontiguousarray(text_hashes(texts).T)], pa.string())
        columns = [names, names, texts]
        return pa.record_batch(columns, schema=self.document_schema)

    @property
    def _rules(self) -> Rules:
        def is_given(rows: pa.RecordBatch) -> Flags:
            return is_not_blank(rows[self.column])

        def is_short_enough(rows: pa.RecordBatch) -> Flags:
            return text_sizes(rows[self.column]) <= MAX_DOCUMENT_BYTES

        return {"no_text": is_given, "too_long": is_short_enough}

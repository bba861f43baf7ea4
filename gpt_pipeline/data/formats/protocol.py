"""What a format of raw files tells the stages: the columns it reads, and the documents it makes of their rows."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from gpt_pipeline.data.columns import Indices
from gpt_pipeline.data.readers.wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of one batch that become documents, and why the others do not."""

    rows: pa.RecordBatch
    """All columns of the format, valid UTF-8: the rows that become documents, and others, which are not copied away."""

    kept: Indices
    """Which of `rows` become documents, ascending."""

    positions: Indices
    """Where these stood in the batch."""

    dropped: Counter[str]
    """Rows by the first reason that applies."""

    def only(self, chosen: Indices) -> Selection:
        """Return the selection without other documents than the `chosen`, counted from 0; ascending."""
        return replace(self, kept=self.kept[chosen], positions=self.positions[chosen])


class Format(Protocol):
    """A kind of raw file. Documents are made column by column, a batch of rows at a time."""

    @property
    def version(self) -> str:
        """Raised when the same rows would give other documents."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the format adds to the fingerprints of stages, as JSON values; nothing for SYNTH, the first format."""
        ...

    @property
    def columns(self) -> Wanted:
        """The columns that decide a document."""
        ...

    @property
    def document_schema(self) -> pa.Schema:
        """The columns of the documents' parquet; see `data.documents.files`."""
        ...

    @property
    def row_tables(self) -> Mapping[str, str]:
        """Tables in the facts of the documents stage that count the rows read, each by the values of one column."""
        ...

    @property
    def document_tables(self) -> Mapping[str, str]:
        """Tables in the facts that count the documents, each by the values of one column of `document_schema`."""
        ...

    def count_rows(self, file: Path | io.IOBase, name: str) -> int:
        """Return at least as many as the file has documents, reading as little of it as possible.

        Raises:
            DataError: it is not a readable parquet file, or lacks a column.
        """
        ...

    def count_dropped(self, file: Path | io.IOBase, name: str) -> Counter[str]:
        """Return why rows of the file become no documents, as far as it tells without being read whole."""
        ...

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows of `batch` that become documents."""
        ...

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows: `document_schema`, one for each."""
        ...

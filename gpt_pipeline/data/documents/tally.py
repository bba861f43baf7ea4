"""What was read, kept and dropped on the way from rows to documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import counts_of
from gpt_pipeline.data.formats.protocol import Format

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 1_000


@dataclass(kw_only=True)
class Tally:
    """What was read, kept and dropped so far."""

    rows_read: int = 0
    documents: int = 0
    text_bytes: int = 0
    tables: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows read and documents by what the format counts them by, such as language."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Tally:
        """Return the tally whose `facts` these are."""
        tables = {name: Counter(value) for name, value in facts.items() if isinstance(value, Mapping)}
        return cls(
            rows_read=facts["rows_read"],
            documents=facts["documents"],
            text_bytes=facts["text_bytes"],
            dropped=tables.pop("dropped"),
            tables=tables,
            examples=list(facts["examples"]),
        )

    def add(self, other: Tally) -> None:
        """Count in what another file gave."""
        self.rows_read += other.rows_read
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        for name, counts in other.tables.items():
            self._table(name).update(counts)
        self.dropped.update(other.dropped)
        self.examples += other.examples[: max(0, _EXAMPLES - len(self.examples))]

    def add_rows(self, batch: pa.RecordBatch, dropped: Counter[str], format: Format) -> None:
        self.rows_read += batch.num_rows
        self._count(batch, format.row_tables)
        self.dropped.update(dropped)

    def add_documents(self, documents: pa.RecordBatch, format: Format) -> None:
        self.documents += documents.num_rows
        self.text_bytes += pc.sum(pc.binary_length(documents["text"])).as_py() or 0
        self._count(documents, format.document_tables)
        for text in documents["text"][: max(0, _EXAMPLES - len(self.examples))].to_pylist():
            self.examples.append(text[:_EXAMPLE_CHARACTERS])

    def facts(self) -> dict[str, Any]:
        """Return the counts as JSON values, the most frequent first."""
        counts = {name: getattr(self, name) for name in ("rows_read", "documents", "text_bytes")}
        tables = {name: dict(table.most_common()) for name, table in {"dropped": self.dropped, **self.tables}.items()}
        return {**counts, **tables, "examples": self.examples}

    def _count(self, batch: pa.RecordBatch, tables: Mapping[str, str]) -> None:
        for name, column in tables.items():
            self._table(name).update(counts_of(batch[column]))

    def _table(self, name: str) -> Counter[str]:
        return self.tables.setdefault(name, Counter())

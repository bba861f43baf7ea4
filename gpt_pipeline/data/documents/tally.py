"""What was read, kept and dropped on the way from rows to documents, by language, exercise and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 1_000


@dataclass(kw_only=True)
class Tally:
    """What was read, kept and dropped so far."""

    rows_read: int = 0
    documents: int = 0
    text_bytes: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    """Rows read."""

    exercises_read: Counter[str] = field(default_factory=Counter)
    """Rows read."""

    exercises: Counter[str] = field(default_factory=Counter)
    """Documents."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Tally:
        """Return the tally whose `facts` these are."""
        return cls(
            rows_read=facts["rows_read"],
            documents=facts["documents"],
            text_bytes=facts["text_bytes"],
            languages=Counter(facts["languages"]),
            exercises_read=Counter(facts["exercises_read"]),
            exercises=Counter(facts["exercises"]),
            dropped=Counter(facts["dropped"]),
            examples=list(facts["examples"]),
        )

    def add(self, other: Tally) -> None:
        """Count in what another file gave."""
        self.rows_read += other.rows_read
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        self.languages.update(other.languages)
        self.exercises_read.update(other.exercises_read)
        self.exercises.update(other.exercises)
        self.dropped.update(other.dropped)
        self.examples += other.examples[: max(0, _EXAMPLES - len(self.examples))]

    def add_rows(self, batch: pa.RecordBatch, dropped: Counter[str]) -> None:
        self.rows_read += batch.num_rows
        self.languages.update(_counts(batch["language"]))
        self.exercises_read.update(_counts(batch["exercise"]))
        self.dropped.update(dropped)

    def add_documents(self, documents: pa.RecordBatch) -> None:
        self.documents += documents.num_rows
        self.text_bytes += pc.sum(pc.binary_length(documents["text"])).as_py() or 0
        self.exercises.update(_counts(documents["exercise"]))
        for text in documents["text"][: max(0, _EXAMPLES - len(self.examples))].to_pylist():
            self.examples.append(text[:_EXAMPLE_CHARACTERS])

    def facts(self) -> dict[str, Any]:
        """Return the counts as JSON values, the most frequent first."""
        tables = ("dropped", "languages", "exercises_read", "exercises")
        counters = {name: dict(getattr(self, name).most_common()) for name in tables}
        counts = {name: getattr(self, name) for name in ("rows_read", "documents", "text_bytes")}
        return {**counts, **counters, "examples": self.examples}


def _counts(column: pa.Array) -> dict[str, int]:
    # As bytes: a name that is not UTF-8 must not stop the count of the others.
    counts = pc.value_counts(column.cast(pa.binary())).to_pylist()
    names = ["null" if pair["values"] is None else pair["values"].decode(errors="replace") for pair in counts]
    return {name: pair["counts"] for name, pair in zip(names, counts, strict=True)}

"""What one's own rows may have beside their text: a group, a kind, and values that decide whether they are kept."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import Indices, of_flags, of_indices, text_hashes
from gpt_pipeline.data.formats.filter import Condition
from gpt_pipeline.data.formats.forms import FORMS, Form, Template
from gpt_pipeline.data.formats.rules import Rules, is_not_blank
from gpt_pipeline.data.readers.rows import count_rows
from gpt_pipeline.data.readers.wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class RowKeys:
    """The columns of a format that are the same for texts and questions."""

    filter: tuple[Condition, ...] = ()
    group: str | None = None
    """The column whose rows are never split between training and validation; None: each document by itself."""

    kind: str | None = None
    """The column by whose values losses and scores are broken down; None: documents are all of one kind."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read."""
        named = (self.group, self.kind, *(condition.column for condition in self.filter))
        return tuple(column for column in named if column is not None)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What is set, for fingerprints."""
        kept = {condition.column: condition.text for condition in self.filter}
        every = {"filter": kept, "group": self.group, "kind": self.kind}
        return {name: value for name, value in every.items() if value}

    @property
    def rules(self) -> Rules:
        """Which rows are kept."""
        return {condition.reason: condition.passes for condition in self.filter}

    @property
    def fields(self) -> list[tuple[str, pa.DataType]]:
        """The columns of `of` in the documents' parquet."""
        kind = [("kind", pa.string())] if self.kind else []
        return [("id", pa.string()), *kind, ("group", pa.string())]

    @property
    def document_tables(self) -> Mapping[str, str]:
        """What documents are counted by."""
        return {"kinds": "kind"} if self.kind else {}

    def of(self, rows: pa.RecordBatch, kept: Indices, texts: pa.StringArray) -> dict[str, pa.Array]:
        """Return `fields` of the documents with these texts, which come from the `kept` of `rows`.

        A document is called by the hash of its text.
        """
        hashes = np.ascontiguousarray(text_hashes(texts).T)
        columns = {"id": pa.array([each.tobytes().hex() for each in hashes], pa.string())}
        if self.kind:
            columns["kind"] = rows[self.kind].take(of_indices(kept))
        columns["group"] = columns["id"] if self.group is None else _named(rows[self.group], kept, columns["id"])
        return columns


NO_KEYS = RowKeys()
"""Rows of a text alone."""


@dataclass(frozen=True, kw_only=True)
class OwnFormat(ABC):
    """What texts and questions of one's own have in common."""

    keys: RowKeys = NO_KEYS
    template: Template = "plain"

    @property
    def form(self) -> Form:
        """What stands around the parts of a document."""
        return FORMS[self.template]

    @property
    def templated(self) -> Mapping[str, Any]:
        """The template for fingerprints; nothing for the plain one, which was the first."""
        return {} if self.template == "plain" else {"template": self.template}

    @property
    @abstractmethod
    def columns(self) -> Wanted:
        """The columns that decide a document."""

    @property
    def row_tables(self) -> Mapping[str, str]:
        """None: rows are counted alone."""
        return {}

    @property
    def document_tables(self) -> Mapping[str, str]:
        """Documents by kind, if there are kinds."""
        return self.keys.document_tables

    def count_rows(self, file: Path | io.IOBase, name: str) -> int:
        """Return how many rows there are."""
        return count_rows(file, name, self.columns)

    def count_dropped(self, file: Path | io.IOBase, name: str) -> Counter[str]:
        """Return nothing: only whole rows tell."""
        return Counter()


def _named(column: pa.StringArray, kept: Indices, ids: pa.StringArray) -> pa.StringArray:
    """Return the groups of the kept rows; a blank one is the document by itself."""
    groups = column.take(of_indices(kept))
    return pc.if_else(of_flags(is_not_blank(groups)), groups, ids)

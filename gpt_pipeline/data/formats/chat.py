"""Conversations: a column of the files holds the list of messages of each document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.columns import Flags, of_indices, of_int32s, of_texts, text_sizes
from gpt_pipeline.data.formats.conversation import Conversation, UnusableError, conversation_of
from gpt_pipeline.data.formats.forms import Template
from gpt_pipeline.data.formats.keys import OwnFormat
from gpt_pipeline.data.formats.protocol import Selection
from gpt_pipeline.data.formats.rules import TOO_LONG, selected
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted

_NUMBERS = ("query_start", "query_end", "answer_start", "answer_bytes")
_SPANS = pa.list_(pa.int32())


@dataclass(frozen=True, kw_only=True)
class ChatFormat(OwnFormat):
    """Every row whose messages have a question and an answer becomes a document; see `conversation`."""

    messages: str
    join_parts: bool = False
    """Whether a message's content may be a list of text parts, which are joined."""

    version = "1"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The format's name and its column."""
        joined = {"join_parts": True} if self.join_parts else {}
        columns = {"messages": self.messages}
        return {"format": "chat", "columns": columns, **joined, **self.keys.identity, **self.templated}

    @property
    def columns(self) -> Wanted:
        """The messages, and what rows are kept, split and broken down by."""
        return Wanted(
            texts=(),
            lists=(self.messages,),
            values=self.keys.columns,
            remedy="set data.columns.messages to the column that holds the list of messages",
        )

    @property
    def document_schema(self) -> pa.Schema:
        """The text, where the last question and each answer lie in it, and what is known of it."""
        numbers = [(name, pa.int32()) for name in _NUMBERS]
        return pa.schema([*self.keys.fields, ("text", pa.string()), *numbers, ("spans", _SPANS)])

    def select(self, batch: pa.RecordBatch) -> Selection:
        """Return the rows that are conversations; in the place of their messages stands what was made of them."""

        def is_short_enough(rows: pa.RecordBatch) -> Flags:  # the text is never longer than the messages in JSON
            return text_sizes(rows[self.messages]) <= MAX_DOCUMENT_BYTES

        passed = selected(batch, {TOO_LONG: is_short_enough, **self.keys.rules})
        texts = passed.rows[self.messages].take(of_indices(passed.kept)).to_pylist()
        made = [_made(text, self.template, join_parts=self.join_parts) for text in texts]
        usable = [each for each in made if isinstance(each, Conversation)]
        chosen = passed.only(np.flatnonzero([isinstance(each, Conversation) for each in made]))
        rows = chosen.rows.take(of_indices(chosen.kept))
        place = rows.schema.get_field_index(self.messages)
        return Selection(
            rows=rows.set_column(place, self.messages, _column_of(usable)),
            kept=np.arange(len(usable)),
            positions=chosen.positions,
            dropped=passed.dropped + Counter(each for each in made if isinstance(each, str)),
        )

    def documents_of(self, selection: Selection) -> pa.RecordBatch:
        """Return the documents of the selected rows."""
        made = selection.rows[self.messages].take(of_indices(selection.kept))
        parts = {field.name: made.field(place) for place, field in enumerate(made.type)}
        plain = parts.pop("plain")
        columns = {**self.keys.of(selection.rows, selection.kept, plain), **parts}
        return pa.record_batch(list(columns.values()), schema=self.document_schema)


def _made(messages: str | None, template: Template, *, join_parts: bool) -> Conversation | str:
    """Return the conversation, or why there is none."""
    try:
        return conversation_of(messages, template, join_parts=join_parts)
    except UnusableError as error:
        return str(error)


def _column_of(conversations: Sequence[Conversation]) -> pa.StructArray:
    """Return the columns of conversations in the documents' parquet, as one."""
    texts = of_texts([each.text.encode("utf-8", "surrogatepass") for each in conversations])
    plain = texts
    if any(each.plain is not each.text for each in conversations):
        plain = of_texts([each.plain.encode("utf-8", "surrogatepass") for each in conversations])
    numbers = {name: of_int32s(np.array([getattr(each, name) for each in conversations])) for name in _NUMBERS}
    bounds = np.append(0, np.cumsum([len(each.spans) for each in conversations])).astype(np.int32)
    spans = np.array([bound for each in conversations for bound in each.spans])
    columns = {
        "plain": plain,
        "text": texts,
        **numbers,
        "spans": pa.ListArray.from_arrays(of_int32s(bounds), of_int32s(spans)),
    }
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))

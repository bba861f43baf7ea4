"""Questions with reasoning and answer as texts, and where their parts lie in them, made column by column.

`forms.Form.document` says the same of one text, in plain Python.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import (
    Flags,
    Indices,
    int32s,
    of_flags,
    of_int32s,
    text_sizes,
    text_value,
    without_nulls,
)
from gpt_pipeline.data.formats.forms import PLAIN, Form
from gpt_pipeline.data.formats.rules import is_not_blank

TEXT_FIELDS = [
    ("text", pa.string()),
    *((name, pa.int32()) for name in ("query_start", "query_end", "reasoning_start", "reasoning_end")),
    *((name, pa.int32()) for name in ("answer_start", "answer_bytes")),
]
"""A text and where its parts begin and end in it, counted in characters; null where absent.

The answer is the text's end, with what ends it; `answer_bytes` is its size in UTF-8, for those who count the text in
bytes.
"""


def question_texts(
    query: pa.StringArray, reasoning: pa.StringArray, answer: pa.StringArray, kept: Indices, form: Form = PLAIN
) -> dict[str, pa.Array]:
    """Return `TEXT_FIELDS` of the `kept` rows of these columns; a blank reasoning is left out with its heading."""
    is_reasoned = is_not_blank(reasoning)
    reasoning = _emptied_where_blank(reasoning, is_reasoned)
    reasoned = is_reasoned[kept]
    query_end = len(form.query) + int32s(pc.utf8_length(query))[kept]
    reasoning_start = query_end + np.int32(len(form.reasoning))
    reasoning_end = reasoning_start + int32s(pc.utf8_length(reasoning))[kept]
    return {
        "text": _texts((query, reasoning, answer), kept, is_reasoned, form),
        "query_start": of_int32s(np.full(len(kept), len(form.query), np.int32)),
        "query_end": of_int32s(query_end),
        "reasoning_start": of_int32s(reasoning_start, where=reasoned),
        "reasoning_end": of_int32s(reasoning_end, where=reasoned),
        "answer_start": of_int32s(
            np.where(
                reasoned, reasoning_end + np.int32(len(form.reasoned)), query_end + np.int32(len(form.answer))
            ).astype(np.int32)
        ),
        "answer_bytes": of_int32s(text_sizes(answer)[kept].astype(np.int32) + np.int32(len(form.end.encode()))),
    }


def _texts(
    parts: tuple[pa.StringArray, pa.StringArray, pa.StringArray], kept: Indices, is_reasoned: Flags, form: Form
) -> pa.StringArray:
    """Return the texts of the kept rows, put together in one copy: those of the others are null, and take no room."""
    query, reasoning, answer = parts
    is_kept = np.zeros(len(query), np.bool_)
    is_kept[kept] = True
    before_answer = (
        text_value(form.answer)
        if form.reasoned == form.answer
        else pc.if_else(of_flags(is_reasoned), text_value(form.reasoned), text_value(form.answer))
    )
    pieces = (
        pc.if_else(of_flags(is_kept), text_value(form.query), text_value(None)),
        query,
        pc.if_else(of_flags(is_reasoned), text_value(form.reasoning), text_value("")),
        reasoning,
        before_answer,
        answer,
        *((text_value(form.end),) if form.end else ()),
    )
    return without_nulls(pc.binary_join_element_wise(*pieces, text_value("")))


def _emptied_where_blank(column: pa.StringArray, is_shown: Flags) -> pa.StringArray:
    """Return the texts, "" for nulls and for those of whitespace alone, which are rare: copied only where there are."""
    column = pc.fill_null(column, text_value(""))
    if (text_sizes(column)[~is_shown] == 0).all():
        return column
    return pc.if_else(of_flags(is_shown), column, text_value(""))

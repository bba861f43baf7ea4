"""The rules that every format has for rows: which of them become documents, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt_pipeline.data.columns import Flags, Indices, flags, of_indices, text_bounds, text_bytes, text_sizes
from gpt_pipeline.data.formats.conversation import OTHER_ROLE, TEXT_PARTS
from gpt_pipeline.data.formats.filter import AS_SHOWN, FILTER
from gpt_pipeline.data.formats.forms import MARKS, Form
from gpt_pipeline.data.formats.protocol import Selection

Rules = Mapping[str, Callable[[pa.RecordBatch], Flags]]
"""Which rows pass, by the reason under which the others are counted."""

INVALID_UTF8 = "invalid_utf8"
"""Why rows with a text that is no UTF-8 become no documents."""

JOINED = "set data.join_parts: true to join the text parts of contents that are lists"

TOO_LONG = "too_long"
"""Why rows with more than a document may have become none."""

IN_PARTS = (
    "a document has at most 1 MiB: split longer ones beforehand, or plain text files by data.split_text_at, such as "
    '`split_text_at: "\\n\\n"`'
)
AS_UTF8 = "save the files as UTF-8, such as by `iconv -f WINDOWS-1252 -t UTF-8`"
AS_ROLES = "roles are system, user or human, assistant or gpt, in small letters: rename or remove others in the files"
_HINTS = ((INVALID_UTF8, AS_UTF8), (TEXT_PARTS, JOINED), (TOO_LONG, IN_PARTS), (OTHER_ROLE, AS_ROLES))
_FIRST_BYTES = 3  # of a text, that mostly tell that it is not blank


def selected(batch: pa.RecordBatch, rules: Rules, *, first: Rules | None = None) -> Selection:
    """Return the rows that pass all rules; each other one is counted under the first that it fails.

    The rules `first` come before the test that texts are UTF-8, which parquet readers do not make.
    """
    first = first or {}
    if is_all_valid(batch):  # nearly always
        return _passing(batch, np.arange(batch.num_rows), {**first, **rules}, Counter())
    early = _passing(batch, np.arange(batch.num_rows), first, Counter())
    rows = batch.take(of_indices(early.kept))
    valid = np.array(_valid_rows(rows, 0), np.int64)
    dropped = early.dropped + Counter({INVALID_UTF8: rows.num_rows - len(valid)})
    return _passing(rows.take(of_indices(valid)), early.kept[valid], rules, +dropped)


def in_words(dropped: Counter[str]) -> str:
    """Return for which reasons rows became no documents, the most frequent first, with how many."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in dropped.most_common())


def not_asked_for(dropped: Counter[str]) -> Counter[str]:
    """Return the counts of the reasons but for those that the file asks for: a filter, a choice of languages."""
    return Counter({each: count for each, count in dropped.items() if not each.startswith((FILTER, "language"))})


def with_hints(remedy: str, dropped: Iterable[str]) -> str:
    """Return a remedy with what may help against the reasons for which rows became no documents."""
    reasons = [*dropped]
    is_filtered = any(reason.startswith(FILTER) for reason in reasons)
    of_reasons = [hint for reason, hint in _HINTS if reason in reasons]
    hints = [AS_SHOWN if is_filtered else "", *of_reasons]
    return "; ".join(filter(None, [remedy, *hints]))


def mark_rules(form: Form, columns: Sequence[str]) -> Rules:
    """Return the rule that texts hold no character which stands for a token in `form`; none where there are none."""

    def has_no_mark(rows: pa.RecordBatch) -> Flags:
        is_free = np.ones(rows.num_rows, np.bool_)
        for column in columns:
            for mark in MARKS:
                is_free &= ~flags(pc.match_substring(rows[column], mark))
        return is_free

    return {"reserved_character": has_no_mark} if form.has_marks else {}


def _passing(rows: pa.RecordBatch, positions: Indices, rules: Rules, dropped: Counter[str]) -> Selection:
    is_kept = np.ones(rows.num_rows, dtype=np.bool_)
    for reason, passes in rules.items():
        passed = passes(rows)
        if lost := int((is_kept & ~passed).sum()):
            dropped[reason] += lost
        is_kept &= passed
    kept = np.flatnonzero(is_kept)
    return Selection(rows=rows, kept=kept, positions=positions[kept], dropped=dropped)


def is_all_valid(rows: pa.RecordBatch) -> bool:
    """Whether all texts are UTF-8."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _valid_rows(rows: pa.RecordBatch, offset: int) -> list[int]:
    """Return the numbers, from `offset` on, of the rows that are UTF-8."""
    if is_all_valid(rows):
        return list(range(offset, offset + rows.num_rows))
    if rows.num_rows == 1:
        return []
    middle = rows.num_rows // 2
    return _valid_rows(rows.slice(0, middle), offset) + _valid_rows(rows.slice(middle), offset + middle)


def is_not_blank(column: pa.StringArray) -> Flags:
    """Return which texts, valid UTF-8, have a character other than whitespace."""
    bounds, letters, sizes = text_bounds(column), text_bytes(column), text_sizes(column)
    shown = np.zeros(len(column), dtype=np.bool_)
    unsure = np.flatnonzero(sizes)
    for place in range(_FIRST_BYTES):
        found = letters[np.minimum(bounds[unsure] + place, bounds[unsure + 1] - 1)]
        is_visible = (found > ord(" ")) & (found < 0x7F)
        shown[unsure[is_visible]] = True
        unsure = unsure[~is_visible]
    # The others begin with several blanks, or beyond ASCII, where there are blanks too.
    shown[unsure] = text_sizes(pc.utf8_trim_whitespace(column.take(of_indices(unsure)))) > 0
    return shown

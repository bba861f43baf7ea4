"""Which columns are read of a raw file, and how one inside another is named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from gpt_pipeline.errors import UnreadableFileError

MAX_DOCUMENT_BYTES = 1 << 20
"""UTF-8 bytes of a document's text; longer ones are dropped, which bounds the memory of every stage."""

OR_AS_TEXT = ", or write its values as text"
"""Behind the remedy for numbers or truths where text is needed."""

_OF_VALUES = "correct the key that names it: data.filter, data.group, data.kind or data.columns"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The columns that decide a document; the others are never decompressed.

    A column inside another is named by both with a dot between them: `meta.language`. What is read of any of them is
    text, null where there is none.
    """

    texts: tuple[str, ...]
    """Columns that have to hold text; those among `values` may hold numbers or truths instead."""

    values: tuple[str, ...] = ()
    """Columns of which numbers and truths are taken too, as they are written: `3`, `0.5`, `true`."""

    lists: tuple[str, ...] = ()
    """Columns that hold lists, which are read as JSON; text, which may be such JSON, is taken as it is."""

    remedy: str = ""
    """What to do about a file that lacks a text or a list; empty if nothing can be set."""

    split_at: str | None = None
    """Where a plain text ends and the next begins: at the end of each `line`, or at this mark; None: with its file."""

    batch_rows: int | None = None
    """Rows to decode at a time; None: as many as take some 32 MB."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every column once, in order."""
        return tuple(dict.fromkeys((*self.texts, *self.lists, *self.values)))

    def remedy_for(self, columns: Iterable[str]) -> str:
        """Return what to do about a file where `columns` are missing or wrong; empty if nothing can be set."""
        is_value = all(column in self.values and column not in self.texts for column in columns)
        return _OF_VALUES if self.remedy and is_value else self.remedy


def require_present(wanted: Wanted, found: Iterable[str], *, name: str) -> None:
    """Raise unless every column `wanted` is among those `found` in the file called `name`.

    Raises:
        UnreadableFileError: some are missing; it names those found, and the nearest.
    """
    found = list(found)
    missing = [column for column in wanted.all if column not in found]
    if not missing:
        return
    which = "column" if len(missing) == 1 else "columns"
    near = [each for column in missing for each in difflib.get_close_matches(column, found, n=1)]
    hints = [f"nearest: {', '.join(near)}" if near else "", wanted.remedy_for(missing)]
    raise UnreadableFileError(
        f"{name}: lacks the {which} {', '.join(missing)}; found {'; '.join(filter(None, [', '.join(found), *hints]))}"
    )

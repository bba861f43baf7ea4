"""What files seem to be: the columns that their first rows have, and the format that fits them.

A guess for the one who writes an experiment file. Nothing that runs depends on it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.data.file_kinds import CSV, JSON, JSON_LINES, TEXT, TSV, kind_of
from gpt_pipeline.data.formats.rules import AS_UTF8
from gpt_pipeline.data.formats.synth_text import SYNTH_COLUMNS
from gpt_pipeline.data.readers.opened import opened
from gpt_pipeline.data.readers.records import LINE
from gpt_pipeline.data.readers.rows import first_records
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES
from gpt_pipeline.data.sources.folder import local_files
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say

_logger = logging.getLogger(__name__)

_ROWS = 200  # looked at
_MARKS = ("<|endoftext|>", "\n\n")  # between the documents of one text, the likelier first
_MOST_KINDS = 40  # different values that a column of kinds may have among them
_NUMBER, _TRUTH = "number", "true or false"  # what a column holds, for a person
_LONG = 40  # characters: a kind is a word or two

# Common names, the likeliest first; compared without case, blanks and underscores.
_NAMES: Mapping[str, Sequence[str]] = {
    "question": ("question", "query", "prompt", "instruction", "problem", "input"),
    "answer": ("answer", "response", "output", "completion", "target", "solution"),
    "reasoning": ("reasoning", "rationale", "workedanswer", "explanation", "thought", "chainofthought", "cot"),
    "result": ("result", "finalanswer", "label", "expected"),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "text": ("text", "content", "body", "document", "article", "story", "code", "markdown"),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the files seem to be."""

    files: int
    columns: Mapping[str, str]
    """The columns found, with what they hold: `text`, `number`, `true or false`, `list`, `object`, or `nothing`."""

    format: str
    chosen: Mapping[str, str]
    """The keys of `data.columns` that differ from their defaults or are the format's own."""

    kinds: Sequence[str]
    """Columns that could be `data.kind`, since few values recur in them."""

    split_at: str | None = None
    """Where a text ends that is too long for one document; see `data.split_text_at`."""


def look_at(source: str) -> Look:
    """Return what the files at `source`, an absolute path, seem to be.

    Raises:
        ConfigError: there are no files that can be read.
        DataError: the first file cannot be read, or holds no text.
    """
    return look_into(local_files(source, key="--data").opened(), say=_logger.info)


def look_into(source: Source, *, say: Say) -> Look:
    """Return what the files of a source seem to be; of one that is not here, its beginning alone is transferred.

    Raises:
        UserError: the first file cannot be read, or holds no text.
    """
    if kind_of(source.names[0]) == TEXT:
        mark = _mark_in(source, say)
        return Look(
            files=len(source.names), columns={"text": "text"}, format="text", chosen={}, kinds=(), split_at=mark
        )
    where, records = _first_rows(source, say)
    is_written = kind_of(where) in (CSV, TSV, JSON, JSON_LINES)  # bytes of other kinds may be pictures
    columns = dict(_columns_of(records, is_written=is_written))
    if odd := [name for name in columns if not _is_utf8(name)]:
        raise DataError(f"{where}: found {odd[0]!a}, need names of columns in UTF-8; {AS_UTF8}")
    format, chosen = _format_of(columns, records, where)
    taken = set(chosen.values())
    if is_written and (odd := [name for name in taken if _is_all_binary(records, name)]):
        raise DataError(f"{where}: found no UTF-8 in the column {odd[0]} of the first rows; {AS_UTF8}")
    kinds = [name for name in columns if name not in taken and _is_kind(records, name)] if format != "synth" else []
    return Look(files=len(source.names), columns=columns, format=format, chosen=chosen, kinds=kinds)


def _mark_in(source: Source, say: Say) -> str | None:
    """Return a mark by which the texts could be parted, if half of them or more are too long for one document.

    A text that is alone is parted too, since one document can not be both trained on and held out.

    It looks into the middle one by size, since a packed text is longer than its file.
    """
    name = sorted(source.names, key=source.size)[len(source.names) // 2]
    with source.open(name, say=say) as file, opened(file, name) as stream:
        begin = stream.read(MAX_DOCUMENT_BYTES + 1)
    text = begin.replace(b"\r\n", b"\n").strip()
    is_alone = len(source.names) == 1 and b"\n" in text
    if len(begin) <= MAX_DOCUMENT_BYTES and not is_alone:
        return None
    return next((mark for mark in _MARKS if mark.encode() in text), LINE)


def _first_rows(source: Source, say: Say) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the first file that has rows, for a person, and its first rows; the last file if none has any."""
    where, records = "", list[Mapping[str, Any]]()
    for name in source.names:
        where = str(source.find(name) or name)
        with source.open(name, say=say) as file:
            records = list(itertools.islice(first_records(file, where), _ROWS))
        if records:
            break
    return where, records


def _columns_of(records: Sequence[Mapping[str, Any]], *, is_written: bool) -> Iterator[tuple[str, str]]:
    """Yield each column with what it holds; `is_written`: bytes are text of another encoding."""
    for name in dict.fromkeys(name for record in records for name in record):
        given = [record[name] for record in records if record.get(name) is not None]
        values = [value for value in given if is_written or not _is_binary(value)]
        yield name, _kind(values[0]) if values else "nothing"


def _is_all_binary(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    given = [record[name] for record in records if record.get(name) is not None]
    return all(map(_is_binary, given))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are none, as they were read
        return False
    return True


def _is_binary(value: object) -> bool:
    """Whether a value is a picture, say, and no text."""
    try:
        if isinstance(value, bytes):
            value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return _TRUTH
    kinds = {str: "text", bytes: "text", int: _NUMBER, float: _NUMBER, list: "list", dict: "object"}
    return kinds.get(type(value), type(value).__name__)


def _format_of(
    columns: Mapping[str, str], records: Sequence[Mapping[str, Any]], name: str
) -> tuple[str, dict[str, str]]:
    if set(SYNTH_COLUMNS) <= columns.keys():
        return "synth", {}
    chats = [name for name in columns if _are_messages(next(filter(None, (row.get(name) for row in records)), None))]
    if chats:
        return "chat", {"messages": _named("messages", chats) or chats[0]}
    texts = [name for name, kind in columns.items() if kind == "text" and name != "__key__"]  # a sample's name in a tar
    named = {key: found for key in _NAMES if (found := _named(key, texts)) is not None}
    if "question" in named and "answer" not in named and "result" in named:  # a short answer alone
        named["answer"] = named.pop("result")
    if "question" in named and "answer" not in named:
        numbers = [name for name, kind in columns.items() if kind in (_NUMBER, _TRUTH)]
        if (number := _named("answer", numbers) or _named("result", numbers)) is not None:
            named["answer"] = number
    if "question" in named and "answer" in named:
        parts: dict[str, str] = {
            key: named[key] for key in ("question", "reasoning", "answer", "result") if key in named
        }
        return "question_answer", parts
    if not texts:
        found = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "no rows"
        need = (
            "need a text in each, such as {'text': '...'}; if later ones have it, leave out --data and name its column"
        )
        raise DataError(f"{name}: no column of text in the first {_ROWS} rows; found {found}; {need} by data.columns")
    longest = max(texts, key=lambda name: sum(_length(record.get(name)) for record in records))
    return "text", {"text": named.get("text", longest)}


def _are_messages(value: object) -> bool:
    """Whether a value is a list of what two sides say in turn."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(each, dict) and ({"role", "content"} <= each.keys() or {"from", "value"} <= each.keys())
        for each in value
    )


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _named(key: str, texts: Sequence[str]) -> str | None:
    """Return the column whose name says that it is the `key`."""
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in texts}
    return next((plain[name] for name in _NAMES[key] if name in plain), None)


def _is_kind(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [record.get(name) for record in records]
    different = {value for value in values if isinstance(value, str)}
    is_short = all(len(value) <= _LONG for value in different)
    return is_short and 1 < len(different) <= min(_MOST_KINDS, len(values) // 2)

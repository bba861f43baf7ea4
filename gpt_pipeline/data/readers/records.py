"""Files of records that are read one after the other: JSON, tables in text, tar archives, plain text.

A record is a mapping from columns to values. What cannot be a document at all (a line of many megabytes) becomes a
row that is too long, so that it is counted with the others of its kind, and memory stays flat. Only a record of JSON
without lines, or a field of a table, stops the reading when it is longer than `_MAX_WHOLE_CHARACTERS`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import pyarrow as pa

from gpt_pipeline.data.columns import as_json, of_texts
from gpt_pipeline.data.file_kinds import CSV, JSON, JSON_LINES, TAR, TEXT, TEXT_LIST, TSV, kind_of
from gpt_pipeline.data.readers.opened import opened
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, OR_AS_TEXT, Wanted, require_present
from gpt_pipeline.data.sources.text_lists import listed_files
from gpt_pipeline.errors import UnreadableFileError
from gpt_pipeline.shown import counted

LINE = "line"
"""As `Wanted.split_at`: every line of a text is a document."""

_MAX_RECORD_BYTES = 16 << 20  # read of a record; the longest document fits with every character escaped
_MAX_WHOLE_CHARACTERS = 128 << 20  # of a record whose end is known only when all of it was read
_BATCH_BYTES, _MAX_BATCH_ROWS = 8 << 20, 2_000
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20  # of a member of an archive
_READ_WHOLE = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SHOWN_COLUMNS = 50
_HEAD_LINES = 100  # of the names of a table's columns

Record = Mapping[str, Any]


class _TooLong:
    """A value, or a whole record, of more bytes than any document may have."""


_TOO_LONG = _TooLong()
_LONG_TEXT = b" " * (MAX_DOCUMENT_BYTES + 1)  # what stands for such a value: the formats count it as too long


def read_records(
    file: Path | io.IOBase, wanted: Wanted, *, name: str, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file; see `read_rows`."""
    rows = _Rows(name=name, wanted=wanted)
    limit = batch_rows or wanted.batch_rows or _MAX_BATCH_ROWS
    with opened(file, name) as stream:
        for place, record in _reader_of(name)(stream, name, wanted):
            rows.add(place, record)
            if rows.count >= limit or rows.size >= _BATCH_BYTES:
                yield rows.taken()
    rows.require_columns()
    if rows.count:
        yield rows.taken()


def whole_records(file: Path | io.IOBase, name: str) -> Iterator[Record]:
    """Yield the records of a file with all their columns; those too long to be read are left out."""
    with opened(file, name) as stream:
        for _, record in _reader_of(name)(stream, name, Wanted(texts=())):
            if not isinstance(record, _TooLong):
                yield record


def count_records(file: Path | io.IOBase, name: str, wanted: Wanted) -> int:
    """Return at least as many as the file has records, by what stands between or around them."""
    kind = kind_of(name)
    if kind == TEXT and wanted.split_at is None:
        return 1
    if kind == TEXT_LIST:
        of_list = file if isinstance(file, Path) else Path(getattr(file, "name", name))
        if wanted.split_at is None:
            return sum(1 for _ in of_list.open("rb"))
        return sum(count_records(path, member, wanted) for member, path in listed_files(of_list))
    with opened(file, name) as stream:
        if kind == TAR:
            with _archive(stream, name) as archive:
                return sum(1 for _ in archive)
        if kind == JSON:
            mark = b"{"
        else:
            split_at = wanted.split_at if kind == TEXT else None
            mark = b"\n" if split_at in (None, LINE) else _unix(split_at.encode())
        return 1 + _occurrences(stream, mark)


def _occurrences(file: BinaryIO, mark: bytes) -> int:
    count, rest = 0, b""
    for chunk in _chunks(file):
        count += (rest + chunk).count(mark)
        rest = chunk[len(chunk) - len(mark) + 1 :] if len(mark) > 1 else b""
    return count


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a file holds, a chunk at a time, with the line ends of POSIX: marks may have some."""
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.endswith(b"\r"):  # what belongs to it may come next
            chunk += file.read(1)
        yield _unix(chunk)


def _unix(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n")


@dataclass(kw_only=True)
class _Rows:
    """Records on their way to columns."""

    name: str
    wanted: Wanted
    count: int = 0
    size: int = 0
    """Bytes."""

    _columns: dict[str, list[bytes | None]] = field(default_factory=dict)
    _found: dict[str, None] = field(default_factory=dict)
    """Columns that a record had, as far as there are few."""

    _lacking: set[str] = field(default_factory=set)
    """Wanted columns that a record did not have."""

    def __post_init__(self) -> None:
        self._columns = {column: [] for column in self.wanted.all}

    def add(self, place: str, record: Record | _TooLong) -> None:
        """Append a record; `place` says where it stands in the file.

        Raises:
            UnreadableFileError: a value is of a kind that is not wanted.
        """
        for column, values in self._columns.items():
            value = _LONG_TEXT if isinstance(record, _TooLong) else self._value(place, record, column)
            values.append(value)
            self.size += len(value or b"")
        self.count += 1

    def _value(self, place: str, record: Record, column: str) -> bytes | None:
        value, is_there = _at(record, column)
        if is_there:
            self._found[column] = None
        elif is_there is False:
            self._lacking.add(column)
            if len(self._found) < _SHOWN_COLUMNS:
                self._found.update(dict.fromkeys(_names_of(record, opened=column.partition(".")[0])))
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, str):
            if len(value) > MAX_DOCUMENT_BYTES and column in self.wanted.texts:
                return _LONG_TEXT
            return value.encode("utf-8", "surrogatepass")  # a lone surrogate is no UTF-8, and is counted as such
        if isinstance(value, _TooLong):
            return _LONG_TEXT
        if isinstance(value, bool | int | float) and column in self.wanted.values:
            return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value).encode()
        if isinstance(value, list) and column in self.wanted.lists:
            return as_json(value)
        if column in self.wanted.lists:
            need = "a list"
        else:
            need = "text" if column in self.wanted.texts else "text, a number or true or false"
        remedy = self.wanted.remedy_for([column])
        if remedy and need == "text" and isinstance(value, bool | int | float):
            remedy += OR_AS_TEXT
        hint = f"; {remedy}" if remedy else ""
        raise UnreadableFileError(f"{self.name}, {place}: {column} is {_kind(value)}, need {need}{hint}")

    def taken(self) -> pa.RecordBatch:
        """Return the rows so far, and begin anew."""
        batch = pa.record_batch([of_texts(values) for values in self._columns.values()], names=list(self._columns))
        self._columns = {column: [] for column in self._columns}
        self.count = self.size = 0
        return batch

    def require_columns(self) -> None:
        """Raise if a column stood in no record, of those that could have had it."""
        unknown = (column for column in self._columns if column not in self._lacking)
        require_present(self.wanted, dict.fromkeys([*self._found, *unknown]), name=self.name)


def _at(record: Record, column: str) -> tuple[Any, bool | None]:
    """Return the value of a column, also of one inside another, and whether the record has it.

    None: the one around it is null, so that nothing is known of it.
    """
    if column in record:
        return record[column], True
    outer, _, inner = column.partition(".")
    value = record.get(outer)
    if inner and isinstance(value, Mapping):
        return _at(value, inner)
    return None, None if inner and outer in record and value is None else False


def _names_of(record: Record, *, opened: str) -> Iterator[str]:
    """Yield the columns of a record, and those inside the one called `opened`."""
    for name, value in record.items():
        yield name
        if name == opened and isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in value)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


_Places = Iterator[tuple[str, Record | _TooLong]]


def _reader_of(name: str) -> Callable[[BinaryIO, str, Wanted], _Places]:
    return _READERS[kind_of(name) or ""]


def _first_of(begin: bytes, name: str) -> bytes:
    """Return what a file begins with, without the mark that some programs put there.

    Raises:
        UnreadableFileError: it is the mark of UTF-16, whose bytes would pass for text with NULs.
    """
    if begin.startswith(_UTF16_MARKS):
        what = "found UTF-16, need UTF-8; save it as UTF-8, such as by `iconv -f UTF-16 -t UTF-8`"
        raise UnreadableFileError(f"{name}: {what}")
    return begin.removeprefix(_BOM)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes | _TooLong]]:
    """Yield each line that is not blank with its number, from 1."""
    for number in itertools.count(1):
        line = file.readline(_MAX_RECORD_BYTES)
        if not line:
            return
        if number == 1:
            line = _first_of(line, name)
        if len(line) == _MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, _TOO_LONG
        elif line.strip():
            yield number, line


def _json_lines(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
    for number, line in _lines(file, name):
        place = f"line {number}"
        yield place, line if isinstance(line, _TooLong) else _object(_parsed(line, name, place, _OF_LINES), name, place)


_OF_LINES = "; need an object in each line: a list, or objects over several lines, belong in a file named .json"


def _parsed(line: bytes, name: str, place: str, remedy: str = "") -> Any:
    try:
        # Bytes that are no UTF-8 stay in the text, and are counted as such. (From bytes, json would guess an encoding.)
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(
            f"{name}, {place}: not JSON ({error}); it begins with {line[:40]!r}{remedy}"
        ) from None


def _object(value: Any, name: str, place: str) -> Record:
    if not isinstance(value, dict):
        raise UnreadableFileError(f"{name}, {place}: found {_kind(value)}, need an object such as {{'text': '...'}}")
    return value


def _json(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
    """Read a list of objects, or objects one after the other, a chunk at a time."""
    stream = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    text, at, number = stream.read(_CHUNK_BYTES), 0, 1
    _first_of(text[:2].encode("utf-8", "surrogateescape"), name)
    at = _between_records.match(text).end()  # type: ignore[union-attr] # it matches nothing, too
    is_list = text.startswith("[", at)
    at += is_list
    while True:
        at = _between_records.match(text, at).end()  # type: ignore[union-attr]
        if is_list and text.startswith("]", at):
            return _require_blank(itertools.chain([text[at + 1 :]], iter(lambda: stream.read(_CHUNK_BYTES), "")), name)
        value, end, problem = _decoded(text, at)
        if end == len(text):  # what ends with the chunk may go on
            more = stream.read(max(_CHUNK_BYTES, len(text) - at))
            if more:
                if len(text) - at > _MAX_WHOLE_CHARACTERS:
                    what = f"longer than {(len(text) - at) >> 20} MB ({problem}); write the file as JSON lines"
                    raise UnreadableFileError(f"{name}, record {number}: {what}")
                text, at = text[at:] + more, 0
                continue
            if at == len(text):
                if is_list:
                    what = f"ends before its list does, after {counted(number - 1, 'record')}"
                    raise UnreadableFileError(f"{name}: {what}; bring the file here again")
                return
        if problem:
            begin = text[at : at + 40]
            raise UnreadableFileError(
                f"{name}, record {number}: not JSON ({problem}); it begins with {begin!r}; {_OF_RECORDS}"
            )
        yield f"record {number}", _object(value, name, f"record {number}")
        at, number = end, number + 1


_OF_RECORDS = "need a list of objects, or one after the other; correct it, or bring the file here again"


def _require_blank(rest: Iterable[str], name: str) -> None:
    """Raise unless there is nothing but blanks behind the list that a file is."""
    for text in rest:
        if found := text.strip(" \t\r\n"):
            need = "nothing there; remove it, join several lists into one, or write the file as JSON lines"
            raise UnreadableFileError(f"{name}: found {found[:40]!r} behind the end of its list, need {need}")


_between_records = re.compile(r"[ \t\r\n,]*")
_decode = json.JSONDecoder().raw_decode


def _decoded(text: str, at: int) -> tuple[Any, int, str]:
    """Return the value that begins at a place, where it ends, and an empty text; else the text's end and the reason."""
    try:
        value, end = _decode(text, at)
    except (ValueError, RecursionError) as error:
        return None, len(text), str(error)
    return value, end, ""


def _table(*delimiters: str) -> Callable[[BinaryIO, str, Wanted], _Places]:
    def read(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
        csv.field_size_limit(_MAX_WHOLE_CHARACTERS)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        head = _head_of(text)
        if not head:
            return
        _first_of(head[0][:2].encode("utf-8", "surrogateescape"), name)
        delimiter = _delimiter_of("".join(head), delimiters)
        lines = itertools.chain(head, text)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)  # or a quote without end takes in the rows behind it
        begin = 1
        try:
            columns = next(rows)
            begin = rows.line_num + 1
            if twice := next((column for column in wanted.all if columns.count(column) > 1), None):
                raise UnreadableFileError(
                    f"{name}: has the column {twice} {columns.count(twice)} times, need it once; rename the others"
                )
            for row in rows:
                if len(row) == len(columns):
                    yield f"line {rows.line_num}", dict(zip(columns, map(_escaped, row), strict=True))
                elif row:
                    raise UnreadableFileError(
                        f"{name}, line {rows.line_num}: found {len(row)} fields, need the {len(columns)} of its first "
                        f"line ({', '.join(columns)}); quote fields that hold {delimiter!r} or a line's end"
                    )
                begin = rows.line_num + 1
        except csv.Error as error:
            what = f"{error}, in the row that begins in line {begin}"
            raise UnreadableFileError(f"{name}, line {rows.line_num}: {what}; {_OF_QUOTES}") from None

    return read


def _head_of(text: io.TextIOBase) -> list[str]:
    """Return the lines of a table's first row: names of columns may be quoted, and hold line ends."""
    head: list[str] = []
    while (not head or "".join(head).count('"') % 2) and len(head) < _HEAD_LINES and (line := text.readline()):
        head.append(line)
    return head


def _delimiter_of(head: str, delimiters: Sequence[str]) -> str:
    """Return what parts the columns: the first of the delimiters that a table's first row has outside of quotes."""
    bare = re.sub(r'"[^"]*"?', "", head)
    return next((each for each in delimiters if each in bare), delimiters[0])


_OF_QUOTES = (
    "see whether a quote in it has no end, quote the whole field and double the quotes that belong to its text, "
    "or write the file as JSON lines"
)


def _escaped(text: str) -> str | bytes:
    """Return the text, or, where it was no UTF-8, the bytes that it was."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape")


def _text(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
    """Read a text as one document, a document a line, or as what lies between marks."""
    of_file = {"file": PurePosixPath(Path(name).as_posix()).name if os.path.isabs(name) else name}
    if wanted.split_at is None:
        whole = file.read(_MAX_RECORD_BYTES)
        if whole.strip():
            begun = _first_of(whole, name)
            text = _TOO_LONG if len(whole) == _MAX_RECORD_BYTES else _clean(begun)
            yield "its text", {**of_file, "text": text}
    elif wanted.split_at == LINE:
        for number, line in _lines(file, name):
            text = line if isinstance(line, _TooLong) else _clean(line)
            yield f"line {number}", {**of_file, "text": text}
    else:
        for number, part in enumerate(_between(file, _unix(wanted.split_at.encode())), start=1):
            if isinstance(part, _TooLong) or part.strip():
                text = part if isinstance(part, _TooLong) else _clean(_first_of(part, name) if number == 1 else part)
                yield f"document {number}", {**of_file, "text": text}


def _clean(text: bytes) -> bytes:
    """Return the text with the line ends of POSIX, and none around it."""
    return _unix(text).strip(b"\n")


def _between(file: BinaryIO, mark: bytes) -> Iterator[bytes | _TooLong]:
    part, is_too_long = b"", False
    for chunk in _chunks(file):
        *whole, part = (part + chunk).split(mark)
        for each in whole:
            yield _TOO_LONG if is_too_long else each
            is_too_long = False
        if len(part) > _MAX_RECORD_BYTES:
            part, is_too_long = part[-len(mark) :], True
    yield _TOO_LONG if is_too_long else part


def _tar(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
    """Read samples as WebDataset keeps them: members of one name, one after the other, each end of it a column."""
    needed = {column.partition(".")[0] for column in wanted.all} | set(wanted.all)
    key, sample = "", dict[str, Any]()
    with _archive(file, name) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            stem, _, end = path.name.partition(".")
            if not member.isfile() or not stem or not end:  # `.DS_Store`, and what macOS adds
                continue
            if (own := str(path.with_name(stem))) != key and sample:
                yield key, sample
                sample = {}
            key = own
            sample["__key__"] = key
            sample[end] = _member(archive, member, name) if end in needed or not needed else None
        _require_end(archive)
    if sample:
        yield key, sample


class _Header(tarfile.TarInfo):
    """A member's header; `tarfile` takes one that is cut, missing or damaged for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the header in a block.

        Raises:
            ReadError: it is of a name or the like, of which `tarfile` would read any length into memory.
        """
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and header.size > _MAX_HEADER_BYTES:
            what = f"found {header.size:,} bytes of a member's name or attributes, need at most {_MAX_HEADER_BYTES:,}"
            raise tarfile.ReadError(what)
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Return the next header.

        Raises:
            ReadError: there is none, and no block of zeros, which ends an archive (POSIX, "ustar Interchange Format").
            _EndError: there is nothing at all.
        """
        try:
            return super().fromtarfile(archive)
        except RecursionError:  # in `tarfile`, of one behind the other
            raise tarfile.ReadError("found hundreds of headers without a member, need one or two for each") from None
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # which typeshed does not know
            raise
        except tarfile.HeaderError as error:
            if archive.offset == 0:  # of which tarfile says what it is
                raise
            what = f"found no member at byte {archive.offset}, nor the zeros that end an archive"
            if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined] # nor this one
                raise _EndError(
                    f"{what}; bring the file here again, or, where it is whole and its program wrote none, append them "
                    "by `head -c 1024 /dev/zero >> FILE`"
                ) from None
            raise tarfile.ReadError(f"{what}: {error}") from None


class _EndError(tarfile.ReadError):
    """An archive does not end as it should; unlike one that is damaged, it may have to be mended, not brought again."""


@contextmanager
def _archive(file: BinaryIO, name: str) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
            yield archive
    except _EndError as error:
        raise UnreadableFileError(f"{name}: {error}") from None


def _require_end(archive: tarfile.TarFile) -> None:
    """Raise unless the zeros behind which an archive was read are its end; rubbish may follow, as some programs leave.

    Raises:
        ReadError: they are one block, with something behind it, as where a header was overwritten.
        _EndError: there is a member behind them.
    """
    read = archive.fileobj.read
    for number, block in enumerate(iter(lambda: read(tarfile.BLOCKSIZE), b"")):
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            raise _EndError(
                "found a member behind the zeros that end the archive; leave archives apart that were joined"
            )
        if number == 0 and block.strip(b"\0"):
            raise tarfile.ReadError("found one block of zeros with something behind it, need two to end the archive")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Any:
    if member.size > _MAX_RECORD_BYTES:
        return _TOO_LONG
    opened_member = archive.extractfile(member)
    content = b"" if opened_member is None else opened_member.read()
    return _parsed(content, name, member.name) if member.name.endswith(".json") else content


def _text_list(file: BinaryIO, name: str, wanted: Wanted) -> _Places:
    """Read the text files that a list names."""
    for member, path in listed_files(Path(name)):
        with opened(path, str(path)) as stream:
            for place, record in _text(stream, member, wanted):
                yield f"{member}, {place}", record


_READERS: Mapping[str, Callable[[BinaryIO, str, Wanted], _Places]] = {
    JSON_LINES: _json_lines,
    JSON: _json,
    CSV: _table(",", ";", "\t"),  # Excel writes semicolons where the comma is for decimals
    TSV: _table("\t"),
    TEXT: _text,
    TAR: _tar,
    TEXT_LIST: _text_list,
}

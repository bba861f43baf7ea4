"""Raw parquet files read in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpt_pipeline.data.columns import lists_as_json
from gpt_pipeline.data.readers.opened import LET_IT_BE_READ, first_line
from gpt_pipeline.data.readers.wanted import OR_AS_TEXT, Wanted, require_present
from gpt_pipeline.errors import UnreadableFileError

_BINARY_KINDS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)  # as Spark and Hive write text
_STRING_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_TEXT_KINDS = (*_STRING_KINDS, *_BINARY_KINDS, pa.types.is_null)
_AS_TEXT = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)  # rows that are none are counted later
_VALUE_KINDS = (*_TEXT_KINDS, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_READ_BYTES, _REMOTE_BYTES = 1 << 20, 1 << 16  # of each column at a time
_BATCH_BYTES, _MAX_BATCH_ROWS = 32 << 20, 2_000  # decoded at a time


def open_parquet(file: Path | io.IOBase, wanted: Wanted, *, name: str) -> pq.ParquetFile:
    """Return a raw file, ready to be read in bounded memory; of an open one only what is read of its columns.

    Raises:
        DataError: the file is missing, is not parquet, is truncated, or lacks a column.
    """
    size = _READ_BYTES if isinstance(file, Path) else _REMOTE_BYTES
    try:
        # Otherwise the whole row group would be held, or each column's whole chunk: and a file of SYNTH is one of them.
        opened = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True, buffer_size=size)
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFileError(
            f"{name}: cannot be read ({error.strerror or 'no such file'}); {LET_IT_BE_READ}"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            f"{name}: not a readable parquet file ({first_line(error)}); {_beginning(file)}"
        ) from error
    require_columns(opened.schema_arrow, wanted, name=name)
    return opened


def require_columns(schema: pa.Schema, wanted: Wanted, *, name: str) -> None:
    """Raise unless the file called `name` has each of the columns once, and of a kind that can be read.

    Raises:
        UnreadableFileError: one is missing, stands there twice, or holds something else.
    """
    require_present(wanted, _names_in(schema, wanted.all), name=name)
    if twice := [column for column in wanted.all if schema.names.count(column) > 1]:
        raise UnreadableFileError(
            f"{name}: has the column {twice[0]} {schema.names.count(twice[0])} times, need it once; write the file "
            "again without the others, or under other names"
        )
    for what, columns, kinds in (
        ("text columns", [each for each in wanted.texts if each not in wanted.values], _TEXT_KINDS),
        ("lists, or text that is a list in JSON", wanted.lists, (*_TEXT_KINDS, *_LIST_KINDS)),
        ("plain values", wanted.values, _VALUE_KINDS),
    ):
        found = {column: _stored(schema, column)[1] for column in columns}
        if wrong := {column: kind for column, kind in found.items() if not _is_one_of(kind, kinds)}:
            remedy = wanted.remedy_for(wrong)
            if remedy and kinds is _TEXT_KINDS and all(_is_one_of(kind, _VALUE_KINDS) for kind in wrong.values()):
                remedy += OR_AS_TEXT
            listed = ", ".join(f"{column} is {kind}" for column, kind in wrong.items())
            raise UnreadableFileError(f"{name}: need {what}, but {listed}" + (f"; {remedy}" if remedy else ""))


def _names_in(schema: pa.Schema, wanted: Sequence[str]) -> list[str]:
    """Return the columns of a file, and those inside others: all of the groups that `wanted` names a part of."""
    names: list[str] = []
    opened = {column.split(".")[0] for column in wanted if "." in column}
    for field in schema:
        names.append(field.name)
        if field.name in opened and pa.types.is_struct(field.type):
            names += [f"{field.name}.{inner}" for inner in _names_in(pa.schema(list(field.type)), _within(wanted))]
        elif pa.types.is_null(field.type):  # null in every row, and so is whatever stands in it in other files
            names += [column for column in wanted if column.startswith(f"{field.name}.")]
    return names


def _within(wanted: Sequence[str]) -> list[str]:
    return [column.split(".", 1)[1] for column in wanted if "." in column]


def _stored(schema: pa.Schema, column: str) -> tuple[str, pa.DataType]:
    """Return name and kind of what holds a column: itself, or the group around it if that is null in every row."""
    if column in schema.names:
        return column, schema.field(column).type
    outer, _, inner = column.partition(".")
    kind = schema.field(outer).type
    if pa.types.is_null(kind):
        return outer, kind
    name, kind = _stored(pa.schema(list(kind)), inner)
    return f"{outer}.{name}", kind


def column_of(batch: pa.RecordBatch, column: str) -> pa.Array:
    """Return a column of a batch as text, also one inside another; lists as JSON."""
    outer, *path = [column] if column in batch.schema.names else column.split(".")
    found = batch[outer]
    for name in path:
        found = found if pa.types.is_null(found.type) else pc.struct_field(found, name)
    return lists_as_json(found) if _is_one_of(found.type, _LIST_KINDS) else found.cast(options=_AS_TEXT)


def _is_one_of(kind: pa.DataType, kinds: Sequence[object]) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_one_of(kind.value_type, kinds)
    return any(is_kind(kind) for is_kind in kinds)  # type: ignore[operator]


def _beginning(file: Path | io.IOBase) -> str:
    if not isinstance(file, Path):
        return "look at it where it comes from"
    with file.open("rb") as opened:
        beginning = opened.read(40)
    return f"it begins with {beginning!r} and has {file.stat().st_size} bytes; download it again"


def read_parquet(
    file: Path | io.IOBase, wanted: Wanted, *, name: str, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in order, only the wanted columns, at most `batch_rows` at a time.

    Raises:
        DataError: the file cannot be read to its end.
    """
    columns = list(wanted.all)
    with open_parquet(file, wanted, name=name) as opened:
        stored = [_stored(opened.schema_arrow, column)[0] for column in columns]
        size = batch_rows or wanted.batch_rows or _rows_at_a_time(opened.metadata, stored)
        for batch in _batches(opened, file, name, size, stored):
            yield pa.record_batch([column_of(batch, column) for column in columns], names=columns)


def whole_row_groups(file: Path | io.IOBase, batch_rows: int, *, name: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file with all their columns, `batch_rows` at a time.

    Raises:
        DataError: the file cannot be read.
    """
    with open_parquet(file, Wanted(texts=()), name=name) as opened:
        yield from _batches(opened, file, name, batch_rows, None)


def _batches(
    opened: pq.ParquetFile, file: Path | io.IOBase, name: str, size: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    try:
        yield from opened.iter_batches(batch_size=size, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(f"{name}: damaged ({first_line(error)}); {_beginning(file)}") from error


def _rows_at_a_time(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Return how many rows take some `_BATCH_BYTES`, by the row group whose rows are longest."""
    longest, within = 1.0, tuple(f"{column}." for column in columns)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(within))
        longest = max(longest, size / max(1, group.num_rows))
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / longest)))


@contextmanager
def open_counted(file: Path | io.IOBase, name: str) -> Iterator[pq.ParquetFile]:
    """Yield a file, which may be a remote one, of which only the footer and few columns are to be read.

    Raises:
        DataError: it is not a readable parquet file.
    """
    try:
        # No reading ahead: other threads would do that, and the file has one position.
        with pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(f"{name}: not a readable parquet file ({first_line(error)})") from error


def count_parquet(file: Path | io.IOBase, name: str, wanted: Wanted) -> int:
    """Return the file's rows; only its footer is read.

    Raises:
        DataError: it is not a readable parquet file, or lacks a column.
    """
    with open_counted(file, name) as parquet:
        require_columns(parquet.schema_arrow, wanted, name=name)
        return int(parquet.metadata.num_rows)

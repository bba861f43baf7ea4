"""Raw parquet files read in bounded memory, and the rules that every format has for their rows."""

from __future__ import annotations

import difflib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpt_pipeline.data.columns import Flags, Indices, of_indices, text_bounds, text_bytes, text_sizes
from gpt_pipeline.data.formats.protocol import Format, Selection
from gpt_pipeline.errors import UnreadableFileError

Rules = Mapping[str, Callable[[pa.RecordBatch], Flags]]
"""Which rows pass, by the reason under which the others are counted."""

_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
_READ_BYTES = 1 << 20  # of each column at a time
_FIRST_BYTES = 3  # of a text, that mostly tell that it is not blank
_BATCH_BYTES, _MAX_BATCH_ROWS = 32 << 20, 2_000  # decoded at a time


def open_raw(path: Path, format: Format) -> pq.ParquetFile:
    """Return a raw file, ready to be read in bounded memory.

    Raises:
        DataError: the file is missing, is not parquet, is truncated, or lacks a column.
    """
    try:
        # Otherwise the whole row group would be held, or each column's whole chunk: and a file of SYNTH is one of them.
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True, buffer_size=_READ_BYTES)
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFileError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from None
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            f"{path}: not a readable parquet file ({_first_line(error)}); {_beginning(path)}"
        ) from error
    require_columns(file.schema_arrow, format.columns, name=str(path), remedy=format.columns_remedy)
    return file


def require_columns(schema: pa.Schema, columns: Sequence[str], *, name: str, remedy: str = "") -> None:
    """Raise `DataError` unless the file called `name` has each of `columns` once, and they are text."""
    missing = [column for column in columns if column not in schema.names]
    if missing:
        which = "column" if len(missing) == 1 else "columns"
        near = [each for column in missing for each in difflib.get_close_matches(column, schema.names, n=1)]
        hints = [*([f"nearest: {', '.join(near)}"] if near else []), *([remedy] if remedy else [])]
        raise UnreadableFileError(
            f"{name}: lacks the {which} {', '.join(missing)}; found {'; '.join([', '.join(schema.names), *hints])}"
        )
    if twice := [column for column in columns if schema.names.count(column) > 1]:
        raise UnreadableFileError(
            f"{name}: has the column {twice[0]} {schema.names.count(twice[0])} times, need it once; write the file "
            "again without the others, or under other names"
        )
    wrong = [
        f"{column} is {schema.field(column).type}" for column in columns if not _is_text(schema.field(column).type)
    ]
    if wrong:
        hint = f"; {remedy}" if remedy else ""
        raise UnreadableFileError(f"{name}: need text columns, but {', '.join(wrong)}{hint}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in _TEXT_KINDS)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(40)
    return f"it begins with {beginning!r} and has {path.stat().st_size} bytes; download it again"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def read_batches(path: Path, format: Format, *, batch_rows: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a raw file in order, only the format's columns, at most `batch_rows` at a time.

    Raises:
        DataError: the file cannot be read to its end.
    """
    columns = list(format.columns)
    schema = pa.schema([(name, pa.string()) for name in columns])
    with open_raw(path, format) as file:
        size = batch_rows or format.batch_rows or _rows_at_a_time(file.metadata, columns)
        try:
            for batch in file.iter_batches(batch_size=size, columns=columns, use_threads=False):
                yield batch.select(columns).cast(schema)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(f"{path}: damaged ({_first_line(error)}); {_beginning(path)}") from error


def _rows_at_a_time(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Return how many rows take some `_BATCH_BYTES`, by the row group whose rows are longest."""
    longest = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
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
        raise UnreadableFileError(f"{name}: not a readable parquet file ({_first_line(error)})") from error


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
    dropped = early.dropped + Counter(invalid_utf8=rows.num_rows - len(valid))
    return _passing(rows.take(of_indices(valid)), early.kept[valid], rules, +dropped)


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

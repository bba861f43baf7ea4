"""The rows of a raw file of any kind, by the end of its name."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from gpt_pipeline.data.file_kinds import ARROW, PARQUET, TEXT, kind_of
from gpt_pipeline.data.readers.arrow import count_arrow, read_arrow, whole_batches
from gpt_pipeline.data.readers.parquet import count_parquet, read_parquet, whole_row_groups
from gpt_pipeline.data.readers.records import count_records, read_records, whole_records
from gpt_pipeline.data.readers.wanted import Wanted

_LOOKED_AT = 50  # rows of a batch


def is_parquet(name: str) -> bool:
    """Whether a file is read by its columns, without the others."""
    return kind_of(name) in (PARQUET, None)


def content_of(name: str, sha256: str, wanted: Wanted) -> str:
    """Return what tells the wanted columns of the file called `name` from those of others: its checksum, mostly.

    A text has its file's name in the column `file`: where that is wanted, it is part of the content.
    """
    has_name = kind_of(name) == TEXT and "file" in wanted.all
    return f"{sha256} {PurePosixPath(name).name}" if has_name else sha256


def read_rows(path: Path, wanted: Wanted, *, batch_rows: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a raw file in order, only the wanted columns, all of them text, at most `batch_rows` at a time.

    Raises:
        DataError: the file is missing, lacks a column, or cannot be read to its end.
    """
    return read_rows_of(path, wanted, name=str(path), batch_rows=batch_rows)


def read_rows_of(
    file: Path | io.IOBase, wanted: Wanted, *, name: str, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file called `name` as `read_rows` does; of an open one, no more is read than is yielded.

    The position of an open file tells how much of it was read, except for one of parquet.
    """
    read = read_parquet if is_parquet(name) else read_arrow if kind_of(name) == ARROW else read_records
    return read(file, wanted, name=name, batch_rows=batch_rows)


def count_rows(file: Path | io.IOBase, name: str, wanted: Wanted) -> int:
    """Return at least as many as the file called `name` has rows, reading as little of it as possible.

    Raises:
        DataError: it is not readable, or lacks a column.
    """
    if is_parquet(name):
        return count_parquet(file, name, wanted)
    if kind_of(name) == ARROW:
        return count_arrow(file, name, wanted)
    return count_records(file, name, wanted)


def first_records(file: Path | io.IOBase, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of the file called `name` with all their columns, for one who looks at the first few.

    Raises:
        DataError: the file cannot be read.
    """
    if is_parquet(name):
        for batch in whole_row_groups(file, _LOOKED_AT, name=name):
            yield from _as_records(batch)
    elif kind_of(name) == ARROW:
        for batch in whole_batches(file, name):
            yield from _as_records(batch.slice(0, _LOOKED_AT))
    else:
        yield from whole_records(file, name)


def _as_records(batch: pa.RecordBatch) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a batch; those with a text that is no UTF-8 are left out."""
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError:
            continue

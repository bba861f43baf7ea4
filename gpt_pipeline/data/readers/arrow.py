"""Arrow files, as `datasets` keeps them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from gpt_pipeline.data.file_kinds import compression_of
from gpt_pipeline.data.readers.opened import opened
from gpt_pipeline.data.readers.parquet import column_of, require_columns
from gpt_pipeline.data.readers.wanted import Wanted
from gpt_pipeline.errors import UnreadableFileError

_BATCH_ROWS = 2_000
_FILE_MARK = b"ARROW1"  # begins a file in the file format (Arrow, "IPC File Format")


@contextmanager
def _batches(file: Path | io.IOBase, name: str, wanted: Wanted) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the file's batches, of one in Arrow's streaming format or in its file format."""
    with opened(file, name) as stream:
        begin = stream.read(len(_FILE_MARK))
        if not begin:
            raise UnreadableFileError(f"{name}: is empty (0 bytes); bring the file here again, or remove it")
        if begin == _FILE_MARK and compression_of(name):
            what = "Arrow's file format is read from its end, which a compressed file does not allow"
            raise UnreadableFileError(f"{name}: {what}; decompress it")
        stream.seek(0)
        if begin == _FILE_MARK:
            reader = pa.ipc.open_file(stream)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(stream)
            batches = iter(reader)
        require_columns(reader.schema, wanted, name=name)
        yield batches


def read_arrow(
    file: Path | io.IOBase, wanted: Wanted, *, name: str, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file; see `read_rows`."""
    columns = list(wanted.all)
    size = batch_rows or _BATCH_ROWS
    with _batches(file, name, wanted) as batches:
        for batch in batches:
            for first in range(0, batch.num_rows, size):
                some = batch.slice(first, size)
                yield pa.record_batch([column_of(some, column) for column in columns], names=columns)


def whole_batches(file: Path | io.IOBase, name: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file with all their columns."""
    with _batches(file, name, Wanted(texts=())) as batches:
        yield from batches


def count_arrow(file: Path | io.IOBase, name: str, wanted: Wanted) -> int:
    """Return the file's rows."""
    with _batches(file, name, wanted) as batches:
        return sum(batch.num_rows for batch in batches)

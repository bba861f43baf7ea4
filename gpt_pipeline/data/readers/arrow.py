"""Arrow files, as `datasets` keeps them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from gpt_pipeline.data.file_kinds import compression_of
from gpt_pipeline.data.readers.opened import opened
from gpt_pipeline.data.readers.parquet import column_of, require_columns
from gpt_pipeline.data.readers.wanted import Wanted
from gpt_pipeline.errors import UnreadableFileError

_BATCH_ROWS = 2_000
_FILE_MARK = b"ARROW1"  # begins a file in the file format (Arrow, "IPC File Format")
_CONTINUATION = b"\xff" * 4  # before each message since 0.15 (Arrow, "Encapsulated message format")
_NO_MORE = b"\0" * 4  # in the place of a message's length: ends a stream (Arrow, "IPC Streaming Format")


class _Followed(io.RawIOBase):
    """A stream of which `begin` was read already, which it gives again; it knows the last bytes that were read."""

    def __init__(self, begin: bytes, stream: BinaryIO) -> None:
        self._begin, self._stream = begin, stream
        self.last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found, self._begin = (self._begin, b"") if size < 0 else (self._begin[:size], self._begin[size:])
        found += self._stream.read(size if size < 0 else size - len(found))
        self.last = (self.last + found[-8:])[-8:]
        return found


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
        if begin == _FILE_MARK:
            stream.seek(0)
            reader = pa.ipc.open_file(stream)
            batches: Iterator[pa.RecordBatch] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            followed = _Followed(begin, stream)  # one that is compressed cannot go back
            reader = pa.ipc.open_stream(followed)
            mark = (_CONTINUATION if begin.startswith(_CONTINUATION) else b"") + _NO_MORE
            batches = _to_the_end(reader, followed, mark, name)
        require_columns(reader.schema, wanted, name=name)
        yield batches


def _to_the_end(reader: pa.RecordBatchReader, stream: _Followed, mark: bytes, name: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream in Arrow's streaming format.

    Raises:
        UnreadableFileError: it ends without the `mark` that says so, as one that was cut, or goes on behind that.
    """
    yield from reader
    if not stream.last.endswith(mark):
        what = f"ends without the bytes {mark.hex()} of Arrow's streaming format, which may have been cut"
        raise UnreadableFileError(f"{name}: {what}; bring the file here again, or write it again")
    if more := stream.read(8):
        raise UnreadableFileError(f"{name}: found {more!r} behind the end of its stream; leave joined files apart")


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

"""A raw file as bytes, whatever it is compressed by."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow as pa

from gpt_pipeline.data.file_kinds import compression_of
from gpt_pipeline.errors import UnreadableFileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 1 << 20
LET_IT_BE_READ = "let this user read it, or bring it here again"


@contextmanager
def opened(file: Path | io.IOBase, name: str) -> Iterator[BinaryIO]:
    """Yield the file called `name` for reading, decompressed.

    Raises:
        UnreadableFileError: it is missing, or cannot be read to its end.
    """
    try:
        with _decompressed(file, compression_of(name)) as stream:
            yield stream
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFileError(
            f"{name}: cannot be read ({error.strerror or 'no such file'}); {LET_IT_BE_READ}"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, tarfile.TarError) as error:
        raise UnreadableFileError(f"{name}: damaged ({first_line(error)}); bring the file here again") from error


def first_line(error: Exception) -> str:
    """Return what a library says of a file, in one line."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


@contextmanager
def _decompressed(file: Path | io.IOBase, compression: str | None) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        whole = stack.enter_context(file.open("rb", buffering=_BUFFER_BYTES)) if isinstance(file, Path) else file
        stream = cast(BinaryIO, whole)
        stream.seek(0)
        if compression == "gzip":
            stream = cast(BinaryIO, stack.enter_context(gzip.open(stream)))
        elif compression == "bz2":
            stream = cast(BinaryIO, io.BufferedReader(_Streams(stream, bz2.BZ2Decompressor), _BUFFER_BYTES))
        elif compression == "xz":
            stream = cast(BinaryIO, io.BufferedReader(_Streams(stream, lzma.LZMADecompressor), _BUFFER_BYTES))
        elif compression == "zstd":
            raw = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"))
            stream = cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES))
        yield stream


class _Streams(io.RawIOBase):
    """What one or several compressed streams hold; `bz2.open` and `lzma.open` end where a later one begins damaged."""

    def __init__(self, file: BinaryIO, new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file, self._new = file, new
        self._stream: bz2.BZ2Decompressor | lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer).cast("B")
        while True:
            if self._stream is None or self._stream.eof:
                given = self._begin()
                if not given:
                    return 0
                self._stream = self._new()
            else:
                given = self._file.read(_BUFFER_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not given:
                    raise EOFError("ends within a compressed stream")
            if found := self._stream.decompress(given, len(room)):
                room[: len(found)] = found
                return len(found)

    def _begin(self) -> bytes:
        """Return what the next stream begins with, behind zeros that fill up the one before; nothing at the end."""
        if self._stream is None:
            return self._file.read(_BUFFER_BYTES)
        given = self._stream.unused_data.lstrip(b"\0")
        while not given and (more := self._file.read(_BUFFER_BYTES)):
            given = more.lstrip(b"\0")
        return given

"""A raw file as bytes, whatever it is compressed by."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from gpt_pipeline.data.file_kinds import compression_of
from gpt_pipeline.errors import UnreadableFileError

_BUFFER_BYTES = 1 << 20


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
        raise UnreadableFileError(f"{name}: cannot be read ({error.strerror or 'no such file'})") from None
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
        if compression in ("bz2", "xz") and not stream.read(1):
            compression = None  # no bytes at all: no rows, as gz and zst have it
        stream.seek(0)
        if compression == "gzip":
            stream = cast(BinaryIO, stack.enter_context(gzip.open(stream)))
        elif compression == "bz2":
            stream = cast(BinaryIO, stack.enter_context(bz2.open(stream)))
        elif compression == "xz":
            stream = cast(BinaryIO, stack.enter_context(lzma.open(stream)))
        elif compression == "zstd":
            raw = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"))
            stream = cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES))
        yield stream

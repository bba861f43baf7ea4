"""Arrays as files of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.storage.atomic import HashedFile, atomic_path
from gpt_pipeline.storage.manifest import FileRecord
from gpt_pipeline.storage.room import explained_full_disk

_KEPT_BYTES = 4 << 20  # of numbers that wait in memory; more of them wait on the disk
_PIECE_ROWS = 100_000  # read back at a time


def save_array(path: Path, array: NDArray[np.generic]) -> FileRecord:
    """Write `array` as numpy's `.npy`, atomically, and return what the file has to be."""
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        np.save(file, array)
    return record_of(file)


def record_of(file: HashedFile) -> FileRecord:
    """Return what a file has to be that was written from beginning to end."""
    return FileRecord(size=file.size, sha256=file.sha256)


@contextmanager
def new_array(path: Path, kind: str, *shape: int, by_columns: bool = False) -> Iterator[HashedFile]:
    """Yield a `.npy` to append the numbers of an array of this shape to, atomically."""
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        header = {"descr": kind, "fortran_order": by_columns, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


class Spool:
    """Numbers that arrive a piece at a time, of which many wait on the disk, until they are saved as one array."""

    def __init__(self, folder: Path, kind: str, *row: int) -> None:
        """Begin with none; `row` is the shape of one, empty for single numbers."""
        self.count = 0
        self._folder, self._kind, self._row = folder, kind, row
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 # `__exit__` closes it
            _KEPT_BYTES,
            dir=str(folder),
            prefix=".spool-",
            suffix=".tmp",  # a name that `remove_leftovers` removes
        )

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows.

        Raises:
            DiskFullError: there is no room for them.
        """
        with explained_full_disk(self._folder / "a temporary file"):
            self._file.write(rows.astype(self._kind, copy=False).tobytes())
        self.count += len(rows)

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, some of them at a time."""
        self._file.seek(0)
        size = np.dtype((self._kind, self._row)).itemsize
        while piece := self._file.read(_PIECE_ROWS * size):
            yield np.frombuffer(piece, self._kind).reshape(-1, *self._row)

    def save(self, path: Path) -> FileRecord:
        """Write the rows as numpy's `.npy`, atomically, and return what the file has to be."""
        with new_array(path, self._kind, self.count, *self._row) as file:
            for piece in self.pieces():
                file.write(piece.data)
        return record_of(file)

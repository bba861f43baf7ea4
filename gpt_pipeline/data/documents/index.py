"""The documents of a raw file by the hash of their text, and which documents repeat an earlier one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.arrays import Spool, new_array, record_of
from gpt_pipeline.data.columns import Hashes, text_hashes
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.overlap import ahead
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.stage import Part
from gpt_pipeline.errors import DamagedFileError, UnreadableFileError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult

KIND = "document_index"
CODE_VERSION = "1"
_HASHES, _ORDER = "hashes.npy", "order.npy"
_BUCKET_DOCUMENTS = 100_000  # compared at a time, some 10 MB, however many there are
_SORTED_DOCUMENTS = 500_000  # sorted at a time, some 30 MB, each time from among all of the file

Rows = NDArray[np.int64]


def index_part(content: str, data_folder: Path, format: Format) -> Part:
    """Return the part that holds the index of the raw file with this `content_of`."""
    config = {"raw": content, **format.identity}
    identity = fingerprint(KIND, config=config, code_version=f"{CODE_VERSION}.{format.version}")
    return Part(kind=KIND, fingerprint=identity, data_folder=data_folder)


def prepare_index(
    path: Path, content: str, data_folder: Path, format: Format, *, seen: os.stat_result, say: Say
) -> StageResult:
    """Return the finished index of the raw file at `path`; its facts have `rows`, `documents` and `dropped`.

    `seen` is what the disk said of the file before its checksum was taken.

    Raises:
        DataError: the file lacks what the format reads, is damaged, or has changed since.
    """
    part = index_part(content, data_folder, format)

    def make() -> Manifest:
        with unchanged(path, seen):
            return _make(path, content, part, format)

    return part.prepare(say=say, make=make)


@contextmanager
def unchanged(path: Path, seen: os.stat_result) -> Iterator[None]:
    """Raise `UnreadableFileError` after the block if the file at `path` is no longer the one that was `seen`.

    What was read in the block, also what seemed damaged, then is what the checksum is of.
    """
    try:
        yield
    finally:
        now = path.stat() if path.is_file() else None
        if now is None or (now.st_size, now.st_mtime_ns) != (seen.st_size, seen.st_mtime_ns):
            raise UnreadableFileError(
                f"{path}: changed while it was read; run again when nothing writes to it any more"
            )


def _make(path: Path, content: str, part: Part, format: Format) -> Manifest:
    rows, dropped = 0, Counter[str]()
    with Spool(part.folder, "<u8", 2) as hashes:
        for batch_rows, texts, lost in ahead(_documents(path, format)):
            rows += batch_rows
            dropped += lost
            hashes.append(text_hashes(texts).T)
        files = _write_sorted(hashes, part.folder)
    return Manifest(
        stage=KIND,
        fingerprint=part.fingerprint,
        config={"raw": content},
        files=files,
        facts={"rows": rows, "documents": hashes.count, "dropped": dict(dropped.most_common())},
    )


def _write_sorted(hashes: Spool, folder: Path) -> dict[str, FileRecord]:
    """Write the hashes in ascending order, both halves of one side by side, and the documents that have them.

    One range of hashes after the other is sorted, so that memory is bounded; only equal ones stay together.
    """
    with (
        new_array(folder / _HASHES, "<u8", 2, hashes.count, by_columns=hashes.count > 1) as by_hash,
        new_array(folder / _ORDER, "<u4", hashes.count) as order,
    ):
        for first, last in spans(hashes.count // _SORTED_DOCUMENTS + 1):
            some, rows = _between(hashes, first, last)
            ascending = np.lexsort((some[:, 1], some[:, 0]))
            by_hash.write(some[ascending].tobytes())
            order.write(rows[ascending].astype("<u4").tobytes())
    return {_HASHES: record_of(by_hash), _ORDER: record_of(order)}


def _between(hashes: Spool, first: np.uint64, last: np.uint64) -> tuple[Hashes, Rows]:
    """Return the hashes whose upper half lies from `first` to `last`, [documents, 2], and which documents have them."""
    found, rows, begin = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)], 0
    for piece in hashes.pieces():
        chosen = np.flatnonzero((piece[:, 0] >= first) & (piece[:, 0] <= last))
        found.append(piece[chosen])
        rows.append(chosen + begin)
        begin += len(piece)
    return np.concatenate(found), np.concatenate(rows)


def ranges(count: int) -> NDArray[np.uint64]:
    """Return where each of `count` ranges of hashes begins, by their upper half."""
    return np.array([(number << 64) // count for number in range(count)], np.uint64)


def spans(count: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Yield the first and the last hash of each of `count` ranges, by their upper half."""
    begins = ranges(count)
    yield from zip(begins, [*(begins[1:] - np.uint64(1)), np.uint64(2**64 - 1)], strict=True)


def _documents(path: Path, format: Format) -> Iterator[tuple[int, pa.StringArray, Counter[str]]]:
    """Yield the number of rows of each batch of a file, the texts that they become, and why others become none."""
    for batch in read_rows(path, format.columns):
        selection = format.select(batch)
        yield batch.num_rows, format.documents_of(selection)["text"], selection.dropped


def repeated_documents(indexes: Sequence[StageResult]) -> list[Rows]:
    """Return, for each file in order, which of its documents (counted from 0) repeat an earlier one, ascending.

    Earlier is: in a file before it, or before it in the same file. Files after it change nothing, so the answer for a
    file stays when others are added. Memory is bounded, and so are the files open at a time: the hashes are compared in
    buckets.
    """
    found: list[list[Rows]] = [[] for _ in indexes]
    for files, rows in _repeats_by_bucket(indexes):
        for file in np.unique(files):
            found[file].append(rows[files == file])
    return [np.sort(np.concatenate([np.empty(0, np.int64), *parts])) for parts in found]


def _repeats_by_bucket(indexes: Sequence[StageResult]) -> Iterator[tuple[Rows, Rows]]:
    """Yield file numbers and rows of the documents that repeat another, for one range of hashes after the other."""
    stored = [_Stored.of(index) for index in indexes]
    total = sum(each.documents for each in stored)
    count = total // _BUCKET_DOCUMENTS + 1
    bounds = ranges(count)
    ends = np.array([each.ends(bounds) for each in stored], np.int64).reshape(-1, count + 1)
    for bucket in range(count):
        firsts, lasts = ends[:, bucket], ends[:, bucket + 1]
        parts = [each.read(*span) for each, *span in zip(stored, firsts.tolist(), lasts.tolist(), strict=True)]
        hashes = np.concatenate([np.empty((2, 0), np.uint64), *(own for own, _ in parts)], axis=1)
        rows = np.concatenate([np.empty(0, np.int64), *(own for _, own in parts)])
        files = np.repeat(np.arange(len(stored)), lasts - firsts)
        order = np.lexsort((rows, files, hashes[1], hashes[0]))
        same = (hashes[:, order[1:]] == hashes[:, order[:-1]]).all(axis=0)
        repeats = order[1:][same]
        yield files[repeats], rows[repeats]


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The index of one file on the disk. What is read of it is let go of again: there may be hundreds of them."""

    folder: Path
    documents: int

    hashes_at: int
    """Where the first hash stands in its file, in bytes; each is its upper and its lower half."""

    order_at: int
    """Where the first row stands in its file, in bytes."""

    @classmethod
    def of(cls, index: StageResult) -> _Stored:
        documents = index.manifest.facts["documents"]
        return cls(
            folder=index.folder,
            documents=documents,
            hashes_at=_data_begins(index.folder / _HASHES, "<u8", 2, documents),
            order_at=_data_begins(index.folder / _ORDER, "<u4", documents),
        )

    def ends(self, bounds: NDArray[np.uint64]) -> list[int]:
        """Return how many hashes lie below each bound, and how many there are."""
        below = np.zeros(len(bounds), np.int64)
        for first in range(0, self.documents, _BUCKET_DOCUMENTS):
            some = self._hashes(first, min(first + _BUCKET_DOCUMENTS, self.documents))
            below += np.searchsorted(some[0], bounds)
        return [*below.tolist(), self.documents]

    def read(self, first: int, last: int) -> tuple[Hashes, Rows]:
        """Return a range of hashes, and the rows of the documents that have them."""
        rows = read_numbers(self.folder / _ORDER, "<u4", self.order_at, first, last)
        return self._hashes(first, last), rows.astype(np.int64)

    def _hashes(self, first: int, last: int) -> Hashes:
        return read_numbers(self.folder / _HASHES, "<u8", self.hashes_at, 2 * first, 2 * last).reshape(-1, 2).T


def _data_begins(path: Path, kind: str, *shape: int) -> int:
    """Return where the numbers of an array stand in its file, in bytes; those of a column side by side.

    Raises:
        DamagedFileError: the file holds another array.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        # What has one row or column is written as if by rows.
        if found != shape or dtype != np.dtype(kind) or not (by_columns or len(shape) == 1 or shape[-1] <= 1):
            raise DamagedFileError(
                f"{path}: found {dtype} {list(found)}, need {kind} {list(shape)}; delete its folder and run again"
            )
        return file.tell()


def read_numbers(path: Path, kind: str, begin: int, first: int, last: int) -> NDArray[Any]:
    """Return the numbers from the `first` to before the `last` of those that begin at byte `begin` of a file."""
    return np.fromfile(path, kind, count=last - first, offset=begin + first * np.dtype(kind).itemsize)

"""The documents of a raw file by the hash of their text, and which documents repeat an earlier one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.eligibility import RULE_VERSION, Selection, documents_of, read_batches, select
from gpt_pipeline.data.overlap import ahead
from gpt_pipeline.data.stage import Part, Say
from gpt_pipeline.storage.atomic import atomic_path
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import Manifest, StageResult, record_file

KIND = "document_index"
CODE_VERSION = f"1.{RULE_VERSION}"
_HASHES, _ORDER = "hashes.npy", "order.npy"
_HASH_BYTES = 16  # two different texts with one hash: 1 in 10^23 among the 63 million English documents of SYNTH
_BUCKET_DOCUMENTS = 250_000  # compared at a time, some 20 MB, however many there are

Hashes = NDArray[np.uint64]
"""[2, documents]: the hash of each document's text as its upper and its lower half."""

Rows = NDArray[np.int64]


def index_part(sha256: str, data_folder: Path) -> Part:
    """Return the part that holds the index of the raw file with this checksum."""
    identity = fingerprint(KIND, config={"raw": sha256}, code_version=CODE_VERSION)
    return Part(kind=KIND, fingerprint=identity, data_folder=data_folder)


def prepare_index(path: Path, sha256: str, data_folder: Path, *, say: Say) -> StageResult:
    """Return the finished index of the raw file at `path`; its facts have `rows`, `english_rows` and `documents`.

    Raises:
        DataError: the file is not one of SYNTH, or is damaged.
    """
    part = index_part(sha256, data_folder)
    return part.prepare(say=say, make=lambda: _make(path, sha256, part))


def _make(path: Path, sha256: str, part: Part) -> Manifest:
    rows = english = 0
    found: list[Hashes] = []
    for batch_rows, selection, texts in ahead(_documents(path)):
        rows += batch_rows
        english += batch_rows - selection.dropped["language"]
        found.append(hashes_of(texts))
    hashes = np.concatenate([np.empty((2, 0), np.uint64), *found], axis=1)
    order = np.lexsort((hashes[1], hashes[0])).astype(np.uint32)
    _save(part.folder / _HASHES, hashes[:, order])
    _save(part.folder / _ORDER, order)
    return Manifest(
        stage=KIND,
        fingerprint=part.fingerprint,
        config={"raw": sha256},
        files={name: record_file(part.folder / name) for name in (_HASHES, _ORDER)},
        facts={"rows": rows, "english_rows": english, "documents": hashes.shape[1]},
    )


def _documents(path: Path) -> Iterator[tuple[int, Selection, pa.StringArray]]:
    """Yield the number of rows of each batch of a file, which of them become documents, and these documents' texts."""
    for batch in read_batches(path):
        selection = select(batch)
        yield batch.num_rows, selection, documents_of(selection)["text"]


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def hashes_of(texts: pa.StringArray) -> Hashes:
    """Return the BLAKE2b hash of each text's UTF-8 bytes."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1].tolist()
    letters = memoryview(texts.buffers()[2] or b"")
    digests = (
        hashlib.blake2b(letters[start:end], digest_size=_HASH_BYTES).digest()
        for start, end in itertools.pairwise(offsets)
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).T


def repeated_documents(indexes: Sequence[StageResult]) -> list[Rows]:
    """Return, for each file in order, which of its documents (counted from 0) repeat an earlier one, ascending.

    Earlier is: in a file before it, or before it in the same file. Files after it change nothing, so the answer for a
    file stays when others are added. Memory is bounded; the hashes are compared in buckets.
    """
    found: list[list[Rows]] = [[] for _ in indexes]
    columns = [_open(index) for index in indexes]
    for files, rows in _repeats_by_bucket(columns):
        for file in np.unique(files):
            found[file].append(rows[files == file])
    return [np.sort(np.concatenate([np.empty(0, np.int64), *parts])) for parts in found]


def _open(index: StageResult) -> tuple[Hashes, NDArray[np.uint32]]:
    if index.manifest.facts["documents"] == 0:  # nothing can be mapped
        return np.empty((2, 0), np.uint64), np.empty(0, np.uint32)
    return np.load(index.folder / _HASHES, mmap_mode="r"), np.load(index.folder / _ORDER, mmap_mode="r")


def _repeats_by_bucket(columns: Sequence[tuple[Hashes, NDArray[np.uint32]]]) -> Iterator[tuple[Rows, Rows]]:
    """Yield file numbers and rows of the documents that repeat another, for one range of hashes after the other."""
    total = sum(hashes.shape[1] for hashes, _ in columns)
    count = total // _BUCKET_DOCUMENTS + 1
    bounds = np.array([(bucket << 64) // count for bucket in range(count)], np.uint64)
    ends = [np.array([*np.searchsorted(hashes[0], bounds), hashes.shape[1]]) for hashes, _ in columns]
    for bucket in range(count):
        slices = [slice(end[bucket], end[bucket + 1]) for end in ends]
        hashes = np.concatenate([own[:, part] for (own, _), part in zip(columns, slices, strict=True)], axis=1)
        rows = np.concatenate([order[part] for (_, order), part in zip(columns, slices, strict=True)]).astype(np.int64)
        files = np.repeat(np.arange(len(slices)), [part.stop - part.start for part in slices])
        order = np.lexsort((rows, files, hashes[1], hashes[0]))
        same = (hashes[:, order[1:]] == hashes[:, order[:-1]]).all(axis=0)
        repeats = order[1:][same]
        yield files[repeats], rows[repeats]

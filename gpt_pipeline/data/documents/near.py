"""Documents whose words are nearly those of an earlier one, by MinHash.

The likeness of two documents is the share of their shingles, of both together, that both have (Jaccard). Each document
gets a signature of 128 numbers, each of which two documents have in common with a probability of their likeness (Broder
1997, "On the Resemblance and Containment of Documents"). Bands of a few of these numbers find the pairs to compare: two
documents of likeness s share one of b bands of r numbers with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", 3.4). The signatures of a pair that shares one are compared, and the later of the
two is left out if at least `threshold` of their numbers are the same.

Signatures are made a file at a time and lie on the disk with each band in order, so that the bands of all files can be
compared a range at a time, as the index of repeated documents is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.arrays import Spool, record_of
from gpt_pipeline.data.columns import text_bounds
from gpt_pipeline.data.documents.index import Rows, ranges, read_numbers, spans, unchanged
from gpt_pipeline.data.documents.shingles import mixed, shingles
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.overlap import ahead
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.stage import Part
from gpt_pipeline.errors import UserError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import HashedFile, atomic_path
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult

KIND = "near_index"
CODE_VERSION = "1"

_HASHES = 128  # numbers in a signature: a likeness of 0.8 is estimated with a standard error of 0.035
_SEED = 42
_ALGORITHM = 2  # rensa's name for how it computes signatures; other ones cannot be compared
_LEAST_SHARED = 0.85  # of the pairs that are just alike enough, how many shall share a band
_SLICE_BYTES = 256 << 10  # of text; what is computed of it stays near the processor
_SORTED_DOCUMENTS = 1_000_000  # of a file, at a time
_BUCKET_DOCUMENTS = 100_000  # compared at a time
_PAIRS = 20_000  # whose signatures are compared at a time, 10 MB
_BACK = 8  # documents before one, of those with the same band, that it is compared with, besides the first

_SIGNATURES, _BANDS, _ORDER = "signatures.bin", "bands.bin", "order.bin"

Signatures = NDArray[np.uint16]
"""[documents, 128]: 16 bits of each number, which are the same by chance once in 65,536 times."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Finds the documents of the files of one format that are nearly the same as an earlier one."""

    threshold: float
    """Likeness from which on a document is left out, in (0, 1]."""

    format: Format
    data_folder: Path

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides which documents are found, for fingerprints."""
        return {"near_duplicates": self.threshold, "minhash": [CODE_VERSION, _ALGORITHM, _HASHES, _SEED, _BACK]}

    def part(self, content: str) -> Part:
        """Return the part that holds the signatures of the raw file with this `content_of`."""
        config = {"raw": content, **self.format.identity, "minhash": [_ALGORITHM, _HASHES, _SEED, self._band_rows]}
        version = f"{CODE_VERSION}.{self.format.version}"
        return Part(
            kind=KIND,
            fingerprint=fingerprint(KIND, config=config, code_version=version),
            data_folder=self.data_folder,
        )

    @property
    def _band_rows(self) -> int:
        return band_rows(self.threshold)

    def prepare(self, path: Path, content: str, *, seen: os.stat_result, say: Say) -> StageResult:
        """Return the finished signatures of the raw file at `path`; see `prepare_index`.

        Raises:
            UserError: the file is damaged or has changed, or the library is missing.
        """
        part = self.part(content)

        def make() -> Manifest:
            with unchanged(path, seen):
                return self._make(path, content, part)

        return part.prepare(say=say, make=make)

    def _make(self, path: Path, content: str, part: Part) -> Manifest:
        files: dict[str, FileRecord] = {}
        documents, bands = 0, _HASHES // self._band_rows
        with Spool(part.folder, "<u8", bands) as keys, Spool(part.folder, "<u4") as rows:
            with _written(part.folder / _SIGNATURES, files) as signatures:
                for found, is_empty in ahead(_signatures(path, self.format)):
                    signatures.write(found.tobytes())
                    with_words = np.flatnonzero(~is_empty)
                    keys.append(_keys(found[with_words], self._band_rows))
                    rows.append((with_words + documents).astype(np.uint32))
                    documents += len(found)
            with _written(part.folder / _BANDS, files) as by_key, _written(part.folder / _ORDER, files) as order:
                for band in range(bands):
                    for own, own_rows in _sorted_band(keys, rows, band):
                        by_key.write(own.tobytes())
                        order.write(own_rows.tobytes())
        return Manifest(
            stage=KIND,
            fingerprint=part.fingerprint,
            config={"raw": content},
            files=files,
            facts={"documents": documents, "with_words": rows.count},
        )

    def find(self, indexes: Sequence[StageResult]) -> list[Rows]:
        """Return, for each file in order, which of its documents (from 0) are nearly an earlier one, ascending.

        Earlier is as in `repeated_documents`, and so is what bounds the memory, but for a byte a document. Of the
        documents with the same band, each is compared with the first and with the 8 before it.
        """
        stored = _Stored(indexes=indexes, band_rows=self._band_rows)
        found = np.zeros(stored.documents, np.bool_)
        needed = math.ceil(self.threshold * _HASHES - 1e-9)
        for later, earlier in stored.pairs():
            new = np.flatnonzero(~found[later])
            for first in range(0, len(new), _PAIRS):
                some = new[first : first + _PAIRS]
                same = stored.signatures(later[some]) == stored.signatures(earlier[some])
                found[later[some][same.sum(axis=1) >= needed]] = True
        return [np.flatnonzero(own) for own in np.split(found, stored.firsts[1:-1])] if indexes else []


def band_rows(threshold: float) -> int:
    """Return how many numbers of a signature make a band: the most with which pairs that are just alike are found."""

    def shared(rows: int) -> float:
        return 1 - (1 - float(threshold**rows)) ** (_HASHES // rows)

    return next((rows for rows in (16, 8, 4) if shared(rows) >= _LEAST_SHARED), 2)


def bytes_per_document(threshold: float) -> int:
    """Return what is written for a document that has words: its signature, and in each band a key and a row."""
    return 2 * _HASHES + (8 + 4) * (_HASHES // band_rows(threshold))


def signatures_of(texts: pa.StringArray) -> tuple[Signatures, NDArray[np.bool_]]:
    """Return the signature of each text, and whether it has no words."""
    hashes, ends = shingles(texts)
    matrix = _minhash().digest_matrix_from_flat_token_hashes(hashes, ends.astype(np.uint64), _HASHES, _SEED)
    numbers = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), _HASHES)
    return (mixed(numbers) >> np.uint64(48)).astype("<u2"), np.diff(ends) == 0


def _minhash() -> Any:
    """Return rensa's class.

    Raises:
        UserError: it is not installed, or computes other signatures.
    """
    remedy = "run: pip install 'rensa>=0.5,<0.6', or set data.near_duplicates: null"
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise UserError(f"data.near_duplicates needs rensa, which cannot be used ({error}); {remedy}") from error
    if RMinHash.ALGORITHM_VERSION != _ALGORITHM:
        found = RMinHash.ALGORITHM_VERSION
        raise UserError(f"rensa computes version {found} of its signatures, need {_ALGORITHM}; {remedy}")
    return RMinHash


def _signatures(path: Path, format: Format) -> Iterator[tuple[Signatures, NDArray[np.bool_]]]:
    """Yield the signatures of a file's documents, and which have no words, some documents at a time."""
    for batch in read_rows(path, format.columns):
        texts = format.documents_of(format.select(batch))["text"]
        cuts = np.flatnonzero(np.diff(text_bounds(texts)[1:] // _SLICE_BYTES)) + 1
        for first, last in zip([0, *cuts], [*cuts, len(texts)], strict=True):
            yield signatures_of(texts.slice(first, last - first))


def _keys(signatures: Signatures, band_rows: int) -> NDArray[np.uint64]:
    """Return a hash of the numbers of each band: uint64 [documents, bands]."""
    keys = np.zeros((len(signatures), _HASHES // band_rows), np.uint64)
    for place in range(band_rows):
        keys = mixed(keys + signatures[:, place::band_rows] + np.uint64(1))
    return keys


def _sorted_band(keys: Spool, rows: Spool, band: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """Yield the keys of one band in ascending order, and the documents that have them, a range at a time."""
    for first, last in spans(keys.count // _SORTED_DOCUMENTS + 1):
        some, their_rows = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
        for piece, piece_rows in zip(keys.pieces(), rows.pieces(), strict=True):
            chosen = (piece[:, band] >= first) & (piece[:, band] <= last)
            some.append(piece[chosen, band])
            their_rows.append(piece_rows[chosen])
        found = np.concatenate(some)
        order = np.argsort(found, kind="stable")
        yield found[order].astype("<u8"), np.concatenate(their_rows)[order].astype("<u4")


@contextmanager
def _written(path: Path, records: dict[str, FileRecord]) -> Iterator[HashedFile]:
    """Yield a file to write numbers into, atomically, and record what it has to be."""
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        yield file
    records[path.name] = record_of(file)


def _opened(folder: Path, documents: int) -> Signatures:
    """Return the signatures in a part's folder; they are read where they are looked at."""
    shape = (documents, _HASHES)
    return np.memmap(folder / _SIGNATURES, "<u2", "r", shape=shape) if documents else np.empty(shape, np.uint16)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The signatures of several files on the disk, whose documents are numbered through."""

    indexes: Sequence[StageResult]
    band_rows: int

    @cached_property
    def firsts(self) -> Rows:
        """The number of each file's first document, and of all documents."""
        return np.cumsum([0, *(index.manifest.facts["documents"] for index in self.indexes)])

    @property
    def documents(self) -> int:
        """Of all files."""
        return int(self.firsts[-1])

    def signatures(self, documents: Rows) -> Signatures:
        """Return the signatures of some documents."""
        found = np.empty((len(documents), _HASHES), np.uint16)
        files = np.searchsorted(self.firsts, documents, side="right") - 1
        for file in np.unique(files).tolist():
            own = files == file
            index = self.indexes[file]
            found[own] = _opened(index.folder, index.manifest.facts["documents"])[documents[own] - self.firsts[file]]
        return found

    def pairs(self) -> Iterator[tuple[Rows, Rows]]:
        """Yield documents, and for each an earlier one with the same band; a range of one band's values at a time."""
        for band in range(_HASHES // self.band_rows):
            for found, unordered in self._by_key(band):
                order = np.lexsort((unordered, found))
                keys, documents = found[order], unordered[order]
                first = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1)) != 0)
                distance = np.arange(len(keys)) - np.repeat(first, np.diff(first, append=len(keys)))
                for back in range(1, _BACK + 1):
                    later = np.flatnonzero(distance >= back)
                    yield documents[later], documents[later - back]
                later = np.flatnonzero(distance > _BACK)
                yield documents[later], documents[later - distance[later]]

    def _by_key(self, band: int) -> Iterator[tuple[NDArray[np.uint64], Rows]]:
        """Yield the keys of one band and their documents, for one range of keys after the other."""
        counts = [index.manifest.facts["with_words"] for index in self.indexes]
        buckets = sum(counts) // _BUCKET_DOCUMENTS + 1
        bounds = ranges(buckets)
        ends = [
            [
                *np.searchsorted(
                    read_numbers(index.folder / _BANDS, "<u8", 0, band * count, (band + 1) * count), bounds
                ),
                count,
            ]
            for index, count in zip(self.indexes, counts, strict=True)
        ]
        for bucket in range(buckets):
            keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
            for index, count, first, own in zip(self.indexes, counts, self.firsts[:-1].tolist(), ends, strict=True):
                begin, end = (band * count + int(own[at]) for at in (bucket, bucket + 1))
                keys.append(read_numbers(index.folder / _BANDS, "<u8", 0, begin, end))
                documents.append(read_numbers(index.folder / _ORDER, "<u4", 0, begin, end) + first)
            yield np.concatenate(keys), np.concatenate(documents)

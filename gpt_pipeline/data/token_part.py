"""The tokens of one English file as shards of both splits; the same bytes on any machine, with any number of threads.

The caller's thread reads and writes in the file's order, `threads` others encode. What is in memory at a time are a few
pieces of `_PIECE_BYTES` of text.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpt_pipeline.data.columns import int32s, text_sizes, text_value
from gpt_pipeline.data.documents import is_held_out
from gpt_pipeline.data.encoder import EncodedTexts, Encoder, new_encoders, token_lengths
from gpt_pipeline.data.lengths import LENGTH_EDGES
from gpt_pipeline.data.stage import Say
from gpt_pipeline.data.token_stream import (
    TRAIN,
    VALIDATION,
    Positions,
    ShardFile,
    Tokens,
    answers_name,
    new_shard,
    shard_name,
    starts_name,
)
from gpt_pipeline.data.tokenizer import gpt2
from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.atomic import HashedFile, atomic_path
from gpt_pipeline.storage.manifest import FileRecord

MAX_SHARD_TOKENS = 500_000_000
"""1 GB; the format ends at 2^31."""

CHECKED_DOCUMENTS = 200
"""Of each file, compared with tiktoken; and the longest."""

_COLUMNS = ("synth_id", "exercise", "article", "text", "answer_bytes")
_BATCH_ROWS = 1_400
_PIECE_BYTES = 4 << 20  # of text; long enough that a call costs nothing, short enough to stay near the caches
_KNOWN_ARTICLES = 1 << 16  # whose side of the split is remembered: some 10 MB
_SAY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class TokenPart:
    """The tokens of one English file."""

    files: tuple[Path, ...]
    """Each shard with its two sidecars, training first; a split without documents has none."""

    records: Mapping[str, FileRecord]
    """What each file has to be, by name."""

    facts: dict[str, Any]
    """Counts, the same for the same file, seed and fraction; JSON values."""


def write_token_part(
    documents: Path,
    folder: Path,
    *,
    seed: int,
    fraction: float,
    threads: int,
    say: Say,
    max_shard_tokens: int = MAX_SHARD_TOKENS,
) -> TokenPart:
    """Write the tokens of an English parquet file into `folder`; its articles decide the split.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a document whose tokens are not tiktoken's.
    """
    job = _Job(path=documents, seed=seed, fraction=fraction)
    tally = _Tally()
    splits = [SplitWriter(folder=folder, split=name, max_shard_tokens=max_shard_tokens) for name in (TRAIN, VALIDATION)]
    with splits[0], splits[1]:
        for piece in _encoded(job, threads=threads, say=say):
            for writer, chosen in zip(splits, (~piece.held_out, piece.held_out), strict=True):
                writer.add(piece.of(chosen))
            tally.add(piece)
    if tally.longest is not None:
        _check_with_tiktoken(job, [tally.longest])
        tally.checked.add(tally.longest.row)
    files = tuple(file for writer in splits for file in writer.files)
    records = {name: record for writer in splits for name, record in writer.records.items()}
    return TokenPart(files=files, records=records, facts=_facts(splits, tally))


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Some documents as tokens."""

    tokens: Tokens
    """All documents one after the other, each behind its `<|endoftext|>`."""

    lengths: Positions
    """Tokens of each, that one included: int64 [documents]."""

    answers: Positions
    """Tokens of each before the one with its answer's first byte: int64 [documents]."""

    text_bytes: int
    """Of all texts in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A document to be compared with tiktoken."""

    row: int
    """Of the file."""

    synth_id: str
    text: str
    tokens: Tokens


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some consecutive documents of the file, encoded."""

    documents: Documents
    sizes: Positions
    """Bytes of each text."""

    held_out: NDArray[np.bool_]
    exercises: Counter[str]
    """Tokens."""

    checked: list[int]
    """Rows of the file that were compared with tiktoken."""

    longest: _Sample

    def of(self, chosen: NDArray[np.bool_]) -> Documents:
        """Return the chosen documents."""
        whole = self.documents
        if chosen.all():
            return whole
        return Documents(
            tokens=_runs_of(whole.tokens, np.cumsum(whole.lengths), chosen),
            lengths=whole.lengths[chosen],
            answers=whole.answers[chosen],
            text_bytes=int(self.sizes[chosen].sum()),
        )


def _runs_of(tokens: Tokens, ends: Positions, chosen: NDArray[np.bool_]) -> Tokens:
    """Return the tokens of the chosen documents, which end at `ends`; neighbours are copied together."""
    changes = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    bounds = np.append(0, ends)[changes].tolist()
    runs = [tokens[first:last] for first, last in zip(bounds[::2], bounds[1::2], strict=True)]
    return np.concatenate(runs) if runs else tokens[:0]


@dataclass(frozen=True, kw_only=True)
class _Job:
    path: Path
    seed: int
    fraction: float

    @cached_property
    def is_held_out(self) -> Callable[[str], bool]:
        """`documents.is_held_out` of an article, which remembers the answers: neighbours often share one."""
        return lru_cache(_KNOWN_ARTICLES)(partial(is_held_out, seed=self.seed, fraction=self.fraction))


def _encoded(job: _Job, *, threads: int, say: Say) -> Iterator[_Piece]:
    """Yield the file's pieces in order, encoded by `threads` threads while the caller's reads and writes."""

    def work(rows: pa.RecordBatch, first_row: int, sampled: Positions) -> _Piece:
        encoder = encoders.result().get()
        try:
            return _encode(job, rows, first_row, sampled, encoder)
        finally:
            encoders.result().put(encoder)

    waiting: deque[Future[_Piece]] = deque()
    with _open(job.path) as file, ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        encoders = pool.submit(_encoders, threads, say)  # made while the first rows are read
        progress = _Progress(say=say, total=file.metadata.num_rows)
        sampled = _sampled_rows(file.metadata.num_rows, job.seed)
        try:
            for first_row, rows in _pieces(job.path, file):
                waiting.append(pool.submit(work, rows, first_row, sampled))
                while len(waiting) > threads + 1 or (waiting and waiting[0].done()):
                    yield progress.past(waiting.popleft().result())
            while waiting:
                yield progress.past(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


def _encoders(count: int, say: Say) -> SimpleQueue[Encoder]:
    queue: SimpleQueue[Encoder] = SimpleQueue()
    for encoder in new_encoders(count, say):
        queue.put(encoder)
    return queue


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); materialize the English text again") from error
    if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
        file.close()
        raise DataError(f"{path}: lacks the columns {', '.join(missing)}; materialize the English text again")
    return file


def _pieces(path: Path, file: pq.ParquetFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of `file` in order, about `_PIECE_BYTES` of text at a time, with their first row's number."""
    first_row = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(_COLUMNS), use_threads=False):
            for piece in _cut_by_bytes(batch) if batch.num_rows else ():
                yield first_row, piece
                first_row += piece.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); materialize the English text again") from error


def _cut_by_bytes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield `batch` in slices of about `_PIECE_BYTES` of text each, a longer text alone."""
    ends = np.cumsum(text_sizes(batch["text"]))
    cuts = np.flatnonzero(np.diff(ends // _PIECE_BYTES)) + 1
    for first, last in itertools.pairwise([0, *cuts.tolist(), batch.num_rows]):
        yield batch.slice(first, last - first)


def _encode(job: _Job, rows: pa.RecordBatch, first_row: int, sampled: Positions, encoder: Encoder) -> _Piece:
    encoded = encoder.encode(rows["text"])
    if len(encoded.starts) != rows.num_rows:
        raise _not_tiktokens(job, rows["synth_id"][0].as_py())
    sizes = text_sizes(rows["text"])
    answers = _answer_tokens(job, rows, encoded, sizes)
    lengths = np.diff(encoded.starts, append=len(encoded.tokens))
    checked = sampled[(sampled >= first_row) & (sampled < first_row + rows.num_rows)].tolist()
    _check_with_tiktoken(job, [_sample(rows, encoded, first_row, row) for row in checked])
    return _Piece(
        documents=Documents(
            tokens=encoded.tokens, lengths=lengths, answers=answers - encoded.starts, text_bytes=int(sizes.sum())
        ),
        sizes=sizes,
        held_out=_held_out(job, rows["article"]),
        exercises=_tokens_by_exercise(rows["exercise"], lengths),
        checked=checked,
        longest=_sample(rows, encoded, first_row, first_row + int(lengths.argmax())),
    )


def _answer_tokens(job: _Job, rows: pa.RecordBatch, encoded: EncodedTexts, sizes: Positions) -> Positions:
    """Return which token holds the first byte of each document's answer: int64 [documents].

    Raises:
        DataError: a document's tokens stand for more or fewer bytes than its text has, or its `answer_bytes` do.
    """
    ends = _byte_ends(encoded.tokens)
    spelled = np.diff(ends[encoded.starts], append=ends[-1])  # `<|endoftext|>` stands for none
    if (wrong := np.flatnonzero(spelled != sizes)).size:
        raise _not_tiktokens(job, rows["synth_id"][int(wrong[0])].as_py())
    answer_sizes = int32s(rows["answer_bytes"])
    if (wrong := np.flatnonzero((answer_sizes <= 0) | (answer_sizes > sizes))).size:
        row = int(wrong[0])
        raise DataError(
            f"{job.path}: document {rows['synth_id'][row].as_py()} has answer_bytes={answer_sizes[row]}, need 1 to its "
            f"text's {sizes[row]}; materialize the English text again"
        )
    offsets = np.cumsum(sizes) - answer_sizes
    answers: Positions = np.searchsorted(ends, offsets.astype(np.int32), side="right")
    return answers


def _byte_ends(tokens: Tokens) -> NDArray[np.int32]:
    """Return how many bytes of text the tokens up to each one, and itself, stand for: int32 [tokens]."""
    column = pa.Array.from_buffers(pa.uint16(), len(tokens), [None, pa.py_buffer(tokens)])
    sizes = pc.take(_sizes_by_token(), column, boundscheck=False)  # twice as fast as numpy's
    ends: NDArray[np.int32] = np.cumsum(np.frombuffer(sizes.buffers()[1], np.uint8, len(tokens)), dtype=np.int32)
    return ends


@cache
def _sizes_by_token() -> pa.UInt8Array:
    """Return `token_lengths`, and 0 for what is no token, for each number that uint16 can hold."""
    sizes = np.zeros(1 << 16, np.uint8)
    sizes[: len(token_lengths())] = token_lengths()
    return pa.Array.from_buffers(pa.uint8(), len(sizes), [None, pa.py_buffer(sizes)])


def _held_out(job: _Job, articles: pa.StringArray) -> NDArray[np.bool_]:
    """Return which documents are for validation; each article is asked for once."""
    distinct = articles.dictionary_encode()
    sides = [job.is_held_out(name) for name in distinct.dictionary.to_pylist()]
    held_out: NDArray[np.bool_] = np.array(sides, dtype=np.bool_)[int32s(distinct.indices)]
    return held_out


def _tokens_by_exercise(exercises: pa.StringArray, lengths: Positions) -> Counter[str]:
    kinds = pc.fill_null(exercises, text_value("unknown")).dictionary_encode()
    sums = np.bincount(int32s(kinds.indices), weights=lengths, minlength=len(kinds.dictionary))
    return Counter(dict(zip(kinds.dictionary.to_pylist(), sums.astype(np.int64).tolist(), strict=True)))


def _sampled_rows(rows: int, seed: int) -> Positions:
    """Return the rows to compare with tiktoken, spread evenly from where `seed` begins: int64, ascending."""
    count = min(rows, CHECKED_DOCUMENTS)
    digest = hashlib.blake2b(f"{seed}/checked".encode(), digest_size=8).digest()
    begin = int.from_bytes(digest, "big") / 2.0**64
    sampled: Positions = np.floor((np.arange(count) + begin) * (rows / max(count, 1))).astype(np.int64)
    return sampled


def _sample(rows: pa.RecordBatch, encoded: EncodedTexts, first_row: int, row: int) -> _Sample:
    index = row - first_row
    end = encoded.starts[index + 1] if index + 1 < len(encoded.starts) else len(encoded.tokens)
    return _Sample(
        row=row,
        synth_id=rows["synth_id"][index].as_py(),
        text=rows["text"][index].as_py(),
        tokens=encoded.tokens[encoded.starts[index] + 1 : end].copy(),
    )


def _check_with_tiktoken(job: _Job, samples: list[_Sample]) -> None:
    for sample in samples:
        if gpt2().encode_ordinary(sample.text) != sample.tokens.tolist():
            raise _not_tiktokens(job, sample.synth_id)


def _not_tiktokens(job: _Job, synth_id: str) -> DataError:
    return DataError(
        f"{job.path}: document {synth_id} was not encoded as tiktoken does; run: pip uninstall gigatoken (tiktoken "
        "then encodes alone), materialize token_shards again, and please report the document"
    )


@dataclass(kw_only=True)
class _Tally:
    """What is counted over both splits."""

    exercises: Counter[str] = field(default_factory=Counter)
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LENGTH_EDGES) - 1, np.int64))
    checked: set[int] = field(default_factory=set)
    longest: _Sample | None = None

    def add(self, piece: _Piece) -> None:
        self.exercises += piece.exercises
        self.lengths += np.histogram(piece.documents.lengths, LENGTH_EDGES)[0]
        self.checked.update(piece.checked)
        if self.longest is None or len(piece.longest.tokens) > len(self.longest.tokens):
            self.longest = piece.longest


def _facts(splits: list[SplitWriter], tally: _Tally) -> dict[str, Any]:
    counts = {
        f"{writer.split}_{name}": getattr(writer, name)
        for writer in splits
        for name in ("tokens", "documents", "text_bytes", "shards")
    }
    return {
        **counts,
        "tokens_by_exercise": dict(sorted(tally.exercises.items())),
        "document_lengths": tally.lengths.tolist(),
        "checked_documents": len(tally.checked),
    }


@dataclass(kw_only=True)
class SplitWriter:
    """Writes the shards of one split in the order in which documents arrive; no document is cut by a shard's end."""

    folder: Path
    split: str
    max_shard_tokens: int = MAX_SHARD_TOKENS
    files: list[Path] = field(default_factory=list)
    records: dict[str, FileRecord] = field(default_factory=dict)
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    shards: int = 0
    _shard: ShardFile | None = None
    _shard_tokens: int = 0
    _starts: list[Positions] = field(default_factory=list)
    _answers: list[Positions] = field(default_factory=list)
    _unfinished: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_shard()
        else:
            self._unfinished.__exit__(kind, error, trace)

    def add(self, documents: Documents) -> None:
        """Append `documents`, to a new shard from the first that does not fit into this one."""
        ends = np.cumsum(documents.lengths)
        first = 0
        while first < len(ends):
            if self._shard is None:
                self._begin_shard()
            room = self.max_shard_tokens - self._shard_tokens
            last = int(np.searchsorted(ends, (ends[first - 1] if first else 0) + room, side="right"))
            if self._shard_tokens == 0:
                last = max(last, first + 1)  # one that is longer than a shard stands alone in one
            if last > first:
                self._append(documents, ends, first, last)
            if last < len(ends):
                self._finish_shard()
            first = last
        self.text_bytes += documents.text_bytes

    def _append(self, documents: Documents, ends: Positions, first: int, last: int) -> None:
        assert self._shard is not None  # `add` has begun it
        begin, end = int(ends[first] - documents.lengths[first]), int(ends[last - 1])
        self._shard.append(documents.tokens[begin:end])
        starts = ends[first:last] - documents.lengths[first:last] - begin + self._shard_tokens
        self._starts.append(starts)
        self._answers.append(starts + documents.answers[first:last])
        self._shard_tokens += end - begin
        self.tokens += end - begin
        self.documents += last - first

    def _begin_shard(self) -> None:
        self.shards += 1
        path = self.folder / shard_name(self.split, self.shards)
        self.files += [path, path.with_name(starts_name(path.name)), path.with_name(answers_name(path.name))]
        self._starts, self._answers, self._shard_tokens = [], [], 0
        self._shard = self._unfinished.enter_context(new_shard(path))

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._unfinished.close()
        shard, starts, answers = self.files[-3:]
        assert self._shard.record is not None  # it is closed
        self.records[shard.name] = self._shard.record
        self.records[starts.name] = _write_positions(starts, self._starts)
        self.records[answers.name] = _write_positions(answers, self._answers)
        self._shard = None


def _write_positions(path: Path, pieces: list[Positions]) -> FileRecord:
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        np.save(file, np.concatenate(pieces).astype("<i8", copy=False))
    return FileRecord(size=file.size, sha256=file.sha256)


@dataclass(kw_only=True)
class _Progress:
    """Says now and then how far the documents are."""

    say: Say
    total: int
    _documents: int = 0
    _bytes: int = 0
    _started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def past(self, piece: _Piece) -> _Piece:
        """Count `piece`, and return it."""
        self._documents += len(piece.sizes)
        self._bytes += piece.documents.text_bytes
        now = time.monotonic()
        if self._documents == self.total or now - self._said >= _SAY_SECONDS:
            rate = self._bytes / 1e6 / max(now - self._started, 1e-9)
            self.say(f"{self._documents:,} of {self.total:,} documents encoded, {rate:.1f} MB/s")
            self._said = now
        return piece

"""The documents of a parquet file as tokens, a piece at a time in the file's order, by several threads.

A thread takes a row group, and encodes what it reads of it while its bytes are still near. What is in memory at a time
are a few megabytes of text for each thread, and the tokens of a few row groups.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpt_pipeline.data.columns import bytes_of_first, int32s, text_sizes, text_value
from gpt_pipeline.data.documents.files import names_in
from gpt_pipeline.data.documents.split import held_out_rows, hold_out
from gpt_pipeline.data.formats.forms import CHATML
from gpt_pipeline.data.tokens.encoder import EncodedTexts, Encoder, Encoders
from gpt_pipeline.data.tokens.stream import Positions, Tokens
from gpt_pipeline.data.tokens.token_bytes import TokenBytes
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.data.tokens.writer import Documents
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say

CHECKED_DOCUMENTS = 200
"""Of each file, compared with the library that defines the ids; and the longest."""

_COLUMNS = ("id", "group", "text")  # of every file; see `data.documents.files`
_MORE_COLUMNS = ("kind", "answer_bytes", "reasoning_start", "spans")  # of those that have them
_READ_BYTES = 3 << 20  # of a row group; a whole one costs as much time and more memory
_PIECE_BYTES = 1 << 20  # of text; long enough that a call costs nothing, short enough to stay in the caches


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document to be compared with what the library that defines the ids makes of it."""

    row: int
    """Of the file."""

    document: str
    """Its id."""

    text: str
    tokens: Tokens


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some consecutive documents of the file, encoded."""

    documents: Documents
    sizes: Positions
    """Bytes of each text."""

    held_out: NDArray[np.bool_]
    kinds: Counter[str]
    """Tokens."""

    samples: list[Sample]
    longest: Sample

    def of(self, chosen: NDArray[np.bool_]) -> Documents:
        """Return the chosen documents."""
        whole = self.documents
        if chosen.all():
            return whole
        return Documents(
            tokens=_runs_of(whole.tokens, np.cumsum(whole.lengths), chosen),
            lengths=whole.lengths[chosen],
            answers=whole.answers[chosen],
            spans=whole.spans[np.repeat(chosen, whole.span_counts)],
            span_counts=whole.span_counts[chosen],
            text_bytes=int(self.sizes[chosen].sum()),
        )


def _runs_of(tokens: Tokens, ends: Positions, chosen: NDArray[np.bool_]) -> Tokens:
    """Return the tokens of the chosen documents, which end at `ends`; neighbours are copied together."""
    changes = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    bounds = np.append(0, ends)[changes].tolist()
    runs = [tokens[first:last] for first, last in zip(bounds[::2], bounds[1::2], strict=True)]
    return np.concatenate(runs) if runs else tokens[:0]


@dataclass(frozen=True, kw_only=True)
class DocumentsFile:
    """A file of the stage of documents, and how its documents are split."""

    path: Path

    seed: int
    """Of the split."""

    fraction: float
    """Share of groups held out."""

    encoders: Encoders

    @property
    def tokenizer(self) -> Tokenizer:
        """The one whose tokens are wanted."""
        return self.encoders.tokenizer

    @property
    def unlearnt_bytes(self) -> int:
        """Bytes at a text's end that belong neither to an answer nor to what ends it."""
        return CHATML.unlearnt_bytes if self.tokenizer.marks else 0

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The file's footer.

        Raises:
            DataError: the file cannot be read, or lacks a column.
        """
        with self._explained("not a readable parquet file"):
            metadata = pq.read_metadata(self.path)
        names = names_in(metadata.schema.to_arrow_schema())
        needed = (*_COLUMNS, *(("answer_bytes",) if "query_start" in names else ()))
        if missing := [name for name in needed if name not in names]:
            raise DataError(f"{self.path}: lacks the columns {', '.join(missing)}; materialize the documents again")
        return metadata

    @cached_property
    def columns(self) -> dict[str, str]:
        """What the file calls the columns that are read, by their general names."""
        names = names_in(self.metadata.schema.to_arrow_schema())
        return {name: names[name] for name in (*_COLUMNS, *_MORE_COLUMNS) if name in names}

    @property
    def rows(self) -> int:
        return int(self.metadata.num_rows)

    @cached_property
    def first_rows(self) -> list[int]:
        """The number of the first row of each row group."""
        sizes = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        return list(itertools.accumulate(sizes, initial=0))[:-1]

    @cached_property
    def sampled(self) -> Positions:
        """The rows to compare, spread evenly from where `seed` begins: int64, ascending."""
        count = min(self.rows, CHECKED_DOCUMENTS)
        digest = hashlib.blake2b(f"{self.seed}/checked".encode(), digest_size=8).digest()
        begin = int.from_bytes(digest, "big") / 2.0**64
        rows: Positions = np.floor((np.arange(count) + begin) * (self.rows / max(count, 1))).astype(np.int64)
        return rows

    @cached_property
    def is_for_validation(self) -> Callable[[str], bool]:
        """Tells of a group whether it is held out."""
        return hold_out(seed=self.seed, fraction=self.fraction)

    def pieces(self, *, threads: int, say: Say) -> Generator[Piece]:
        """Yield all documents in order, encoded by `threads` threads, a few row groups ahead of the caller.

        Raises:
            DataError: the file is damaged, or a document was not encoded as the tokenizer's library does.
        """
        waiting: deque[Future[list[Piece]]] = deque()
        with ExitStack() as stack:
            workers: SimpleQueue[_Worker] = SimpleQueue()
            say_once = _once(say)
            for _ in range(threads):
                workers.put(_Worker(file=self, opened=stack.enter_context(self._open()), say=say_once))
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
            try:
                for number in range(self.metadata.num_row_groups):
                    waiting.append(pool.submit(_done_by_one, workers, number))
                    while len(waiting) > 2 * threads or (waiting and waiting[0].done()):
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _open(self) -> pq.ParquetFile:
        with self._explained("not a readable parquet file"):
            # Otherwise a row group's compressed bytes would be held beside what is decoded of them.
            return pq.ParquetFile(self.path, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True)

    def read(self, opened: pq.ParquetFile, row_group: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group of the file, about `_READ_BYTES` at a time.

        Raises:
            DataError: the file is damaged.
        """
        columns = list(self.columns.values())
        group = self.metadata.row_group(row_group)
        rows = 1 + group.num_rows // (1 + group.total_byte_size // _READ_BYTES)
        with self._explained("damaged"):
            for batch in opened.iter_batches(rows, row_groups=[row_group], columns=columns, use_threads=False):
                yield pa.record_batch(batch.select(columns).columns, names=list(self.columns))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: {what} ({error}); materialize the documents again") from error

    def check(self, samples: list[Sample]) -> None:
        """Raise `DataError` unless the tokens of the samples are those of the tokenizer's library."""
        for sample in samples:
            if self.tokenizer.encode(sample.text) != sample.tokens.tolist():
                raise self.encoded_wrongly(sample.document)

    def encoded_wrongly(self, document: str) -> DataError:
        library = self.tokenizer.library
        return DataError(
            f"{self.path}: document {document} was not encoded as {library} does; run: pip uninstall gigatoken "
            f"({library} then encodes alone), materialize token_shards again, and please report the document"
        )


def _once(say: Say) -> Say:
    """Return `say` for several threads that have the same line to say."""
    said: set[str] = set()
    lock = Lock()

    def say_once(line: str) -> None:
        with lock:
            if line not in said:
                said.add(line)
                say(line)

    return say_once


@dataclass(kw_only=True)
class _Worker:
    """What one thread at a time reads and encodes with."""

    file: DocumentsFile
    opened: pq.ParquetFile
    say: Say

    def pieces(self, row_group: int) -> list[Piece]:
        """Return the documents of a row group, encoded."""
        first_row = self.file.first_rows[row_group]
        pieces = []
        with self.file.encoders.one(self.say) as encoder:  # built, if need be, while other threads read
            for rows in self.file.read(self.opened, row_group):
                for some in _cut_by_bytes(rows):
                    pieces.append(self._encoded(encoder, some, first_row))
                    first_row += some.num_rows
        return pieces

    def _encoded(self, encoder: Encoder, rows: pa.RecordBatch, first_row: int) -> Piece:
        encoded = encoder.encode(rows["text"])
        if len(encoded.starts) != rows.num_rows:
            raise self.file.encoded_wrongly(rows["id"][0].as_py())
        sizes = text_sizes(rows["text"])
        text = _spelled_text(self.file, rows, encoded, sizes)
        answer_sizes = _answer_sizes(self.file, rows, sizes)
        answers = text.token_at(np.cumsum(sizes) - answer_sizes)
        lengths = np.diff(encoded.starts, append=len(encoded.tokens))
        spans, span_counts = _spans(rows, text, sizes, answer_sizes, self.file.unlearnt_bytes)
        sampled = self.file.sampled
        sampled = sampled[(sampled >= first_row) & (sampled < first_row + rows.num_rows)] - first_row
        return Piece(
            documents=Documents(
                tokens=encoded.tokens,
                lengths=lengths,
                answers=answers - encoded.starts,
                spans=spans - np.repeat(encoded.starts, span_counts)[:, None],
                span_counts=span_counts,
                text_bytes=int(sizes.sum()),
            ),
            sizes=sizes,
            held_out=held_out_rows(rows["group"], self.file.is_for_validation),
            kinds=_tokens_by_kind(rows["kind"], lengths) if "kind" in self.file.columns else Counter(),
            samples=[_sample(rows, encoded, first_row, index) for index in sampled.tolist()],
            longest=_sample(rows, encoded, first_row, int(lengths.argmax())),
        )


def _done_by_one(workers: SimpleQueue[_Worker], row_group: int) -> list[Piece]:
    worker = workers.get()
    try:
        return worker.pieces(row_group)
    finally:
        workers.put(worker)


def _cut_by_bytes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield `batch` in slices of about `_PIECE_BYTES` of text each; a longer text with those before it."""
    ends = np.cumsum(text_sizes(batch["text"]))
    cuts = np.flatnonzero(np.diff(ends // _PIECE_BYTES)) + 1
    for first, last in itertools.pairwise([0, *cuts.tolist(), batch.num_rows]):
        yield batch.slice(first, last - first)


def _spelled_text(file: DocumentsFile, rows: pa.RecordBatch, encoded: EncodedTexts, sizes: Positions) -> TokenBytes:
    """Return the bytes that the tokens stand for, which are those of the texts.

    Raises:
        DataError: a document's tokens stand for more or fewer bytes than its text has.
    """
    text = TokenBytes(encoded.tokens, file.tokenizer)
    spelled = np.diff(text.before(np.append(encoded.starts, len(encoded.tokens))))  # `<|endoftext|>` stands for none
    if (wrong := np.flatnonzero(spelled != sizes)).size:
        raise file.encoded_wrongly(rows["id"][int(wrong[0])].as_py())
    return text


def _answer_sizes(file: DocumentsFile, rows: pa.RecordBatch, sizes: Positions) -> Positions:
    """Return the bytes of each document's answer, which is its text's end: int64 [documents]; without one, all of it.

    Raises:
        DataError: an answer has no bytes, or more than its text.
    """
    if "answer_bytes" not in file.columns:  # then every token counts
        return sizes
    answer_sizes = int32s(rows["answer_bytes"]).astype(np.int64)
    if (wrong := np.flatnonzero((answer_sizes <= 0) | (answer_sizes > sizes))).size:
        row = int(wrong[0])
        raise DataError(
            f"{file.path}: document {rows['id'][row].as_py()} has answer_bytes={answer_sizes[row]}, need 1 to "
            f"its text's {sizes[row]}; materialize the documents again"
        )
    return answer_sizes


def _spans(
    rows: pa.RecordBatch, text: TokenBytes, sizes: Positions, answer_sizes: Positions, unlearnt_bytes: int
) -> tuple[Positions, Positions]:
    """Return the spans of tokens that an answer-only loss trains on, int64 [spans, 2], and how many each text has.

    A file of conversations lists them; of others it is one, up to the `unlearnt_bytes` at the text's end.
    """
    ends = np.cumsum(sizes)
    if "spans" in rows.schema.names:
        counts = int32s(pc.list_value_length(rows["spans"])).astype(np.int64) // 2
        bounds = int32s(rows["spans"].flatten()).astype(np.int64) + np.repeat(ends - sizes, 2 * counts)
        firsts, lasts = bounds[::2], bounds[1::2]
    else:
        counts = np.ones(len(ends), np.int64)
        firsts, lasts = ends - _trained_sizes(rows, answer_sizes), ends - unlearnt_bytes
    return np.stack((text.token_at(firsts), text.token_at(lasts - 1) + 1), axis=1), counts


def _trained_sizes(rows: pa.RecordBatch, answer_sizes: Positions) -> Positions:
    """Return the bytes of each text's end that an answer-only loss trains on, reasoning and answer: int64 [documents].

    Where the reasoning begins is known in characters.
    """
    if "reasoning_start" not in rows.schema.names:
        return answer_sizes
    characters = int32s(rows["reasoning_start"])  # 0 where there is none
    return np.where(characters > 0, text_sizes(rows["text"]) - bytes_of_first(rows["text"], characters), answer_sizes)


def _tokens_by_kind(column: pa.StringArray, lengths: Positions) -> Counter[str]:
    kinds = pc.fill_null(column, text_value("unknown")).dictionary_encode()
    sums = np.bincount(int32s(kinds.indices), weights=lengths, minlength=len(kinds.dictionary))
    return Counter(dict(zip(kinds.dictionary.to_pylist(), sums.astype(np.int64).tolist(), strict=True)))


def _sample(rows: pa.RecordBatch, encoded: EncodedTexts, first_row: int, index: int) -> Sample:
    end = encoded.starts[index + 1] if index + 1 < len(encoded.starts) else len(encoded.tokens)
    return Sample(
        row=first_row + index,
        document=rows["id"][index].as_py(),
        text=rows["text"][index].as_py(),
        tokens=encoded.tokens[encoded.starts[index] + 1 : end].copy(),
    )

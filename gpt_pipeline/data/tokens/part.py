"""One file's documents as token shards of both splits: the same bytes on any machine, with any number of threads.

The caller's thread writes in the file's order, `threads` others read and encode, and one compares documents with
the library that defines the ids.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.encoder import Encoders
from gpt_pipeline.data.tokens.lengths import LENGTH_EDGES
from gpt_pipeline.data.tokens.pieces import DocumentsFile, Piece, Sample
from gpt_pipeline.data.tokens.stream import TRAIN, VALIDATION
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.tokens.writer import MAX_SHARD_TOKENS, SplitWriter
from gpt_pipeline.shown import Say, duration
from gpt_pipeline.storage.manifest import FileRecord

_CHECKED_AT_ONCE = 25  # documents; the library's tables have to come near the processor first
_SAY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class TokenPart:
    """The tokens of one file of documents."""

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
    encoders: Encoders | None = None,
    max_shard_tokens: int = MAX_SHARD_TOKENS,
) -> TokenPart:
    """Write the tokens of a parquet file of documents into `folder`; its groups decide the split.

    The tokenizer is that of `encoders`, GPT-2's if none are given.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a document with other tokens than its library's.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # malloc's; beside it Arrow's own would keep what it frees for itself
    file = DocumentsFile(path=documents, seed=seed, fraction=fraction, encoders=encoders or Encoders(gpt2()))
    progress, tally = _Progress(say=say, total=file.rows), _Tally()
    splits = [SplitWriter(folder=folder, split=name, max_shard_tokens=max_shard_tokens) for name in (TRAIN, VALIDATION)]
    with ExitStack() as stack:
        for writer in splits:
            stack.enter_context(writer)
        check = _Check(file=file, thread=stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="check")))
        for piece in stack.enter_context(closing(file.pieces(threads=threads, say=say))):
            for writer, chosen in zip(splits, (~piece.held_out, piece.held_out), strict=True):
                writer.add(piece.of(chosen))
            tally.add(piece)
            check.add(piece.samples)
            progress.past(piece)
        checked = check.finish(tally.longest)
    files = tuple(file for writer in splits for file in writer.files)
    records = {name: record for writer in splits for name, record in writer.records.items()}
    return TokenPart(files=files, records=records, facts=_facts(splits, tally, checked))


@dataclass(kw_only=True)
class _Check:
    """Compares documents with what the tokenizer's library makes of them, in a thread beside the others."""

    file: DocumentsFile
    thread: ThreadPoolExecutor
    _samples: list[Sample] = field(default_factory=list)
    _rows: set[int] = field(default_factory=set)
    _begun: list[Future[None]] = field(default_factory=list)

    def add(self, samples: list[Sample]) -> None:
        """Have the documents compared soon.

        Raises:
            DataError: one that was given before is not encoded as the tokenizer's library does.
        """
        while self._begun and self._begun[0].done():
            self._begun.pop(0).result()
        self._samples += samples
        if len(self._samples) >= _CHECKED_AT_ONCE:
            self._begin()

    def finish(self, longest: Sample | None) -> int:
        """Return how many documents were compared, the longest among them.

        Raises:
            DataError: the tokens of one are not those of the tokenizer's library.
        """
        if longest is not None:
            self._samples.append(longest)
        self._begin()
        for future in self._begun:
            future.result()
        return len(self._rows)

    def _begin(self) -> None:
        self._rows.update(sample.row for sample in self._samples)
        self._begun.append(self.thread.submit(self.file.check, self._samples))
        self._samples = []


@dataclass(kw_only=True)
class _Tally:
    """What is counted over both splits."""

    kinds: Counter[str] = field(default_factory=Counter)
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LENGTH_EDGES) - 1, np.int64))
    longest: Sample | None = None

    def add(self, piece: Piece) -> None:
        self.kinds += piece.kinds
        self.lengths += np.histogram(piece.documents.lengths, LENGTH_EDGES)[0]
        if self.longest is None or len(piece.longest.tokens) > len(self.longest.tokens):
            self.longest = piece.longest


def _facts(splits: list[SplitWriter], tally: _Tally, checked: int) -> dict[str, Any]:
    counts = {
        f"{writer.split}_{name}": getattr(writer, name)
        for writer in splits
        for name in ("tokens", "documents", "text_bytes", "shards")
    }
    return {
        **counts,
        **({"tokens_by_exercise": dict(sorted(tally.kinds.items()))} if tally.kinds else {}),
        "document_lengths": tally.lengths.tolist(),
        "checked_documents": checked,
    }


@dataclass(kw_only=True)
class _Progress:
    """Says now and then how far the documents are."""

    say: Say
    total: int
    _documents: int = 0
    _bytes: int = 0
    _started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def past(self, piece: Piece) -> None:
        """Count `piece`."""
        self._documents += len(piece.sizes)
        self._bytes += piece.documents.text_bytes
        now = time.monotonic()
        if self._documents == self.total or now - self._said >= _SAY_SECONDS:
            seconds = max(now - self._started, 1e-9)
            left = seconds * (self.total / self._documents - 1)
            end = f", {duration(left)} left" if left else ""
            rate = self._bytes / 1e6 / seconds
            self.say(f"{self._documents:,} of {self.total:,} documents encoded, {rate:.1f} MB/s{end}")
            self._said = now

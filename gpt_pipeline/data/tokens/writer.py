"""The shards of one split, written in the order in which documents arrive."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from gpt_pipeline.data.arrays import Spool
from gpt_pipeline.data.tokens.stream import (
    Positions,
    ShardFile,
    Tokens,
    answers_name,
    new_shard,
    shard_name,
    spans_name,
    starts_name,
)
from gpt_pipeline.storage.manifest import FileRecord

MAX_SHARD_TOKENS = 500_000_000
"""1 GB; the format ends at 2^31."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Some documents as tokens."""

    tokens: Tokens
    """All documents one after the other, each behind its `<|endoftext|>`."""

    lengths: Positions
    """Tokens of each, that one included: int64 [documents]."""

    answers: Positions
    """Tokens of each before the one with its answer's first byte: int64 [documents]."""

    spans: Positions
    """First token and the one behind the last of each span that an answer-only loss trains on, counted from the first
    of its document: int64 [spans, 2]."""

    span_counts: Positions
    """Spans of each: int64 [documents]."""

    text_bytes: int
    """Of all texts in UTF-8."""


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
    _starts: Spool = field(init=False)
    _answers: Spool = field(init=False)
    _spans: Spool = field(init=False)
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
        counts = documents.span_counts
        before = int(counts[:first].sum())
        spans = documents.spans[before : before + int(counts[first:last].sum())]
        self._spans.append(np.repeat(starts, counts[first:last])[:, None] + spans)
        self._shard_tokens += end - begin
        self.tokens += end - begin
        self.documents += last - first

    def _begin_shard(self) -> None:
        self.shards += 1
        path = self.folder / shard_name(self.split, self.shards)
        self.files += [path, *(path.with_name(name(path.name)) for name in (starts_name, answers_name, spans_name))]
        self._shard = self._unfinished.enter_context(new_shard(path))
        self._shard_tokens = 0
        self._starts, self._answers, self._spans = (
            self._unfinished.enter_context(Spool(self.folder, "<i8", *row)) for row in ((), (), (2,))
        )

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        shard, starts, answers, spans = self.files[-4:]
        with self._unfinished:
            sidecars = {starts: self._starts, answers: self._answers, spans: self._spans}
            records = {path.name: numbers.save(path) for path, numbers in sidecars.items()}
        assert self._shard.record is not None  # it is closed
        self.records |= {shard.name: self._shard.record, **records}
        self._shard = None

"""Documents packed into rows: each row begins at a document, and what fits a row is not cut.

Best fit decreasing, as in "Fewer truncations improve language modeling" (Ding et al. 2024), on the histogram of lengths
(Krell et al. 2021): rows that take the same lengths are one pattern, found once, so that millions of documents take
seconds. Which of the documents of a length goes where is another permutation in each epoch.

A document of n tokens takes n + 1 positions: the inputs are `<|endoftext|>` and its tokens, the targets its tokens and
`<|endoftext|>`. One that is longer than a row becomes pieces of a whole row each, and the rest a piece of its own.
Where only answers are trained on, what does not fit is left out: an answer without its question would teach nothing.

Shapes: T positions in a row, D pieces of documents, R rows, P patterns, S places for pieces in all patterns together.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.batches import Rows, Sampler, shuffled
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import require

Ints = NDArray[np.int64]
Pattern = tuple[tuple[int, int], ...]
"""Lengths with how many pieces of each a row takes."""


def cut(bounds: Ints, row_length: int) -> tuple[Ints, Ints]:
    """Return where the pieces of documents begin, and how long they are: int64 [D] each.

    `bounds` [documents + 1] says where each document begins, with its `<|endoftext|>`, and where the last one ends.
    """
    lengths = np.diff(bounds)
    pieces = -(-lengths // row_length)
    total = int(pieces.sum())
    before = np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the same document
    offsets = before * row_length
    return np.repeat(bounds[:-1], pieces) + offsets, np.minimum(np.repeat(lengths, pieces) - offsets, row_length)


def begin(bounds: Ints, row_length: int) -> tuple[Ints, Ints]:
    """Return the same for documents of which only the beginning is taken, as much as fits a row: one piece each."""
    return bounds[:-1], np.minimum(np.diff(bounds), row_length)


Cut = Callable[[Ints, int], tuple[Ints, Ints]]
"""`cut` or `begin`."""


def best_fit(counts: Ints) -> list[tuple[Pattern, int]]:
    """Return patterns, and how many rows of each, for `counts[n]` pieces of length n; rows have `len(counts) - 1`.

    The longest pieces first, each into the row where it leaves the least room; a new row where it fits into none.
    """
    row_length = len(counts) - 1
    open_rows: dict[int, list[tuple[Pattern, int]]] = {}  # by room
    rooms: list[int] = []  # of open rows, ascending

    def keep(pattern: Pattern, rows: int, room: int) -> None:
        if rows:
            if not open_rows.setdefault(room, []):
                insort(rooms, room)
            open_rows[room].append((pattern, rows))

    for length in reversed(np.flatnonzero(counts).tolist()):
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                pattern, rows = open_rows[room].pop()
                if not open_rows[room]:
                    del rooms[place]
            else:
                room, pattern, rows = row_length, (), left
            each = room // length  # a row that was the best fit stays the best one while another piece fits
            full = min(rows, left // each)
            keep((*pattern, (length, each)), full, room - each * length)
            left -= full * each
            rest = left if full < rows and left < each else 0
            if rest:
                keep((*pattern, (length, rest)), 1, room - rest * length)
                left = 0
            if pattern:
                keep(pattern, rows - full - (rest > 0), room)
    return [each for room in rooms for each in open_rows[room]]


class Placed(NamedTuple):
    """Pieces in rows: int64 [pieces of these rows] each."""

    row: Ints
    """Among those asked for."""

    offset: Ints
    """Of the piece's first position in its row."""

    start: Ints
    """Of the piece's first token in the stream."""

    length: Ints


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Which pieces of documents go into which row."""

    row_length: int
    """T."""

    starts: Ints
    """Where each piece begins in the stream, shorter ones first: int64 [D]."""

    counts: Ints
    """Pieces of each length from 0 to T: int64 [T + 1]."""

    @property
    def n_rows(self) -> int:
        """R."""
        return int(self._patterns.rows[-1])

    @property
    def padding(self) -> float:
        """Share of the rows' positions that no document fills, in [0, 1)."""
        return 1 - _filled(self.counts) / (self.n_rows * self.row_length) if self.n_rows else 0.0

    @cached_property
    def _patterns(self) -> _Patterns:
        return _Patterns.of(best_fit(self.counts))

    def place(self, rows: Ints, *, key: str) -> Placed:
        """Return the pieces of `rows`, of 0..R-1, row by row; `key` permutes the pieces of each length."""
        patterns = self._patterns
        pattern = np.searchsorted(patterns.rows, rows, side="right") - 1
        slots_of_row = np.diff(patterns.slots)[pattern]
        row = np.repeat(np.arange(len(rows)), slots_of_row)
        number = np.arange(len(row)) - np.repeat(np.cumsum(slots_of_row) - slots_of_row, slots_of_row)
        slot = patterns.slots[pattern][row] + number
        nth = patterns.first[slot] + (rows - patterns.rows[pattern])[row] * patterns.stride[slot]
        length = patterns.length[slot]
        chosen = shuffled(nth.astype(np.uint64), n=self.counts[length], key=key).astype(np.int64)
        filled = np.cumsum(length) - length
        first_of_row = np.cumsum(slots_of_row) - slots_of_row
        return Placed(
            row=row,
            offset=filled - filled[first_of_row][row],
            start=self.starts[(np.cumsum(self.counts) - self.counts)[length] + chosen],
            length=length,
        )


@dataclass(frozen=True, kw_only=True)
class _Patterns:
    """Patterns as arrays."""

    rows: Ints
    """Rows before each pattern, and rows in all: int64 [P + 1]."""

    slots: Ints
    """Places for pieces before each pattern, and places in all: int64 [P + 1]."""

    length: Ints
    """Of the piece in each place: int64 [S]."""

    first: Ints
    """The number, among the pieces of its length, of the piece that the pattern's first row has there: int64 [S]."""

    stride: Ints
    """From a row of the pattern to the next, the pieces of this length between them: int64 [S]."""

    @classmethod
    def of(cls, patterns: Iterable[tuple[Pattern, int]]) -> _Patterns:
        rows, slots = [0], [0]
        lengths: list[int] = []
        firsts: list[int] = []
        strides: list[int] = []
        used: dict[int, int] = {}
        for pattern, count in patterns:
            for length, each in pattern:
                first = used.get(length, 0)
                lengths += [length] * each
                firsts += range(first, first + each)
                strides += [each] * each
                used[length] = first + each * count
            rows.append(rows[-1] + count)
            slots.append(len(lengths))
        as_array = (np.array(values, dtype=np.int64) for values in (rows, slots, lengths, firsts, strides))
        return cls(**dict(zip(("rows", "slots", "length", "first", "stride"), as_array, strict=True)))


class Amount(NamedTuple):
    """What `pack` makes of documents."""

    rows: int
    """R."""

    positions: int
    """Filled in them."""


def count(documents: Iterable[Ints], row_length: int, how: Cut = cut) -> Amount:
    """Return how much `pack` makes; quicker, since it does not ask which documents go where."""
    counts = np.zeros(row_length + 1, dtype=np.int64)
    for bounds in documents:
        counts += np.bincount(how(bounds, row_length)[1], minlength=row_length + 1)
    rows = sum(rows for _, rows in best_fit(counts))
    return Amount(rows=rows, positions=_filled(counts))


def _filled(counts: Ints) -> int:
    """Return the positions that `counts[n]` pieces of each length n fill."""
    return int((counts * np.arange(len(counts))).sum())


def pack(documents: Iterable[Ints], row_length: int, how: Cut = cut) -> Packing:
    """Return the packing of documents, given by their bounds as `cut` takes them, some at a time."""
    cuts = [how(bounds, row_length) for bounds in documents]
    starts, lengths = (np.concatenate([np.empty(0, np.int64), *(each[part] for each in cuts)]) for part in (0, 1))
    order = np.argsort(lengths.astype(np.min_scalar_type(row_length)), kind="stable")
    return Packing(row_length=row_length, starts=starts[order], counts=np.bincount(lengths, minlength=row_length + 1))


def read_placed(
    stream: TokenStream, placed: Placed, *, n_rows: int, row_length: int, answers_only: bool = False
) -> Rows:
    """Return the rows with `placed` pieces; padding behind the last piece counts 0.

    Their targets count 1; with `answers_only`, those that `TokenStream.in_spans` finds alone.
    """
    size = n_rows * row_length
    before = np.cumsum(placed.length) - placed.length
    inside = np.arange(int(placed.length.sum())) - np.repeat(before, placed.length)
    positions = np.repeat(placed.row * row_length + placed.offset, placed.length) + inside
    tokens = np.repeat(placed.start, placed.length) + inside
    inputs = np.full(size, stream.eot_token, dtype=np.uint16)
    inputs[positions] = stream.gather(tokens, 1)[:, 0]
    targets = np.full(size, stream.eot_token, dtype=np.uint16)
    has_next = tokens + 1 < stream.n_tokens  # the stream's last document has no <|endoftext|> behind it
    targets[positions[has_next]] = stream.gather(tokens[has_next] + 1, 1)[:, 0]
    weights = np.zeros(size, dtype=np.float32)
    weights[positions] = stream.in_spans(tokens + 1) if answers_only else 1
    filled = np.bincount(placed.row, placed.length, minlength=n_rows).astype(np.int32)
    starts = np.repeat(filled, row_length)  # padding is as a document of its own
    starts[positions] = np.repeat(placed.offset, placed.length)
    shape = n_rows, row_length
    return Rows(inputs.reshape(shape), targets.reshape(shape), weights.reshape(shape), starts.reshape(shape))


@dataclass(frozen=True, kw_only=True)
class DocumentSampler(Sampler):
    """Batches of rows of whole documents."""

    answers_only: bool = False
    """Whether only answers count, and of a document that is longer than a row its beginning alone is taken."""

    @cached_property
    def packing(self) -> Packing:
        return pack(self.stream.documents_by_shard(), self.sequence_length, begin if self.answers_only else cut)

    @cached_property
    def answers(self) -> Answers:
        """How much of the answers the rows hold that `answers_only` takes."""
        return count_answers(self.stream, self.sequence_length)

    @property
    def sequences_per_epoch(self) -> int:
        """W."""
        return self.packing.n_rows

    def place(self, sequences: Ints, *, epoch: int) -> Placed:
        """Return which pieces are in the rows with these numbers."""
        return self.packing.place(sequences, key=f"{self.seed}/{epoch}/documents")

    def read(self, sequences: Ints, *, epoch: int) -> Rows:
        """Return the rows with these numbers."""
        return read_placed(
            self.stream,
            self.place(sequences, epoch=epoch),
            n_rows=len(sequences),
            row_length=self.sequence_length,
            answers_only=self.answers_only,
        )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How much of the documents' answers rows hold that take the beginning of each document."""

    documents: int
    cut: int
    """Documents that are longer than a row."""

    tokens: int
    """Targets that count, those that end an answer included."""

    left_out: int
    """Those that would count and lie beyond their document's row."""

    shortest_row: int | None
    """From which length on a row holds some of them; None: no document has an answer."""

    def in_words(self, row_length: int) -> str:
        """Return what counts, and what is left out, as a phrase."""
        counted = f"{self.tokens:,} tokens of answers count"
        if not self.cut:
            return counted
        share = self.left_out / max(1, self.tokens + self.left_out)
        return (
            f"{counted}; {self.cut:,} of {self.documents:,} documents are cut at data.max_length={row_length}, which "
            f"leaves out {share:.1%} of such tokens"
        )


def count_answers(stream: TokenStream, row_length: int, *, among: Iterable[Ints] | None = None) -> Answers:
    """Return how much of the answers in `stream` the rows of documents' beginnings hold.

    `among` are the documents that are looked at, given by their bounds, some at a time; None: all of them.

    Raises:
        UserError: the shards were made by a version that wrote no spans.
    """
    documents = cut = tokens = left_out = 0
    shortest: list[int] = []
    for bounds in stream.documents_by_shard() if among is None else among:
        spans = stream.spans_between(int(bounds[0]), int(bounds[-1]))
        document = np.searchsorted(bounds, spans[:, 0], side="right") - 1
        ends = spans[:, 1] + (spans[:, 1] == bounds[document + 1])  # with the <|endoftext|> behind the document
        held = np.clip(bounds[document] + row_length + 1, spans[:, 0], ends)
        documents += len(bounds) - 1
        cut += int((np.diff(bounds) > row_length).sum())
        tokens += int((held - spans[:, 0]).sum())
        left_out += int((ends - held).sum())
        places = (spans[:, 0] - bounds[document])[ends > spans[:, 0]]
        if len(places):
            shortest.append(int(places.min()))
    return Answers(
        documents=documents, cut=cut, tokens=tokens, left_out=left_out, shortest_row=min(shortest, default=None)
    )


def require_answers(answers: Answers, row_length: int) -> None:
    """Raise ConfigError if no target of a training on answers alone counts: nothing would be learnt."""
    least = answers.shortest_row
    need = "documents with answers" if least is None else f"at least {least}, where the first answer begins"
    require(
        answers.tokens > 0,
        "data.max_length",
        found=row_length,
        need=f"{need}: none lies within a sequence, so that nothing would be learnt",
        remedy="raise it, or take documents with shorter questions",
    )


def first_documents(stream: TokenStream, *, row_length: int, max_positions: int) -> Ints:
    """Return the bounds of the stream's first documents, whose beginnings take at most `max_positions` in rows.

    They are at least one document.
    """
    bounds = stream.document_bounds
    lengths = np.minimum(np.diff(bounds), row_length)
    taken = max(1, int(np.searchsorted(np.cumsum(lengths), max_positions, side="right")))
    return bounds[: taken + 1]


def packed_in_order(
    stream: TokenStream, *, row_length: int, max_positions: int, batch_size: int, answers_only: bool = False
) -> Iterator[Rows]:
    """Yield rows of `first_documents`.

    Of a document that is longer than a row, only its beginning. The last batch is filled up with rows of padding, so
    that a compiled model meets one shape.
    """
    packing = pack([first_documents(stream, row_length=row_length, max_positions=max_positions)], row_length, begin)
    for first in range(0, packing.n_rows, batch_size):
        rows = np.arange(first, min(first + batch_size, packing.n_rows), dtype=np.int64)
        placed = packing.place(rows, key="validation")
        yield read_placed(stream, placed, n_rows=batch_size, row_length=row_length, answers_only=answers_only)

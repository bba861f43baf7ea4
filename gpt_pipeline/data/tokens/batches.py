"""Batches as functions of the step: resuming is one integer, and the number of processes changes nothing.

Legend: B sequences in a batch, T tokens in a sequence, N sequences of several batches, W sequences of an epoch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.stream import TOKEN_DTYPE, Tokens, TokenStream
from gpt_pipeline.errors import ConfigError, require

TokenIds = NDArray[np.int64]
_AHEAD_BYTES = 4 << 20  # what is read in one go, at least a batch
_ROUNDS = 6  # 4 rounds of a balanced Feistel network suffice in theory (Luby and Rackoff, 1988)


class Rows(NamedTuple):
    """Sequences for a model, with tokens as the shards have them."""

    inputs: Tokens
    """uint16 [N, T]."""

    targets: Tokens
    """uint16 [N, T]."""

    weights: NDArray[np.float32] | None = None
    """How much each target counts, [N, T]; None: all the same, 1."""

    starts: NDArray[np.int32] | None = None
    """Where in its row the document of each input begins, [N, T]; None: rows are not divided."""

    def between(self, first: int, end: int) -> Rows:
        """Return some of the rows."""
        some = slice(first, end)
        return Rows(
            self.inputs[some],
            self.targets[some],
            None if self.weights is None else self.weights[some],
            None if self.starts is None else self.starts[some],
        )


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The training batches: each epoch visits every sequence once, in an order of its own.

    The sequences that do not fill the last batch of an epoch are left out of that epoch.
    """

    stream: TokenStream

    sequence_length: int
    """T, tokens in a sequence."""

    batch_size: int
    """B, sequences in a batch, all ranks together."""

    batch_key: str = "batch_size"
    """The key of an experiment file that says so: this one, or `tokens_per_step`, in tokens. For messages."""

    seed: int
    """Chooses the order of the sequences."""

    _ahead: list[_Ahead] = field(default_factory=list, init=False, repr=False, compare=False)
    """What was read last; at most one."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "batch_size"):
            value = getattr(self, name)
            require(value > 0, name, found=value, need="a whole number above 0")
        if self.sequences_per_epoch < self.batch_size:
            in_tokens = self.batch_key == "tokens_per_step"
            size = self.sequence_length if in_tokens else 1
            raise ConfigError(
                self.batch_key,
                found=size * self.batch_size,
                need=f"at most {size * self.sequences_per_epoch}, the {'whole ' if in_tokens else ''}sequences of "
                f"{self.sequence_length} tokens in the {self.stream.n_tokens} training tokens",
                remedy=f"raise data.num_samples, or lower {'it' if in_tokens else 'it or data.max_length'}",
            )

    @property
    @abstractmethod
    def sequences_per_epoch(self) -> int:
        """W."""

    @abstractmethod
    def read(self, sequences: NDArray[np.int64], *, epoch: int) -> Rows:
        """Return the sequences with these numbers, from 0 to W - 1, as they are in that epoch."""

    @property
    def steps_per_epoch(self) -> int:
        return self.sequences_per_epoch // self.batch_size

    def batch_at(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[TokenIds, TokenIds]:
        """Return inputs and targets of the `step`-th batch, counted from 0 over all epochs: int64 [B / world_size, T].

        The ranks' parts, put together in order of rank, are the batch of a single process.

        Raises:
            ConfigError: the batch cannot be divided evenly among the ranks.
        """
        rows = self.rows_at(step, rank=rank, world_size=world_size)
        return rows.inputs.astype(np.int64, order="C"), rows.targets.astype(np.int64, order="C")

    def rows_at(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the sequences of the `step`-th batch, N = B / world_size.

        Those who ask for one step after the other get what was read ahead, which is not to be written to.

        Raises:
            ConfigError: the batch cannot be divided evenly among the ranks.
        """
        ahead = self._ahead[0] if self._ahead else None
        if ahead is None or not ahead.holds(step, rank, world_size):
            ahead = self._read_ahead(step, rank, world_size, previous=ahead)
            self._ahead[:] = [ahead]
        share = self.batch_size // world_size
        first = (step - ahead.step) * share
        return ahead.rows.between(first, first + share)

    def _read_ahead(self, step: int, rank: int, world_size: int, *, previous: _Ahead | None) -> _Ahead:
        """Read the batch of `step`, and twice as many as `previous` held if `step` is the one after those.

        So a first batch waits for itself only, and later the work of a call is shared by many small batches.
        """
        steps = 1
        if previous is not None and previous.holds(step - previous.steps, rank, world_size):
            row_bytes = (self.sequence_length + 1) * TOKEN_DTYPE.itemsize
            most = _AHEAD_BYTES // (row_bytes * (self.batch_size // world_size))
            left_in_epoch = self.steps_per_epoch - step % self.steps_per_epoch
            steps = max(1, min(2 * previous.steps, most, left_in_epoch))
        sequences = self._sequences(step, steps, rank=rank, world_size=world_size)
        rows = self.read(sequences, epoch=step // self.steps_per_epoch)
        return _Ahead(step=step, steps=steps, rank=rank, world_size=world_size, rows=rows)

    def sequences_at(self, step: int, *, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """Return the numbers of the sequences in that batch: int64 [B / world_size]."""
        return self._sequences(step, 1, rank=rank, world_size=world_size)

    def _sequences(self, step: int, steps: int, *, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the sequences of `steps` batches of one epoch: int64 [steps * B / world_size]."""
        require(
            self.batch_size % world_size == 0,
            "batch_size",
            found=self.batch_size,
            need=f"a multiple of the {world_size} processes that share it",
        )
        share = self.batch_size // world_size
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        firsts = (step_in_epoch + np.arange(steps)) * self.batch_size + rank * share
        positions = (firsts[:, None] + np.arange(share)).astype(np.uint64).ravel()
        return shuffled(positions, n=self.sequences_per_epoch, key=f"{self.seed}/{epoch}").astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class BatchSampler(Sampler):
    """Batches of windows of the stream: window i holds the T + 1 tokens from i*T on, inputs and, shifted by one,
    targets."""

    @property
    def sequences_per_epoch(self) -> int:
        """W."""
        return (self.stream.n_tokens - 1) // self.sequence_length

    def read(self, sequences: NDArray[np.int64], *, epoch: int) -> Rows:
        """Return the windows with these numbers."""
        windows = self.stream.gather(sequences * self.sequence_length, self.sequence_length + 1)
        return Rows(windows[:, :-1], windows[:, 1:])


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """Consecutive batches of one rank."""

    step: int
    """Of the first."""

    steps: int
    rank: int
    world_size: int
    rows: Rows
    """One batch after the other."""

    def holds(self, step: int, rank: int, world_size: int) -> bool:
        return (self.rank, self.world_size) == (rank, world_size) and 0 <= step - self.step < self.steps


def sequential_windows(
    stream: TokenStream, *, sequence_length: int, max_tokens: int | None = None, batch_size: int = 1
) -> Iterator[tuple[TokenIds, TokenIds]]:
    """Yield inputs and targets of the stream's windows in order, int64 [b, t], each token a target once.

    Batches are [batch_size, T], the last full one maybe smaller; what is left at the end, of the stream or of its first
    `max_tokens` targets, is one window [1, t < T].
    """
    T = sequence_length
    n_targets = max(0, stream.n_tokens - 1)
    whole, rest = divmod(n_targets if max_tokens is None else min(n_targets, max_tokens), T)
    for first in range(0, whole, batch_size):
        windows = np.arange(first, min(first + batch_size, whole), dtype=np.int64)
        yield _shifted(stream.gather(windows * T, T + 1))
    if rest > 0:
        yield _shifted(stream.read(whole * T, rest + 1)[None])


def _shifted(rows: NDArray[np.uint16]) -> tuple[TokenIds, TokenIds]:
    ids = rows.astype(np.int64)
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def shuffled(positions: NDArray[np.uint64], *, n: int | NDArray[np.int64], key: str) -> NDArray[np.uint64]:
    """Return where `positions` of 0..n-1 go in the permutation that `key` names; memory is that of `positions`.

    With an array `n`, each position is one of as many as stand at its place there.
    A keyed Feistel network permutes the next power of four at or above n; what lands outside 0..n-1 is sent through
    it again until it lands inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    sizes = np.broadcast_to(np.asarray(n, dtype=np.uint64), positions.shape)
    bit_lengths = np.frexp((np.asarray(n) - 1).astype(np.float64))[1]  # exact up to 2^53
    half_bits = np.broadcast_to(np.maximum(1, (bit_lengths + 1) // 2).astype(np.uint64), positions.shape)
    keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), dtype="<u8")[:_ROUNDS]
    result = _feistel(positions.astype(np.uint64), half_bits, keys)
    while (outside := np.flatnonzero(result >= sizes)).size:
        result[outside] = _feistel(result[outside], half_bits[outside], keys)
    return result


def _feistel(values: NDArray[np.uint64], half_bits: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half_bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output function of SplitMix64 (Steele, Lea and Flood, 2014), modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

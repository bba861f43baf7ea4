"""Batches on the device, the next one read while the present one is computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.training.ranks import Ranks


class Batch(NamedTuple):
    """This process's share of an update."""

    inputs: Tensor
    """int64 [B, T]."""

    targets: Tensor
    """int64 [B, T]."""

    weights: Tensor | None = None
    """How much each target counts in the loss, float32 [B, T]; None: all the same, 1."""

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most `size` sequences."""
        inputs, targets = self.inputs.split(size), self.targets.split(size)
        weights = [None] * len(inputs) if self.weights is None else self.weights.split(size)
        return itertools.starmap(Batch, zip(inputs, targets, weights, strict=True))


class BatchFeed:
    """Gives the batch of each step; a thread reads one ahead from the memory-mapped shards."""

    def __init__(self, sampler: BatchSampler, *, ranks: Ranks, device: torch.device) -> None:
        self._sampler = sampler
        self._ranks = ranks
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def batch_at(self, step: int) -> Batch:
        """Return the batch of the update after `step` updates."""
        ahead = self._ahead
        rows = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        if self._device.type == "cuda":  # copied at 2 bytes a token, and widened there
            rows = _widened(rows.to(self._device, non_blocking=True))
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        """Return the tokens of a batch: [B, T + 1], for CUDA as pinned int16, otherwise as int64 on the device."""
        tokens = self._sampler.rows_at(step, rank=self._ranks.rank, world_size=self._ranks.world_size)
        rows = torch.from_numpy(tokens.view(np.int16))
        if self._device.type == "cuda":  # copies from pinned memory overlap with computing
            return rows.pin_memory()
        return _widened(rows).to(self._device)


def _widened(rows: Tensor) -> Tensor:
    """Return the ids of tokens stored as uint16 and read as int16, torch's nearest type with all operations."""
    return rows.to(torch.int64).bitwise_and_(0xFFFF)

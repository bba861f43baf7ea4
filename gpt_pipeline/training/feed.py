"""Batches on the device, the next one read while the present one is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gpt_pipeline.data.batches import BatchSampler
from gpt_pipeline.training.ranks import Ranks

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 [B, T]: this process's share of an update."""


class BatchFeed:
    """Gives the batch of each step; a thread reads one ahead from the memory-mapped shards."""

    def __init__(self, sampler: BatchSampler, *, ranks: Ranks, device: torch.device) -> None:
        self._sampler = sampler
        self._ranks = ranks
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def batch_at(self, step: int) -> Batch:
        """Return the batch of the update after `step` updates."""
        if self._ahead is not None and self._ahead[0] == step:
            inputs, targets = self._ahead[1].result()
        else:
            inputs, targets = self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        return inputs.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Batch:
        arrays = self._sampler.batch_at(step, rank=self._ranks.rank, world_size=self._ranks.world_size)
        inputs, targets = (torch.from_numpy(array) for array in arrays)
        if self._device.type == "cuda":  # copies from pinned memory overlap with computing
            return inputs.pin_memory(), targets.pin_memory()
        return inputs, targets

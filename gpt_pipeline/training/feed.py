"""Batches on the device, the next one read while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_pipeline.data.tokens.batches import Sampler
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.hardware import devices
from gpt_pipeline.training.config import StepLayout
from gpt_pipeline.training.ranks import Ranks


class Rollout(NamedTuple):
    """What is known of the sampled answers of an update, in all processes together."""

    tokens: int
    """All that were sampled."""

    trained_tokens: int
    """Those whose answers are better or worse than others: what the summed loss is divided by."""

    figures: Mapping[str, float]
    """What is logged of them."""


class Batch(NamedTuple):
    """This process's share of an update."""

    inputs: Tensor
    """int64 [B, T]."""

    targets: Tensor
    """int64 [B, T]."""

    weights: Tensor | None = None
    """How much each target counts in the loss, float32 [B, T]; None: all the same, 1."""

    starts: Tensor | None = None
    """Where in its row the document of each input begins, int64 [B, T]: it sees nothing of those before; None: all."""

    rollout: Rollout | None = None
    """Of sampled answers; None: the batch is of documents."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the model takes, in its order."""
        return self.inputs, self.targets, self.weights, self.starts

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most `size` sequences."""
        for first in range(0, len(self.inputs), size):
            yield Batch(*(None if part is None else part[first : first + size] for part in self.tensors))


class Feed(Protocol):
    """Where the batches of a training come from."""

    def batch_at(self, step: int) -> Batch:
        """Return the batch of the update after `step` updates."""
        ...

    def measure(self, step: int, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return what the feed itself measures of the present weights; None if told to stop."""
        ...

    def rehearse(self) -> None:
        """Compute what takes most memory of what the feed computes itself; change nothing."""
        ...

    def in_words(self, layout: StepLayout) -> str:
        """Return what an update is made of."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class BatchFeed:
    """Gives the batch of each step; a thread reads one ahead from the memory-mapped shards."""

    def __init__(self, sampler: Sampler, *, ranks: Ranks, device: torch.device) -> None:
        self._sampler = sampler
        self._ranks = ranks
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def batch_at(self, step: int) -> Batch:
        """Return the batch of the update after `step` updates."""
        ahead = self._ahead
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        if not devices.runs_ahead(self._device):
            return batch
        # Copied at 2 bytes a token, and widened there.
        return Batch(
            *(None if part is None else _widened(part.to(self._device, non_blocking=True)) for part in batch.tensors)
        )

    def measure(self, step: int, *, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Return nothing: losses say how good the weights are."""
        return {}

    def rehearse(self) -> None:
        """Compute nothing: batches are read."""

    def in_words(self, layout: StepLayout) -> str:
        """Return how the tokens of an update are cut."""
        return (
            f"{layout.tokens_per_step:,} tokens a step in {layout.grad_accum_steps} x {layout.micro_batch_size} "
            f"sequences{self._packing_in_words()}"
        )

    def _packing_in_words(self) -> str:
        """Return what is to be said of the sequences behind their number; nothing of windows of the stream."""
        if not isinstance(self._sampler, DocumentSampler):
            return ""
        told = f" of whole documents ({self._sampler.packing.padding:.1%} padding)"
        if not self._sampler.answers_only:
            return told
        counted = self._sampler.answers.in_words(self._sampler.sequence_length)
        return f"{told}, where answers alone count ({counted})"

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Batch:
        """Return a batch, for a GPU in pinned memory and as it is kept, otherwise as the model takes it."""
        rows = self._sampler.rows_at(step, rank=self._ranks.rank, world_size=self._ranks.world_size)
        if devices.runs_ahead(self._device):  # copies from pinned memory overlap with computing
            return Batch(*(None if part is None else _tensor(part).pin_memory() for part in rows))
        return batch_of(rows, self._device)


def batch_of(parts: Iterable[NDArray[Any] | None], device: torch.device) -> Batch:
    """Return sequences, such as `Rows`, as a model takes them."""
    return Batch(*(None if part is None else _widened(_tensor(part)).to(device) for part in parts))


def _tensor(part: NDArray[Any]) -> Tensor:
    part = np.ascontiguousarray(part)
    return torch.from_numpy(part.view(np.int16) if part.dtype == np.uint16 else part)


def _widened(part: Tensor) -> Tensor:
    """Return ids that are stored as uint16 and read as int16, torch's nearest type with all operations, as int64;
    positions as int64, and weights as they are."""
    if part.dtype == torch.int16:
        return part.to(torch.int64).bitwise_and_(0xFFFF)
    return part.to(torch.int64) if part.dtype == torch.int32 else part

"""The losses on held-out documents while training. Draws no random numbers: training goes on as without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpt_pipeline.data.tokens.batches import Rows, sequential_windows
from gpt_pipeline.data.tokens.packing import count_answers, first_documents, packed_in_order
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.row import Watch
from gpt_pipeline.training.config import StepLayout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import batch_of
from gpt_pipeline.training.ranks import Ranks

_Counted = tuple[slice, Iterable[NDArray[Any] | None], list[int]]
"""Which losses a batch is for, the batch, and how many of its targets count for each."""

_OF_WINDOWS, _OF_DOCUMENTS = slice(0, 1), slice(1, None)


def require_validation_tokens(stream: TokenStream) -> None:
    """Raise UserError unless there is at least one held-out token to predict."""
    if stream.n_tokens < 2:
        raise UserError(
            f"found {stream.n_tokens} validation tokens, need at least 2; raise data.validation_fraction or "
            "data.num_samples"
        )


def require_answers_to_estimate(stream: TokenStream, *, n_windows: int, row_length: int) -> None:
    """Raise UserError unless one of the documents of an estimate has an answer within its sequence."""
    positions = _document_positions(stream, n_windows=n_windows, row_length=row_length)
    among = [first_documents(stream, row_length=row_length, max_positions=positions)]
    if not count_answers(stream, row_length, among=among).tokens:
        raise UserError(
            f"no answer lies within the first {row_length} tokens of the held-out documents of an estimate; raise "
            "data.max_length, evaluation.eval_iters or data.validation_fraction"
        )


def _document_positions(stream: TokenStream, *, n_windows: int, row_length: int) -> int:
    """Return how many positions the documents of an estimate take at most: half as many as its windows have."""
    return min(n_windows * row_length, stream.n_tokens - 1) // 2


@torch.no_grad()  # type: ignore[untyped-decorator]
def estimate_losses(
    model: nn.Module,
    stream: TokenStream,
    *,
    n_windows: int,
    answers_too: bool = False,
    layout: StepLayout,
    compute: Compute,
    ranks: Ranks,
    should_stop: Callable[[], bool],
    watch: Watch,
) -> dict[str, float] | None:
    """Return mean losses on held-out documents, nats per token, by name; None if told to stop.

    `val_loss`: on the first `n_windows` windows of the stream of documents, which begin anywhere. `document_loss`: on
    the first documents, half as many tokens, by themselves, each from its beginning up to the length of a sequence.
    `completion_loss`, with `answers_too`: on the answers and their reasoning in these alone.

    The same ones each time and on any number of processes, so that estimates can be compared. `watch` is told how many
    of how many batches are done, by all processes together.

    Raises:
        UserError: answers are asked for, and none of the documents has one within its sequence.
    """
    T = layout.max_length
    if answers_too:
        require_answers_to_estimate(stream, n_windows=n_windows, row_length=T)
    whole, rest = divmod(min(n_windows * T, stream.n_tokens - 1), T)
    size = layout.micro_batch_size
    windows = sequential_windows(stream, sequence_length=T, max_tokens=n_windows * T, batch_size=size)
    names = ["val_loss", "document_loss", *(["completion_loss"] if answers_too else [])]
    positions = _document_positions(stream, n_windows=n_windows, row_length=T)
    read = partial(packed_in_order, stream, row_length=T, max_positions=positions, batch_size=size)
    documents = [*zip(*(read(answers_only=name == "completion_loss") for name in names[1:]), strict=True)]
    batches = -(-whole // size) + (rest > 0) + len(documents)
    exact = compute.device if devices.has_float64(compute.device) else torch.device("cpu")
    nats = torch.zeros(len(names), dtype=torch.float64, device=exact)
    counted = np.zeros(len(names), dtype=np.int64)
    model.eval()
    fill = partial(_filled_up, shape=(size, T)) if compute.compile else tuple
    of_windows = ((_OF_WINDOWS, fill(parts), [parts[1].size]) for parts in windows)
    of_documents = ((_OF_DOCUMENTS, *_as_one(same)) for same in documents)
    for number, (places, parts, n_targets) in enumerate(chain[_Counted](of_windows, of_documents)):
        watch(number, batches)
        if should_stop():
            return None
        if number % ranks.world_size == ranks.rank:
            with compute.autocast():
                loss = model(*batch_of(parts, compute.device).tensors)
            nats[places] += loss.to(exact).double()
        counted[places] += n_targets
    totals = zip(names, ranks.sum(nats).tolist(), counted.tolist(), strict=True)
    return {name: total / count for name, total, count in totals}


def _filled_up(parts: Sequence[NDArray[Any]], *, shape: tuple[int, int]) -> Rows:
    """Return inputs and targets [b, t] as rows of `shape` [B, T] where the rest counts nothing.

    A compiled model would be compiled anew for the window that ends the stream and for the batch before it.
    """
    b, t = parts[0].shape
    inputs, targets = (np.pad(part, ((0, shape[0] - b), (0, shape[1] - t))) for part in parts)
    weights = np.zeros((1, *shape), np.float32)
    weights[:, :b, :t] = 1.0
    return Rows(inputs, targets, weights)


def _as_one(same: Sequence[Rows]) -> tuple[Rows, list[int]]:
    """Return the same rows, of which other targets count for each of S losses, as rows for one pass with weights
    [S, B, T], and how many count."""
    weights = np.stack([np.asarray(each.weights) for each in same])
    return same[0]._replace(weights=weights), np.count_nonzero(weights, axis=(1, 2)).tolist()

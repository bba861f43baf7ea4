"""The estimate of the validation loss while training. Draws no random numbers: training goes on as without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gpt_pipeline.data.tokens.batches import sequential_windows
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import UserError
from gpt_pipeline.row import Watch
from gpt_pipeline.training.config import StepLayout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.ranks import Ranks


def require_validation_tokens(stream: TokenStream) -> None:
    """Raise UserError unless there is at least one held-out token to predict."""
    if stream.n_tokens < 2:
        raise UserError(
            f"found {stream.n_tokens} validation tokens, need at least 2; raise data.validation_fraction or "
            "data.num_samples"
        )


@torch.no_grad()  # type: ignore[untyped-decorator]
def estimate_val_loss(
    model: nn.Module,
    stream: TokenStream,
    *,
    n_windows: int,
    layout: StepLayout,
    compute: Compute,
    ranks: Ranks,
    should_stop: Callable[[], bool],
    watch: Watch,
) -> float | None:
    """Return the mean loss, nats per token, on the first `n_windows` windows of `stream`; None if told to stop.

    The same windows each time and on any number of processes, so that estimates can be compared. `watch` is told how
    many of how many batches are done, by all processes together.
    """
    windows = sequential_windows(
        stream,
        sequence_length=layout.max_length,
        max_tokens=n_windows * layout.max_length,
        batch_size=layout.micro_batch_size,
    )
    whole, rest = divmod(min(n_windows * layout.max_length, stream.n_tokens - 1), layout.max_length)
    batches = -(-whole // layout.micro_batch_size) + (rest > 0)
    nats = torch.zeros((), dtype=torch.float64, device=compute.device)
    n_tokens = 0
    model.eval()
    for number, (inputs, targets) in enumerate(windows):
        watch(number, batches)
        if should_stop():
            return None
        if number % ranks.world_size == ranks.rank:
            with compute.autocast():
                loss = model(torch.from_numpy(inputs).to(compute.device), torch.from_numpy(targets).to(compute.device))
            nats += loss.double()
        n_tokens += targets.size
    return float(ranks.sum(nats)) / n_tokens

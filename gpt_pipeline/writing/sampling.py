"""Which token comes next: the likeliest, or one drawn by chance.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt_pipeline.evaluation.generate import Pick, greedy


def picker(*, temperature: float, top_k: int | None, seed: int) -> Pick:
    """Return what chooses a token of each row of logits, [B, V] -> [B].

    `temperature` 0 is greedy. Above, tokens are drawn with softmax(logits / temperature), among the `top_k` likeliest
    where that is given; the same seed draws the same.
    """
    if temperature == 0:
        return greedy
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor) -> Tensor:
        # On the CPU in float64: the same draws on every device, but for the logits' own rounding.
        scaled = logits.double().cpu() / temperature
        if top_k is not None and top_k < scaled.size(-1):
            least = scaled.topk(top_k, dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, float("-inf"))
        drawn = torch.multinomial(scaled.softmax(dim=-1), 1, generator=generator)[:, 0]
        return drawn.to(logits.device)

    return draw

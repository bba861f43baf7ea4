"""The blocks of a model, one after the other, with or without what they compute kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Blocks(nn.ModuleList):  # type: ignore[misc]  # torch is not followed by the type checker
    """Blocks that each take the residual stream and what all of them share."""

    recompute: bool = False
    """Whether a block keeps its input alone and is computed again in the backward pass, dropout as it was (Chen et al.
    2016, "Training deep nets with sublinear memory cost"): less memory for about a third more time."""

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        for block in self:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, *shared, use_reentrant=False)
            else:
                x = block(x, *shared)
        return x

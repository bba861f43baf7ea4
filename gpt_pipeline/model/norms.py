"""RMSNorm (Zhang and Sennrich 2019): channels divided by their root mean square. Shapes: C channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name


class RMSNorm(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """RMSNorm with a gain for each channel."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return rms_norm(x, self.weight, eps=self.eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
    """Return `x` [..., C] over the root of its mean square plus `eps`, times `weight` [C]; None: without gains."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)

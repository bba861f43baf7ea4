"""Dropout (Srivastava et al. 2014), with masks that cost less to draw on the CPU than torch's.

torch keeps a mask on the CPU as a factor of four bytes for each activation. Here the same masks, to the bit, are drawn
from the same random numbers with fewer passes over memory, and kept as a byte. On other devices and in compiled models
this is torch's own dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  # its usual name

_DRAWN_TOGETHER = 2**16  # random numbers, 0.5 MB: they stay in the second cache
_BITS = 53  # of a random number of torch's for float64, which decides over one element


class Dropout(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """`nn.Dropout`, with masks drawn in less time."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]: in training, 0 with probability `rate`, else divided by 1 - `rate`."""
        if not self.training or self.rate == 0:
            return x
        if not draws_here(x):
            return F.dropout(x, self.rate)
        y: Tensor = _Dropout.apply(x, self.rate)
        return y


def draws_here(x: Tensor) -> bool:
    """Return whether the masks of activations like `x` are drawn by this module."""
    return bool(x.device.type == "cpu") and not torch.compiler.is_compiling()


def draw_kept(shape: Sequence[int], rate: float) -> Tensor:
    """Return which elements dropout leaves, bool of `shape`, drawn from torch's generator of the CPU.

    `torch.bernoulli_` takes the lowest 53 bits of a number of the generator for each element, as a fraction, and keeps
    the element if it is below 1 - `rate`.
    """
    kept = torch.empty(tuple(shape), dtype=torch.bool)
    below = math.ceil((1 - rate) * 2**_BITS)
    numbers = torch.empty(min(kept.numel(), _DRAWN_TOGETHER), dtype=torch.int64)
    for part in kept.view(-1).split(_DRAWN_TOGETHER):
        drawn = numbers[: len(part)].random_(torch.iinfo(torch.int64).min, None)  # all 64 bits
        torch.lt(drawn.bitwise_and_(2**_BITS - 1), below, out=part)
    return kept


def only_kept(x: Tensor, kept: Tensor) -> Tensor:
    """Return `x` where `kept`, else 0: [...], of the same shape both.

    Multiplies the bits of `x` as an integer, which torch does at twice the speed of a float by a bool. What is not
    kept is 0 even where it was infinite or NaN.
    """
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return (x.contiguous().view(as_integers) * kept).view(x.dtype)


class _Dropout(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        """[...] -> [...]."""
        kept = draw_kept(x.shape, rate)
        ctx.save_for_backward(kept)
        ctx.factor = 1 / (1 - rate)
        return only_kept(x, kept).mul_(ctx.factor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[...] -> [...]."""
        (kept,) = ctx.saved_tensors
        return only_kept(gradient, kept).mul_(ctx.factor), None

"""What stands between the matrices of an MLP, where torch has no function of that name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  # its usual name


def relu_squared(x: Tensor) -> Tensor:
    """Return max(x, 0) squared (So et al. 2021, "Primer"), in the precision of `x`."""
    if torch.compiler.is_compiling():
        positive = F.relu(x)
        return positive * positive  # not `square`, which autocast computes in float32 on CUDA
    y: Tensor = _ReluSquared.apply(x)
    return y


class _ReluSquared(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by the type checker
    """Two passes over memory in each direction; of torch's functions it would be twice as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """[...] -> [...]."""
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)

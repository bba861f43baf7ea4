"""Linear layers, computed by the faster of the CPU libraries that torch carries.

torch takes float32 products on x86 to Intel's MKL, which runs at less than half speed on AMD's processors; the other
library in the same build, oneDNN, does not: 220 against 95 GFLOP/s on one Zen 5 core at GPT-2's shapes. On Intel's MKL
is the faster one: 150 against 100 to 125 (docs/benchmarks.md). On other devices, in other precisions and in compiled
models this is torch's own `linear`.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  # its usual name

_LEAST_ROWS = 32  # below, as in generation, preparing the operands costs more than it saves


class Linear(nn.Linear):  # type: ignore[misc]  # torch is not followed by the type checker
    """`nn.Linear`, by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x` [..., I] times `weight` [O, I] transposed, plus `bias` [O]: [..., O]."""
    if torch.compiler.is_compiling() or not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _OneDnnLinear.apply(x.reshape(-1, x.size(-1)), weight, bias)
    return y.view(*x.shape[:-1], -1)


def as_products_read(x: Tensor) -> Tensor:
    """Return `x` in the precision in which products read it, so that those that share it do not each make a copy."""
    device = x.device.type
    casts = device != "meta" and torch.is_autocast_enabled(device)  # which knows no autocast
    return x.to(torch.get_autocast_dtype(device)) if casts else x


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return bool(
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= _LEAST_ROWS * x.size(-1)
        and not torch.is_autocast_enabled("cpu")
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Return whether this machine has a processor by AMD and a torch with oneDNN.

    Not measured at run time: a training must compute the same after a resume.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:  # not Linux
        name = platform.processor()
    return "AuthenticAMD" in name and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, _OPERATOR)


_OPERATOR = "_linear_pointwise"  # what torch's own compiler calls for a linear layer on the CPU


def product_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[N, I], [O, I], [O] -> [N, O]."""
    y: Tensor = getattr(torch.ops.mkldnn, _OPERATOR)(x, weight, bias, "none", [], "")
    return y


class _OneDnnLinear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[N, I], [O, I], [O] -> [N, O]."""
        ctx.save_for_backward(x, weight)
        return product_by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """[N, O] -> [N, I], [O, I], [O]."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product_by_onednn(gradient, weight.t()) if for_x else None,
            product_by_onednn(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )

"""RMSNorm (Zhang and Sennrich 2019): channels divided by their root mean square. Shapes: C channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.hardware import devices


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
    """Return `x` [..., C] over the root of its mean square plus `eps`, times `weight` [C], in the precision of `x`.

    `weight` None: without gains.
    """
    if devices.on_gpu(x) or torch.compiler.is_compiling():
        with torch.autocast(x.device.type, enabled=False):  # on CUDA it would make float32 of queries and keys
            return F.rms_norm(x, x.shape[-1:], weight, eps)
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


class _RMSNorm(torch.autograd.Function):  # type: ignore[misc]
    """On the CPU torch makes it of several kernels and keeps what each of them read; this keeps `x` and its scales."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """[..., C], [C] -> [..., C]."""
        precision = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precision)
        scale = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y = x * scale
        return (y if weight is None else y.mul_(weight)).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """[..., C] -> [..., C], [C]."""
        x, weight, scale = ctx.saved_tensors
        products = gradient * x.to(scale.dtype)
        if weight is None:
            for_weight, for_x, along_x = None, gradient * scale, products.sum(-1, keepdim=True)
        else:
            for_weight = scale.flatten() @ products.flatten(0, -2)
            for_x = (gradient * scale).mul_(weight)
            along_x = (products @ weight)[..., None]
        # The norm does not grow with x: what of the gradient lies along x is taken out.
        for_x.addcmul_(x, along_x * scale**3, value=-1 / x.size(-1))
        return for_x.to(x.dtype), for_weight, None

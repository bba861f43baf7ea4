"""Causal attention whose weights are dropped, on the CPU, where no library has a fused kernel for it.

Some queries at a time are compared with the keys that they can see, since half of all comparisons at once would be
hidden. Kept for the backward pass are the attention weights and those of them that dropout left.

Shapes: B batch, H heads, N = B * H, T tokens, D channels of a head; n queries at a time, which see S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_pipeline.model.config import CPU_ATTENTION_QUERIES
from gpt_pipeline.model.dropout import draw_kept, only_kept


def causal_attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, *, rate: float) -> Tensor:
    """[B, H, T, D] each -> [B, H, T, D]: what each position sees of itself and those before it, in float32."""
    y: Tensor = _Attention.apply(q, k, v, rate)
    return y


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by the type checker
    """The gradient of the softmax takes its sum over keys from the output (Dao et al. 2022, FlashAttention, appendix
    B.2): of the weights P and those left L, weighted with dP, it is sum(P dP) = sum(L dL) = output times its gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
        """[B, H, T, D] each -> [B, H, T, D]."""
        ctx.factor, ctx.scale, ctx.dtype = 1 / (1 - rate), q.size(3) ** -0.5, q.dtype
        with torch.autocast("cpu", enabled=False):
            queries, keys, values = _by_head(q) * ctx.scale, _by_head(k), _by_head(v)
            y, kept = torch.empty_like(queries), []
            later = torch.ones(CPU_ATTENTION_QUERIES, CPU_ATTENTION_QUERIES, dtype=torch.bool).triu(1)
            for own, seen in _blocks(q.size(2)):
                scores = torch.bmm(queries[:, own], keys[:, seen].mT)  # [N, n, S]
                n = scores.size(1)
                scores[:, :, own].masked_fill_(later[:n, :n], -torch.inf)
                weights = scores.softmax(2)
                left = only_kept(weights, draw_kept(weights.shape, rate))
                y[:, own] = torch.bmm(left, values[:, seen])
                kept += [weights, left]
            y *= ctx.factor
        ctx.save_for_backward(queries, keys, values, y, *kept)
        return y.view(q.shape).to(q.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """[B, H, T, D] -> [B, H, T, D] each."""
        queries, keys, values, y, *kept = ctx.saved_tensors
        blocks = list(_blocks(gradient.size(2)))
        with torch.autocast("cpu", enabled=False):
            by_head = _by_head(gradient)
            sums = (by_head * y).sum(2, keepdim=True)
            by_head = by_head * ctx.factor
            for_q, for_k, for_v = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
            for (own, seen), weights, left in zip(blocks, kept[::2], kept[1::2], strict=True):
                of_y = by_head[:, own]
                for_v[:, seen] += torch.bmm(left.mT, of_y)
                of_scores = torch.bmm(of_y, values[:, seen].mT).mul_(left).addcmul_(weights, sums[:, own], value=-1)
                for_q[:, own] = torch.bmm(of_scores, keys[:, seen])
                for_k[:, seen] += torch.bmm(of_scores.mT, queries[:, own])
            for_q *= ctx.scale
        return *(each.view(gradient.shape).to(ctx.dtype) for each in (for_q, for_k, for_v)), None


def _by_head(x: Tensor) -> Tensor:
    """[B, H, T, D] -> float32 [N, T, D], contiguous."""
    return x.float().reshape(-1, *x.shape[2:]).contiguous()


def _blocks(T: int) -> Iterator[tuple[slice, slice]]:
    """Yield which queries are computed together, and which keys they see, those hidden from some of them included."""
    for start in range(0, T, CPU_ATTENTION_QUERIES):
        end = min(start + CPU_ATTENTION_QUERIES, T)
        yield slice(start, end), slice(0, end)

"""Rotary position embedding (Su et al. 2021, "RoFormer"): queries and keys are turned, further at each position.

Channel i of the first half of a head and channel i of the second are one plane, as in LLaMA's and in all of
`transformers`' models. Shapes: B batch, T tokens, H heads, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt_pipeline.model.linear import as_products_read

Angles = tuple[Tensor, Tensor]
"""For each channel the cosine of its angle, and the sine with the sign that it has there."""


def rotary_angles(positions: Tensor, *, head_size: int, base: float, clockwise: bool = False) -> Angles:
    """Return the angles at `positions` [B or 1, T], in the precision of products: [B or 1, 1, T, D] each."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions[:, None, :, None].float() * (1.0 / base**exponents)
    cos, sin = angles.cos(), angles.sin() if not clockwise else -angles.sin()
    return as_products_read(torch.cat((cos, cos), dim=-1)), as_products_read(torch.cat((-sin, sin), dim=-1))


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """Turn each plane of `x` [B, H, T, D] by its angle, counterclockwise."""
    cos, sin = (each.to(x.dtype) for each in angles)
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)

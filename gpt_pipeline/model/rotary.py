"""Rotary position embedding (Su et al. 2021, "RoFormer"): queries and keys are turned, further at each position.

Channel i of the first half of a head and channel i of the second are one plane, as in LLaMA's and in all of
`transformers`' models. Shapes: B batch, T tokens, H heads, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, *, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angles at `positions` [B or 1, T]: float32 [B or 1, 1, T, D / 2] each."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions[:, None, :, None].float() * (1.0 / base**exponents)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each plane of `x` [B, H, T, D] by its angle, counterclockwise."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

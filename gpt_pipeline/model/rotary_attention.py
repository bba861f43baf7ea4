"""Causal self-attention with rotary positions and without biases, by the names of LLaMA's.

Shapes: B batch, T tokens of this call, C channels, H query heads, G key and value heads, D channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from gpt_pipeline.model.attention import KVCache, Visible, attention
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.dropout import Dropout
from gpt_pipeline.model.linear import Linear, as_products_read
from gpt_pipeline.model.rotary import Angles, rotated


class RotaryAttention(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Attention of H heads over G heads of keys and values, all turned by their positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.dropout = config.drop_rate
        inner = config.kv_heads * config.head_size
        self.q_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = Linear(config.n_embd, inner, bias=False)
        self.v_proj = Linear(config.n_embd, inner, bias=False)
        self.o_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = Dropout(config.drop_rate)

    def turned(self, x: Tensor, angles: Angles) -> Tensor:
        """Return queries or keys [B, H or G, T, D] as they meet each other."""
        return rotated(x, angles)

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | None = None, mask: Visible = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; over what `mask` lets positions see, of a cache too."""
        B, T, _ = x.shape
        x = as_products_read(x)
        q, k, v = (
            projection(x).view(B, T, -1, self.head_size).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.turned(q, angles), self.turned(k, angles)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, layer=self.layer, cache=cache, mask=mask, dropout=dropout)
        return self.resid_dropout(self.o_proj(y))

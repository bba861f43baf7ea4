"""LLaMA (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU (Shazeer 2020), grouped keys and values, no biases.

Shapes: B batch, T tokens of this call, C channels, H query heads, G key and value heads, D channels of a head.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.model.attention import KVCache, Visible, positions_of, visible_to
from gpt_pipeline.model.blocks import Blocks
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.dropout import Dropout
from gpt_pipeline.model.language_model import INIT_STD, LanguageModel
from gpt_pipeline.model.linear import Linear, as_products_read
from gpt_pipeline.model.norms import RMSNorm
from gpt_pipeline.model.rotary import Angles, rotary_angles
from gpt_pipeline.model.rotary_attention import RotaryAttention


class MLP(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """SwiGLU: a matrix, gated by the SiLU of another, and one back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.n_embd, config.mlp_channels, bias=False)
        self.up_proj = Linear(config.n_embd, config.mlp_channels, bias=False)
        self.down_proj = Linear(config.mlp_channels, config.n_embd, bias=False)
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = as_products_read(x)
        return self.dropout(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):  # type: ignore[misc]
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, eps=config.eps)
        self.self_attn = RotaryAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.n_embd, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | None = None, mask: Visible = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.self_attn(self.input_layernorm(x), angles, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):  # type: ignore[misc]
    """The embedding, blocks and the final normalisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = Dropout(config.drop_rate)
        self.layers = Blocks(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, eps=config.eps)

    def forward(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Ids [B, T] -> final hidden states [B, T, C]."""
        config = self.config
        mask = visible_to(ids, cache, starts)
        angles = rotary_angles(positions_of(ids, cache, starts), head_size=config.head_size, base=config.rope_theta)
        x = self.drop(self.embed_tokens(ids))
        x = self.layers(x, angles, cache, mask)
        return self.norm(x)


class Llama(LanguageModel):
    """A LLaMA, as `LlamaForCausalLM`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config)
        self.lm_head = self._make_head()
        self._initialise()

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding [V, C]."""
        return self.model.embed_tokens

    def hidden(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return self.model(ids, cache, starts)

    def _initialise(self) -> None:
        """N(0, 0.02); as in GPT-2, what writes into the residual stream is scaled by 1/sqrt(2 * n_layer)."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter, role in self.roles():
            if role != "vector":
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual_std if writes else INIT_STD)

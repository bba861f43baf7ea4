"""GPT-2 (Radford et al. 2019): pre-LN blocks, learned positions, tanh-approximated GELU.

Shapes: B batch, T tokens of this call, S positions in the cache, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.model.attention import KVCache, Visible, attention, positions_of, visible_to
from gpt_pipeline.model.blocks import Blocks
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.dropout import Dropout
from gpt_pipeline.model.language_model import INIT_STD, LanguageModel
from gpt_pipeline.model.linear import Linear


class Attention(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Causal self-attention of H heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.drop_rate
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Visible = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; over what `mask` lets positions see, of a cache too."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, layer=self.layer, cache=cache, mask=mask, dropout=dropout)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):  # type: ignore[misc]
    """Two matrices with a GELU between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_channels)
        self.c_proj = Linear(config.mlp_channels, config.n_embd)
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):  # type: ignore[misc]
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Visible = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):  # type: ignore[misc]
    """Embeddings, blocks and the final normalisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.drop = Dropout(config.drop_rate)
        self.h = Blocks(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.eps)

    def forward(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Ids [B, T] -> final hidden states [B, T, C]."""
        mask = visible_to(ids, cache, starts)
        x = self.drop(self.wte(ids) + self.wpe(positions_of(ids, cache, starts)))
        x = self.h(x, cache, mask)
        return self.ln_f(x)


class GPT2(LanguageModel):
    """A GPT-2, as `GPT2LMHeadModel`."""

    several_in_one = MappingProxyType({"attn.c_attn.weight": 3})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_head = self._make_head()
        self._initialise()

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding [V, C]."""
        return self.transformer.wte

    def hidden(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return self.transformer(ids, cache, starts)

    def _initialise(self) -> None:
        """N(0, 0.02); matrices that write into the residual stream are scaled by 1/sqrt(2 * n_layer), as in GPT-2."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("c_proj.weight") else INIT_STD)

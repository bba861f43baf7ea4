"""GPT-2 (Radford et al. 2019): pre-LN blocks, learned positions, tanh-approximated GELU.

Parameter names are GPT-2's own (`transformer.h.0.attn.c_attn.weight`, ...), matrices as `nn.Linear` keeps them,
[out, in]. With a tied head there is no `lm_head.weight`: the head is `transformer.wte.weight`.

Shapes: B batch, T tokens of this call, S positions in the cache, C channels, H heads, D channels of a head,
V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.model.config import CPU_ATTENTION_QUERIES, ModelConfig
from gpt_pipeline.model.linear import Linear, linear
from gpt_pipeline.model.loss import summed_loss

_LAYER_NORM_EPS = 1e-5  # GPT-2's
_INIT_STD = 0.02  # GPT-2's


class KVCache:
    """Keys and values of all positions seen so far, for generation.

    Prompts of different lengths are padded on the left, with any token, so that all rows end together; `padding` [B]
    counts the padding of each row. Padded positions are invisible to the others, and the first real token of each row
    stands at position 0.
    """

    def __init__(self, config: ModelConfig, *, capacity: int, padding: Tensor | None = None) -> None:
        if capacity > config.context_length:
            raise ValueError(f"capacity={capacity} must be at most context_length={config.context_length}")
        self.capacity = capacity
        self.padding = padding
        self.length = 0
        """Positions filled so far, padding included."""
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values [B, H, T, D] of new positions; return those of all positions, [B, H, S, D]."""
        end = self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit in a cache of {self.capacity}")
        kept = self._layers[layer]
        if kept is None:  # made here because autocast decides the dtype
            shape = (k.size(0), k.size(1), self.capacity, k.size(3))
            kept = self._layers[layer] = (k.new_empty(shape), v.new_empty(shape))
        kept[0][:, :, self.length : end] = k
        kept[1][:, :, self.length : end] = v
        return kept[0][:, :, :end], kept[1][:, :, :end]

    def positions(self, ids: Tensor) -> Tensor:
        """Return the positions of new tokens `ids` [B, T]: [1, T], or [B, T] with padding."""
        positions = torch.arange(self.length, self.length + ids.size(1), device=ids.device)[None]
        return positions if self.padding is None else (positions - self.padding[:, None]).clamp_min(0)

    def mask(self, ids: Tensor) -> Tensor | None:
        """Return which positions the tokens `ids` [B, T] may see, bool [1 or B, 1, T, S]; None: all of them."""
        T, S = ids.size(1), self.length + ids.size(1)
        if T == 1 and self.padding is None:
            return None
        query = torch.arange(self.length, S, device=ids.device)[:, None]
        key = torch.arange(S, device=ids.device)[None, :]
        visible = (key <= query)[None]
        if self.padding is not None:
            # Padding sees itself: a softmax over nothing would be NaN, which 0 * NaN carries into real rows.
            visible = visible & ((key[None] >= self.padding[:, None, None]) | (key == query)[None])
        return visible[:, None]


class Attention(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Causal self-attention of H heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; with a cache, over its positions too, as far as `mask` lets them be seen."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        if cache is None:
            y = _causal_attention(q, k, v, dropout=self.dropout if self.training else 0.0)
        else:
            k, v = cache.append(self.layer, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    """[B, H, T, D] each -> [B, H, T, D]: what each position sees of itself and those before it."""
    T = q.size(2)
    if q.is_cuda or dropout == 0 or T <= CPU_ATTENTION_QUERIES or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # The CPU has no fused kernel with dropout: it computes, drops and keeps all T * T scores, half of them hidden.
    # Some queries at a time against the keys they can see is two thirds of that (T = 512: 84 ms for 123).
    parts = []
    for start in range(0, T, CPU_ATTENTION_QUERIES):
        end = min(start + CPU_ATTENTION_QUERIES, T)
        visible = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        some = q[:, :, start:end]
        parts.append(
            F.scaled_dot_product_attention(some, k[:, :, :end], v[:, :, :end], attn_mask=visible, dropout_p=dropout)
        )
    return torch.cat(parts, dim=2)


class MLP(nn.Module):  # type: ignore[misc]
    """Two matrices with a GELU between, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):  # type: ignore[misc]
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=_LAYER_NORM_EPS)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=_LAYER_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):  # type: ignore[misc]
    """Embeddings, blocks and the final normalisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=_LAYER_NORM_EPS)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Ids [B, T] -> final hidden states [B, T, C]."""
        positions = torch.arange(ids.size(1), device=ids.device)[None] if cache is None else cache.positions(ids)
        mask = None if cache is None else cache.mask(ids)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        for block in self.h:
            x = block(x, cache, mask)
        return self.ln_f(x)


class GPT(nn.Module):  # type: ignore[misc]
    """A GPT-2 language model; its initial weights come from torch's global random number generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loss_piece: int | None = None
        """Tokens whose logits are in memory together when a loss is computed; None: all."""
        self.transformer = Transformer(config)
        self.lm_head = None if config.tie_weights else Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialise()

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, C]."""
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, ids: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return logits [B, T, V] for `ids` [B, T]; with `targets` [B, T] the loss, summed over tokens, in nats.

        `weights` [B, T] says how much each target counts; None: all the same, 1. A sum, not a mean: micro-batches
        and ranks add up, and the caller divides once by the weight of all targets of the update.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        T = ids.size(1)
        if self.config.context_length < T:
            raise ValueError(f"found {T} tokens, need at most context_length={self.config.context_length}")
        x = self.transformer(ids)
        if targets is None:
            return linear(x, self.head_weight)
        return summed_loss(
            x.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            None if weights is None else weights.flatten(),
            padded_vocab_size=self.config.padded_vocab_size,
            piece=self.loss_piece,
        )

    def forward_cached(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append `ids` [B, T] to the cached positions; return the logits [B, V] after the last of them.

        The first call takes the (left-padded) prompts, each later one the B tokens chosen, as [B, 1]. Call it in eval
        mode and without gradients.
        """
        x = self.transformer(ids, cache)
        cache.length += ids.size(1)
        return F.linear(x[:, -1], self.head_weight)

    def _initialise(self) -> None:
        """N(0, 0.02); matrices that write into the residual stream are scaled by 1/sqrt(2 * n_layer), as in GPT-2."""
        residual_std = _INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("c_proj.weight") else _INIT_STD)

"""The `model:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.errors import ConfigError, require
from gpt_pipeline.storage.fingerprint import added_later, neutral_values

Architecture = Literal["gpt2", "llama", "nanochat"]

CPU_ATTENTION_QUERIES = 128
"""Queries whose attention is computed at a time, with dropout on the CPU, where torch has no fused kernel."""

_DROPOUT = 0.1  # GPT-2's
_SOFT_CAP = 15.0  # nanochat's
_WIDTH_MULTIPLE = 64  # of an MLP whose width is not given: whole tiles of a matrix product
_MEANT_FOR = {
    "n_kv_head": ("llama", "nanochat"),
    "rope_theta": ("llama", "nanochat"),
    "logit_soft_cap": ("nanochat",),
}
_RESOLVED = {"n_kv_head": "kv_heads", "mlp_width": "mlp_channels", "norm_eps": "eps", "logit_soft_cap": "soft_cap"}
_PADDING_MULTIPLE = 64  # a vocabulary that is a multiple of this keeps the head's matrix product on fast tiles


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture and its shape. The defaults are GPT-2 124M without QKV bias: 124,412,160 parameters."""

    architecture: Architecture = added_later("gpt2")
    """`gpt2`; `llama`: rotary positions, RMSNorm, SwiGLU, no biases; `nanochat`: rotary positions, RMSNorm without
    gains, normalised queries and keys, ReLU squared, output projections that begin at zero, soft-capped logits."""

    n_layer: int = 12
    """Number of transformer blocks."""

    n_head: int = 12
    """Attention heads per block; must divide `n_embd`."""

    n_embd: int = 768
    """Width of the residual stream."""

    context_length: int = 1024
    """Longest sequence that the model can take, in tokens; at least `data.max_length`."""

    vocab_size: int = 50257
    """Ids of the tokenizer, at most 65,536; follows `data.tokenizer`, so it need not be given."""

    dropout: float | None = None
    """Probability of dropping an activation, in [0, 1); applied to embeddings, attention and residuals. null: 0.1 for
    `gpt2`, 0 for the others."""

    qkv_bias: bool = False
    """Whether the query, key and value projections have a bias, as in the published GPT-2."""

    tie_weights: bool = True
    """Whether the output head shares the token embedding's matrix."""

    n_kv_head: int | None = added_later(None)
    """Heads of keys and values, each shared by a group of query heads (`llama`, `nanochat`); must divide `n_head`.
    null: one for each query head."""

    mlp_width: int | None = added_later(None)
    """Channels between the matrices of an MLP. null: 4 * `n_embd`; with SwiGLU, which has three matrices, 8/3 of it."""

    rope_theta: float = added_later(10000.0)
    """Base of the rotary positions' wavelengths (`llama`, `nanochat`)."""

    norm_eps: float | None = added_later(None)
    """What a norm adds to the mean square before the root. null: 1e-5 for `gpt2`, 1e-6 for the others."""

    logit_soft_cap: float | None = added_later(None)
    """Logits x become cap * tanh(x / cap) (`nanochat`). null: 15; 0: they stay as they are."""

    def __post_init__(self) -> None:
        if self.dropout is None:
            # Not null from here on: what a training was made with must not depend on what null stands for.
            object.__setattr__(self, "dropout", _DROPOUT if self.architecture == "gpt2" else 0.0)
        for key in ("n_layer", "n_head", "n_embd", "context_length"):
            value = getattr(self, key)
            require(value > 0, key, found=value, need="a whole number above 0")
        require(self.n_embd % self.n_head == 0, "n_embd", found=self.n_embd, need=f"a multiple of n_head={self.n_head}")
        require(
            0 < self.vocab_size <= 1 << 16, "vocab_size", found=self.vocab_size, need="a whole number from 1 to 65536"
        )
        require(0 <= self.drop_rate < 1, "dropout", found=self.dropout, need="a number from 0 up to, not including, 1")
        self._check_modern()
        self._forget_defaults()

    def _forget_defaults(self) -> None:
        """Make null of a value that null stands for, so that one model is compared and fingerprinted in one way."""
        for key, resolved in _RESOLVED.items():
            given = getattr(self, key)
            object.__setattr__(self, key, None)
            if getattr(self, resolved) != given:
                object.__setattr__(self, key, given)

    def _check_modern(self) -> None:
        """Check the keys that came with the architectures after GPT-2; their ranges first, which hold for all."""
        for key, what in (("n_kv_head", "a whole number"), ("mlp_width", "a whole number"), ("norm_eps", "a number")):
            value = getattr(self, key)
            require(value is None or value > 0, key, found=value, need=f"{what} above 0, or null")
        require(self.rope_theta > 1, "rope_theta", found=self.rope_theta, need="a number above 1")
        cap = self.logit_soft_cap
        require(cap is None or cap >= 0, "logit_soft_cap", found=cap, need="a number, 0 or above, or null")
        neutral = neutral_values(type(self))
        for key, architectures in _MEANT_FOR.items():
            if getattr(self, key) != neutral[key] and self.architecture not in architectures:
                need = f"no value: it belongs to {' and '.join(architectures)}"
                remedy = f"remove it, or set architecture: {architectures[0]}"
                raise ConfigError(key, found=getattr(self, key), need=need, remedy=remedy)
        heads = self.kv_heads
        require(self.n_head % heads == 0, "n_kv_head", found=heads, need=f"a divisor of n_head={self.n_head}")
        if self.architecture == "gpt2":
            return
        require(not self.qkv_bias, "qkv_bias", found=True, need=f"false: {self.architecture} has no biases")
        need = f"an even number of channels for each head; n_embd={self.n_embd} gives it {self.head_size}"
        require(self.head_size % 2 == 0, "n_head", found=self.n_head, need=need)

    @property
    def drop_rate(self) -> float:
        """`dropout`, which is not null any more."""
        return self.dropout or 0.0

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def mlp_channels(self) -> int:
        """Channels between the matrices of an MLP."""
        if self.mlp_width is not None:
            return self.mlp_width
        if self.architecture != "llama":
            return 4 * self.n_embd
        return -(-8 * self.n_embd // (3 * _WIDTH_MULTIPLE)) * _WIDTH_MULTIPLE

    @property
    def eps(self) -> float:
        """What a norm adds to the mean square before the root."""
        if self.norm_eps is not None:
            return self.norm_eps
        return 1e-5 if self.architecture == "gpt2" else 1e-6  # as in the published configurations

    @property
    def soft_cap(self) -> float | None:
        """What bounds the logits; None: nothing does."""
        if self.architecture != "nanochat":
            return None
        return _SOFT_CAP if self.logit_soft_cap is None else self.logit_soft_cap or None

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """`vocab_size` rounded up for speed, such as 50,304. The extra rows exist only while training."""
        return -(-self.vocab_size // _PADDING_MULTIPLE) * _PADDING_MULTIPLE

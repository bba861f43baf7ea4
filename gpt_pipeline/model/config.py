"""The `model:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require

CPU_ATTENTION_QUERIES = 128
"""Queries whose attention is computed at a time, with dropout on the CPU, where torch has no fused kernel."""

_PADDING_MULTIPLE = 64  # a vocabulary that is a multiple of this keeps the head's matrix product on fast tiles


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a GPT-2. The defaults are GPT-2 124M without QKV bias: 124,412,160 parameters."""

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

    dropout: float = 0.1
    """Probability of dropping an activation, in [0, 1); applied to embeddings, attention and residuals."""

    qkv_bias: bool = False
    """Whether the query, key and value projections have a bias, as in the published GPT-2."""

    tie_weights: bool = True
    """Whether the output head shares the token embedding's matrix."""

    def __post_init__(self) -> None:
        for key in ("n_layer", "n_head", "n_embd", "context_length"):
            value = getattr(self, key)
            require(value > 0, key, found=value, need="a whole number above 0")
        require(self.n_embd % self.n_head == 0, "n_embd", found=self.n_embd, need=f"a multiple of n_head={self.n_head}")
        require(
            0 < self.vocab_size <= 1 << 16, "vocab_size", found=self.vocab_size, need="a whole number from 1 to 65536"
        )
        require(0 <= self.dropout < 1, "dropout", found=self.dropout, need="a number from 0 up to, not including, 1")

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """`vocab_size` rounded up for speed, such as 50,304. The extra rows exist only while training."""
        return -(-self.vocab_size // _PADDING_MULTIPLE) * _PADDING_MULTIPLE

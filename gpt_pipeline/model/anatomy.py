"""What each architecture is made of, in numbers: weights, and what autograd keeps of a forward pass. Imports no torch.

`costs` turns these into bytes and FLOPs. A new architecture is a new function here.

Legend: C channels of the residual stream, M of an MLP, K of keys and of values, H query heads, G key and value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpt_pipeline.model.config import Architecture, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a model, without the token embedding and the head, which all have."""

    matrices: int
    """Weights in the matrices of one block."""

    vectors: int
    """Biases and gains of one block."""

    final_vectors: int
    """Biases and gains after the last block."""

    positions: int
    """Weights of learned positions."""

    kept_stream: int
    """Numbers of each token that one block keeps in float32, whatever products compute in: the inputs and scales of
    norms."""

    kept_products: int
    """Numbers of each token that one block keeps in the precision of products, but for what attention itself keeps."""

    kept_outside: int
    """Numbers of each token that the norms outside the blocks keep, in float32."""

    kept_angles: int
    """Numbers of each position, the same for all sequences and blocks, in the precision of products."""


def anatomy(model: ModelConfig) -> Anatomy:
    """Return the parts of this model."""
    return _ANATOMIES[model.architecture](model)


def _gpt2(model: ModelConfig) -> Anatomy:
    C, M = model.n_embd, model.mlp_channels
    return Anatomy(
        matrices=4 * C * C + 2 * C * M,
        vectors=(3 * C if model.qkv_bias else 0) + C + M + C + 4 * C,  # biases; two norms with a gain and a bias
        final_vectors=2 * C,
        positions=model.context_length * C,
        kept_stream=2 * (C + 2),  # each norm: input, mean and deviation
        kept_products=2 * C + 2 * M,  # outputs of the norms; before and after the GELU
        kept_outside=C + 2,
        kept_angles=0,
    )


def _llama(model: ModelConfig) -> Anatomy:
    C, M = model.n_embd, model.mlp_channels
    return Anatomy(
        matrices=_attention_matrices(model) + 3 * C * M,
        vectors=2 * C,
        final_vectors=C,
        positions=0,
        kept_stream=2 * (C + 1),  # each norm: input and scale
        kept_products=2 * C + 4 * M,  # outputs of the norms; the gate before and after SiLU, what it gates, the product
        kept_outside=C + 1,
        kept_angles=2 * model.head_size,
    )


def _nanochat(model: ModelConfig) -> Anatomy:
    C, M, K = model.n_embd, model.mlp_channels, model.kv_heads * model.head_size
    return Anatomy(
        matrices=_attention_matrices(model) + 2 * C * M,
        vectors=0,
        final_vectors=0,
        positions=0,
        kept_stream=2 * (C + 1) + model.n_head + model.kv_heads,  # each norm, those of queries and keys for each head
        kept_products=2 * C + C + K + 2 * M,  # outputs of the norms; queries and keys before theirs; ReLU, its square
        kept_outside=2 * (C + 1),
        kept_angles=2 * model.head_size,
    )


def _attention_matrices(model: ModelConfig) -> int:
    """Return the weights for queries, keys, values and output, with heads of keys and values for a group of queries."""
    C = model.n_embd
    return 2 * C * C + 2 * C * model.kv_heads * model.head_size


_ANATOMIES: Mapping[Architecture, Callable[[ModelConfig], Anatomy]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "nanochat": _nanochat,
}

"""GPT-2's weights in `transformers`.

Matrices inside a block are transposed there, [in, out], and the query, key and value projection always has a bias,
which is zero where ours has none. Shapes: C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.layout import Layout, Weights
from gpt_pipeline.model.config import ModelConfig

_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_QKV_BIAS = "attn.c_attn.bias"


class GPT2Layout(Layout):
    """The weights of GPT-2 there."""

    prefix = "transformer."
    embedding = "transformer.wte.weight"
    buffers = (".attn.bias", ".attn.masked_bias")  # the causal mask

    def theirs(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        turned = {name: _turned(name, tensor) for name, tensor in weights.items()}
        if not model.qkv_bias:
            for layer in range(model.n_layer):
                turned[f"{self.prefix}h.{layer}.{_QKV_BIAS}"] = torch.zeros(3 * model.n_embd)
        return turned

    def ours(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        """Transpose; with `model.qkv_bias` off, leave out biases that are all zero."""
        if not model.qkv_bias and has_qkv_bias(weights):
            raise UserError(
                "found query, key and value biases other than zero, need none, since model.qkv_bias is false; "
                "set model.qkv_bias: true in the experiment file"
            )
        kept = {name: tensor for name, tensor in weights.items() if model.qkv_bias or not name.endswith(_QKV_BIAS)}
        return {name: _turned(name, tensor) for name, tensor in kept.items()}


def has_qkv_bias(weights: Weights) -> bool:
    """Whether any bias of GPT-2's query, key and value projections is not zero."""
    return any(name.endswith(_QKV_BIAS) and bool(tensor.any()) for name, tensor in weights.items())


def _turned(name: str, tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if name.endswith(_TRANSPOSED) and tensor.dim() == 2 else tensor.contiguous()

"""GPT-2 in `transformers`.

Matrices inside a block are transposed there, [in, out], and the query, key and value projection always has a bias,
which is zero where ours has none. Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.layout import Layout, Weights
from gpt_pipeline.model.config import ModelConfig

_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_QKV_BIAS = "attn.c_attn.bias"
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


class GPT2Layout(Layout):
    """`GPT2LMHeadModel`."""

    class_name = "GPT2LMHeadModel"
    name = "GPT-2"
    prefix = "transformer."
    embedding = "transformer.wte.weight"
    buffers = (".attn.bias", ".attn.masked_bias")  # the causal mask
    fixed = MappingProxyType(
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        }
    )

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "layer_norm_epsilon": model.eps,
            **dict.fromkeys(_DROPOUTS, model.dropout),
            "n_layer": model.n_layer,
            "n_head": model.n_head,
            "n_embd": model.n_embd,
            "n_inner": model.mlp_width,
            "n_positions": model.context_length,
            "n_ctx": model.context_length,
        }

    def shape(self, config: Mapping[str, Any]) -> dict[str, Any]:
        width = config.get("n_inner")
        return {
            "n_layer": int(config["n_layer"]),
            "n_head": int(config["n_head"]),
            "n_embd": int(config["n_embd"]),
            "context_length": int(config["n_positions"]),
            "mlp_width": None if width is None else int(width),
            "norm_eps": float(config.get("layer_norm_epsilon", 1e-5)),
            "tie_weights": bool(config.get("tie_word_embeddings", True)),
        }

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

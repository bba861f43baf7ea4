"""Convert config and weights of GPT-2 between our layout and that of Hugging Face's `transformers`.

Names are the same; matrices inside a block are transposed there, [in, out], and the query, key and value projection
always has a bias, which is zero where ours has none.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.errors import UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig

_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_QKV_BIAS = "attn.c_attn.bias"
_MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which older files hold beside the weights
_PREFIX = "transformer."
_HEAD = "lm_head.weight"
_EMBEDDING = f"{_PREFIX}wte.weight"
# What decides the function that the weights compute, besides their shapes, with the values that our model has.
_ARCHITECTURE: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def hugging_face_config(model: ModelConfig, *, eot_token: int) -> dict[str, Any]:
    """Return the `config.json` of a model of this shape, whose documents `eot_token` separates."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: accepted[0] for key, accepted in _ARCHITECTURE.items()},
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_inner": None,
        "n_positions": model.context_length,
        "n_ctx": model.context_length,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_weights,
        "bos_token_id": eot_token,
        "eos_token_id": eot_token,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def hugging_face_weights(model: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our weights with the names and shapes of `transformers`; a tied head is not repeated."""
    weights = {name: _turned(name, tensor) for name, tensor in model.items()}
    if not config.qkv_bias:
        for layer in range(config.n_layer):
            weights[f"{_PREFIX}h.{layer}.{_QKV_BIAS}"] = torch.zeros(3 * config.n_embd)
    return weights


def read_hugging_face_config(config: Mapping[str, Any], *, source: object) -> dict[str, Any]:
    """Return the model's shape from a `config.json`, by key of `ModelConfig`, without `qkv_bias` and `dropout`.

    Raises:
        UserError: it is not a GPT-2, or computes something different from ours; says what was found and is needed.
    """
    for key, accepted in _ARCHITECTURE.items():
        found = config.get(key, accepted[0] if key != "model_type" else None)
        if found not in accepted:
            raise UserError(f"{source}: {key}: found {found!r}, need {accepted[0]!r}, as in this program's model")
    try:
        shape = {
            "n_layer": int(config["n_layer"]),
            "n_head": int(config["n_head"]),
            "n_embd": int(config["n_embd"]),
            "context_length": int(config["n_positions"]),
            "vocab_size": int(config["vocab_size"]),
            "tie_weights": bool(config.get("tie_word_embeddings", True)),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{source} is not a config of GPT-2: {error!r}; need n_layer, n_head, n_embd and so on"
        ) from None
    if config.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise UserError(f"{source}: n_inner: found {config['n_inner']}, need {4 * shape['n_embd']}, four times n_embd")
    return shape


def our_weights(weights: Mapping[str, Tensor], config: ModelConfig, *, source: object) -> dict[str, Tensor]:
    """Return weights of `transformers` in our layout, float32, by our names.

    With `config.qkv_bias` off, biases that are all zero are left out.

    Raises:
        UserError: a weight is missing, has another shape, is not finite, or has no place in `config`.
    """
    found = {name: _turned(name, tensor).float() for name, tensor in _renamed(weights)}
    if config.tie_weights:
        _drop_repeated_head(found, source=source)
    if not config.qkv_bias:
        _drop_zero_biases(found, source=source)
    with torch.device("meta"):
        needed = {name: tensor.shape for name, tensor in make_model(config).named_parameters()}
    for name in sorted(needed.keys() | found.keys()):
        _require_weight(name, found.get(name), needed.get(name), source=source)
    return {name: found[name] for name in needed}


def has_qkv_bias(weights: Mapping[str, Tensor]) -> bool:
    """Whether any bias of the query, key and value projections is not zero."""
    return any(name.endswith(_QKV_BIAS) and bool(tensor.any()) for name, tensor in weights.items())


def _require_weight(name: str, tensor: Tensor | None, needed: torch.Size | None, *, source: object) -> None:
    if tensor is None or needed is None or tensor.shape != needed:
        shapes = [None if tensor is None else tensor.shape, needed]
        found, need = ("no such weight" if shape is None else f"shape {tuple(shape)}" for shape in shapes)
        raise UserError(f"{source}: {name}: found {found}, need {need}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{source}: {name}: found NaN or infinity, need numbers")


def _renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        if not name.endswith(_MASKS):
            yield (name if name == _HEAD or name.startswith(_PREFIX) else _PREFIX + name), tensor


def _turned(name: str, tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if name.endswith(_TRANSPOSED) and tensor.dim() == 2 else tensor.contiguous()


def _drop_repeated_head(weights: dict[str, Tensor], *, source: object) -> None:
    """Keep the one matrix of both ends under the embedding's name; a file may hold it under the head's alone."""
    head = weights.pop(_HEAD, None)
    if head is not None and not torch.equal(head, weights.setdefault(_EMBEDDING, head)):
        raise UserError(
            f"{source}: found a {_HEAD} of its own, need the token embedding's matrix, since tie_word_embeddings is "
            "true; set it to false in config.json, and model.tie_weights: false in the experiment file"
        )


def _drop_zero_biases(weights: dict[str, Tensor], *, source: object) -> None:
    if has_qkv_bias(weights):
        raise UserError(
            f"{source}: found query, key and value biases other than zero, need none, since model.qkv_bias is false; "
            "set model.qkv_bias: true in the experiment file"
        )
    for name in [name for name in weights if name.endswith(_QKV_BIAS)]:
        del weights[name]

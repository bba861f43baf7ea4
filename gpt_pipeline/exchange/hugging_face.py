"""Convert config and weights of a model between our layout and that of Hugging Face's `transformers`.

What is peculiar to an architecture stands in the file of its name beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.exchange.gpt2 import GPT2Layout
from gpt_pipeline.exchange.layout import Layout
from gpt_pipeline.exchange.llama import LlamaLayout
from gpt_pipeline.exchange.nanochat import NanoChatLayout
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import Architecture, ModelConfig

_LAYOUTS: Mapping[Architecture, Layout] = {"gpt2": GPT2Layout(), "llama": LlamaLayout(), "nanochat": NanoChatLayout()}
_HEAD = "lm_head.weight"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def layout_of(model: ModelConfig) -> Layout:
    """Return what is peculiar to the model's architecture in `transformers`."""
    return _LAYOUTS[model.architecture]


def hugging_face_config(model: ModelConfig, *, eot_token: int) -> dict[str, Any]:
    """Return the `config.json` of a model of this shape, whose documents `eot_token` separates."""
    layout = layout_of(model)
    return {
        "architectures": [layout.class_name],
        "model_type": model.architecture,
        **{key: accepted[0] for key, accepted in layout.fixed.items()},
        **layout.config(model),
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_weights,
        "bos_token_id": eot_token,
        "eos_token_id": eot_token,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def hugging_face_weights(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return our weights with the names and shapes of `transformers`; a tied head is not repeated."""
    return layout_of(model).theirs(weights, model)


def read_hugging_face_config(config: Mapping[str, Any], *, source: object) -> ModelConfig:
    """Return the model that a `config.json` describes, with the default `dropout` and without `qkv_bias`.

    Raises:
        UserError: it is of another architecture, or computes something different from ours; says what was found and is
            needed.
    """
    found = config.get("model_type")
    architecture = next((name for name in _LAYOUTS if name == found), None)
    if architecture is None:
        raise UserError(
            f"{source}: model_type: found {found!r}, need {', '.join(_LAYOUTS)}; take a model of one of these types"
        )
    layout = _LAYOUTS[architecture]
    try:
        return _model_of(config, architecture)
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        needed = ", ".join(layout.config(ModelConfig(architecture=architecture)))
        raise UserError(f"{source} is not a config of {layout.name}: {error!r}; need {needed}") from None


def _model_of(config: Mapping[str, Any], architecture: Architecture) -> ModelConfig:
    quantization = config.get("quantization_config")
    if quantization is not None:
        remedy = "take the model as it was before it was quantised"
        raise ConfigError("quantization_config", found=quantization, need="weights as floats", remedy=remedy)
    layout = _LAYOUTS[architecture]
    layout.check(config)
    shape = {**layout.shape(config), "vocab_size": int(config["vocab_size"])}
    for key, value in shape.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(key, found=value, need="a number")
    return ModelConfig(architecture=architecture, **shape)


def our_weights(weights: Mapping[str, Tensor], model: ModelConfig, *, source: object) -> dict[str, Tensor]:
    """Return weights of `transformers` in our layout, float32, by our names.

    Raises:
        UserError: a weight is missing, has another shape, is not finite, or has no place in `model`.
    """
    layout = layout_of(model)
    named = {
        _with_prefix(name, layout): tensor for name, tensor in weights.items() if not name.endswith(layout.buffers)
    }
    if model.tie_weights:
        _drop_repeated_head(named, layout.embedding, source=source)
    try:
        found = layout.ours(named, model)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with torch.device("meta"):
        needed = {name: tensor.shape for name, tensor in make_model(model).named_parameters()}
    for name in sorted(needed.keys() | found.keys()):
        _require_weight(name, found.get(name), needed.get(name), source=source)
    return {name: found[name].float() for name in needed}


def _with_prefix(name: str, layout: Layout) -> str:
    return name if name == _HEAD or name.startswith(layout.prefix) else layout.prefix + name


def _require_weight(name: str, tensor: Tensor | None, needed: torch.Size | None, *, source: object) -> None:
    if tensor is None or needed is None or tensor.shape != needed:
        shapes = [None if tensor is None else tensor.shape, needed]
        found, need = ("no such weight" if shape is None else f"shape {tuple(shape)}" for shape in shapes)
        raise UserError(f"{source}: {name}: found {found}, need {need}")
    if tensor.dtype not in _FLOATS:
        need = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise UserError(f"{source}: {name}: found {tensor.dtype}, need {need}; take a model that is not quantised")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{source}: {name}: found NaN or infinity, need numbers")


def _drop_repeated_head(weights: dict[str, Tensor], embedding: str, *, source: object) -> None:
    """Keep the one matrix of both ends under the embedding's name; a file may hold it under the head's alone."""
    head = weights.pop(_HEAD, None)
    if head is not None and not torch.equal(head.float(), weights.setdefault(embedding, head).float()):
        raise UserError(
            f"{source}: found a {_HEAD} of its own, need the token embedding's matrix, since tie_word_embeddings is "
            "true; set it to false in config.json, and model.tie_weights: false in the experiment file"
        )

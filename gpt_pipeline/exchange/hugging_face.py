"""Convert the weights of a model between our layout and that of Hugging Face's `transformers`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.gpt2 import GPT2Layout
from gpt_pipeline.exchange.layout import Layout
from gpt_pipeline.model.architectures import make_empty_model
from gpt_pipeline.model.config import ModelConfig

_HEAD = "lm_head.weight"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _layout_of(model: ModelConfig) -> Layout:
    return GPT2Layout() if model.architecture == "gpt2" else Layout()


def hugging_face_weights(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return our weights with the names and shapes of `transformers`; a tied head is not repeated."""
    return _layout_of(model).theirs(weights, model)


def our_weights(weights: Mapping[str, Tensor], model: ModelConfig, *, source: object) -> dict[str, Tensor]:
    """Return weights of `transformers` in our layout, float32, by our names.

    Raises:
        UserError: a weight is missing, has another shape, is not finite, or has no place in `model`.
    """
    layout = _layout_of(model)
    named = {
        _with_prefix(name, layout): tensor for name, tensor in weights.items() if not name.endswith(layout.buffers)
    }
    if model.tie_weights:
        _drop_repeated_head(named, layout.embedding, source=source)
    try:
        found = layout.ours(named, model)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    needed = {name: tensor.shape for name, tensor in make_empty_model(model).named_parameters()}
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

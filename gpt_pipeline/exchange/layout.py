"""The names and shapes that weights have in `transformers`; here those of LLaMA and nanochat, which are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from gpt_pipeline.model.config import ModelConfig

Weights = Mapping[str, Tensor]


class Layout:
    """The weights of an architecture there."""

    prefix: ClassVar[str] = "model."
    """Of all weights but the head's; a model saved without its head lacks it."""

    embedding: ClassVar[str] = "model.embed_tokens.weight"
    buffers: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)
    """Ends of the names of what older files hold beside the weights, although it follows from the config."""

    def theirs(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        """Return our weights as `transformers` has them."""
        return {name: tensor.contiguous() for name, tensor in weights.items()}

    def ours(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        """Return weights of `transformers` as we have them; raises UserError where they do not fit `model`."""
        return {name: tensor.contiguous() for name, tensor in weights.items()}

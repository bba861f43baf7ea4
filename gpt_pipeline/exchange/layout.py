"""What `transformers` has in its own way for each architecture: the keys of `config.json`, the names of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.model.config import ModelConfig

Weights = Mapping[str, Tensor]


class Layout(ABC):
    """An architecture in `transformers`, where it is a `model_type` of the same name."""

    class_name: ClassVar[str]
    name: ClassVar[str]
    """For people."""

    prefix: ClassVar[str]
    """Of all weights but the head's; a model saved without its head lacks it."""

    embedding: ClassVar[str]
    buffers: ClassVar[tuple[str, ...]]
    """Ends of the names of what older files hold beside the weights, although it follows from the config."""

    fixed: ClassVar[Mapping[str, tuple[Any, ...]]]
    """Keys of `config.json` that decide the function which the weights compute, with the values that ours has. The
    first one is written, and stands for a key that is absent."""

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise ConfigError if a model with this `config.json` computes another function than ours."""
        for key, accepted in self.fixed.items():
            found = config.get(key, accepted[0])
            if found not in accepted:
                need = f"{accepted[0]!r}, as in this program's {self.name}"
                raise ConfigError(key, found=found, need=need, remedy="take a model that has it")

    @abstractmethod
    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Return the shape of `model` by the keys of `config.json`."""

    @abstractmethod
    def shape(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shape in a `config.json` by the keys of `ModelConfig`, without `qkv_bias` and `dropout`.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: a key is absent, or its value is none of its kind.
        """

    def theirs(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        """Return our weights as `transformers` has them."""
        return {name: tensor.contiguous() for name, tensor in weights.items()}

    def ours(self, weights: Weights, model: ModelConfig) -> dict[str, Tensor]:
        """Return weights of `transformers` as we have them; raises UserError where they do not fit `model`."""
        return {name: tensor.contiguous() for name, tensor in weights.items()}

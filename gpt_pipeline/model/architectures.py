"""The architectures by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.model.gpt2 import GPT2
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.model.llama import Llama
from gpt_pipeline.model.nanochat import NanoChat

_CLASSES: Mapping[Architecture, type[LanguageModel]] = {"gpt2": GPT2, "llama": Llama, "nanochat": NanoChat}


def make_model(config: ModelConfig) -> LanguageModel:
    """Return a model of this architecture and shape, with initial weights from torch's generator."""
    return _CLASSES[config.architecture](config)


def make_empty_model(config: ModelConfig) -> LanguageModel:
    """Return a model of this architecture and shape on the device `meta`: names and shapes, for weights to be put in.

    It takes no memory for weights, and no random numbers.
    """
    with torch.device("meta"), _NoInitialWeights():
        return make_model(config)


class _NoInitialWeights(TorchFunctionMode):  # type: ignore[misc]
    """Leaves out `torch.nn.init.normal_`.

    There is nothing to fill on `meta`, but torch would import its compiler for it, which takes more than a second.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.nn.init.normal_ and options:
            return options["tensor"]
        return function(*arguments, **(options or {}))

"""The architectures by name."""

from __future__ import annotations

from collections.abc import Mapping

from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.model.gpt2 import GPT2
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.model.llama import Llama
from gpt_pipeline.model.nanochat import NanoChat

_CLASSES: Mapping[Architecture, type[LanguageModel]] = {"gpt2": GPT2, "llama": Llama, "nanochat": NanoChat}


def make_model(config: ModelConfig) -> LanguageModel:
    """Return a model of this architecture and shape, with initial weights from torch's generator."""
    return _CLASSES[config.architecture](config)

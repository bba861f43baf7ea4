"""nanochat's model in `transformers`: names and matrices are ours, most keys of the config are LLaMA's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gpt_pipeline.exchange.llama import LlamaLayout
from gpt_pipeline.model.config import ModelConfig

_SOFT_CAP = "final_logit_softcapping"


class NanoChatLayout(LlamaLayout):
    """`NanoChatForCausalLM`."""

    class_name = "NanoChatForCausalLM"
    name = "nanochat"
    fixed = MappingProxyType({"hidden_act": ("relu2",), "attention_bias": (False,)})

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {**super().config(model), _SOFT_CAP: model.soft_cap}

    def shape(self, config: Mapping[str, Any]) -> dict[str, Any]:
        cap = config.get(_SOFT_CAP, 15.0)
        return {**super().shape(config), "logit_soft_cap": 0.0 if cap is None else float(cap)}

"""LLaMA in `transformers`: names and matrices are ours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.exchange.layout import Layout
from gpt_pipeline.model.config import ModelConfig

_ROPE = "rope_parameters"  # of transformers 5; before it, rope_theta and rope_scaling


class LlamaLayout(Layout):
    """`LlamaForCausalLM`."""

    class_name = "LlamaForCausalLM"
    name = "LLaMA"
    prefix = "model."
    embedding = "model.embed_tokens.weight"
    buffers = (".rotary_emb.inv_freq",)
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
        {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
    )

    def check(self, config: Mapping[str, Any]) -> None:
        super().check(config)
        for key in (_ROPE, "rope_scaling"):
            rope = config.get(key) or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
                need = "rotary positions of type default, of all channels, without scaling"
                raise ConfigError(key, found=rope, need=need, remedy="take a model that was trained with them")
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        size = config.get("head_dim")
        if size is not None and size * heads != width:
            need = f"hidden_size={width} / num_attention_heads={heads}"
            raise ConfigError("head_dim", found=size, need=need, remedy="take a model whose heads have that size")

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "num_hidden_layers": model.n_layer,
            "num_attention_heads": model.n_head,
            "num_key_value_heads": model.kv_heads,
            "hidden_size": model.n_embd,
            "intermediate_size": model.mlp_channels,
            "max_position_embeddings": model.context_length,
            "rms_norm_eps": model.eps,
            "rope_theta": model.rope_theta,
            _ROPE: {"rope_type": "default", "rope_theta": model.rope_theta},
            "attention_dropout": model.dropout,
            "pad_token_id": None,
        }

    def shape(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kv_heads = config.get("num_key_value_heads")
        theta = (config.get(_ROPE) or {}).get("rope_theta", config.get("rope_theta", 10000.0))
        return {
            "n_layer": int(config["num_hidden_layers"]),
            "n_head": int(config["num_attention_heads"]),
            "n_kv_head": None if kv_heads is None else int(kv_heads),
            "n_embd": int(config["hidden_size"]),
            "mlp_width": int(config["intermediate_size"]),
            "context_length": int(config["max_position_embeddings"]),
            "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
            "rope_theta": float(theta),
            "tie_weights": bool(config.get("tie_word_embeddings", False)),
        }

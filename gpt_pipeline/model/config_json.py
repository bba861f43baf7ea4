"""A model as the `config.json` of Hugging Face's `transformers` describes it, both ways. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from gpt_pipeline.errors import ConfigError, DamagedFileError, UserError
from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.storage.atomic import read_json

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_ROPE = "rope_parameters"  # of transformers 5; before it, rope_theta and rope_scaling
_SOFT_CAP = "final_logit_softcapping"


class ConfigJson(ABC):
    """What is peculiar to an architecture there, where it is a `model_type` of the same name."""

    class_name: ClassVar[str]
    name: ClassVar[str]
    """For people."""

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


class _GPT2Json(ConfigJson):
    """`GPT2LMHeadModel`."""

    class_name = "GPT2LMHeadModel"
    name = "GPT-2"
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


class _LlamaJson(ConfigJson):
    """`LlamaForCausalLM`."""

    class_name = "LlamaForCausalLM"
    name = "LLaMA"
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


class _NanoChatJson(_LlamaJson):
    """`NanoChatForCausalLM`: most keys are LLaMA's."""

    class_name = "NanoChatForCausalLM"
    name = "nanochat"
    fixed = MappingProxyType({"hidden_act": ("relu2",), "attention_bias": (False,)})

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {**super().config(model), _SOFT_CAP: model.soft_cap}

    def shape(self, config: Mapping[str, Any]) -> dict[str, Any]:
        cap = config.get(_SOFT_CAP, 15.0)
        return {**super().shape(config), "logit_soft_cap": 0.0 if cap is None else float(cap)}


_KINDS: Mapping[Architecture, ConfigJson] = {"gpt2": _GPT2Json(), "llama": _LlamaJson(), "nanochat": _NanoChatJson()}


def config_json_of(model: ModelConfig) -> ConfigJson:
    """Return what is peculiar to the model's architecture in `transformers`."""
    return _KINDS[model.architecture]


def hugging_face_config(model: ModelConfig, *, eot_token: int) -> dict[str, Any]:
    """Return the `config.json` of a model of this shape, whose documents `eot_token` separates."""
    kind = config_json_of(model)
    return {
        "architectures": [kind.class_name],
        "model_type": model.architecture,
        **{key: accepted[0] for key, accepted in kind.fixed.items()},
        **kind.config(model),
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_weights,
        "bos_token_id": eot_token,
        "eos_token_id": eot_token,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def model_in_folder(folder: Path) -> ModelConfig:
    """Return the model that the folder's `config.json` describes, as `read_hugging_face_config` does.

    Raises:
        UserError: as there, or there is no such file.
        DamagedFileError: it is no JSON object.
    """
    path = folder / "config.json"
    return read_hugging_face_config(json_object(path), source=path)


def json_object(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file of a model's folder; raises UserError or DamagedFileError."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; need a folder with a model as transformers saves it") from None
    except ValueError as error:
        raise DamagedFileError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}: found a {type(value).__name__}, need an object")
    return value


def read_hugging_face_config(config: Mapping[str, Any], *, source: object) -> ModelConfig:
    """Return the model that a `config.json` describes, with the default `dropout` and without `qkv_bias`.

    Raises:
        UserError: it is of another architecture, or computes something different from ours; says what was found and is
            needed.
    """
    found = config.get("model_type")
    architecture = next((name for name in _KINDS if name == found), None)
    if architecture is None:
        raise UserError(
            f"{source}: model_type: found {found!r}, need {', '.join(_KINDS)}; take a model of one of these types"
        )
    kind = _KINDS[architecture]
    try:
        return _model_of(config, architecture)
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        needed = ", ".join(kind.config(ModelConfig(architecture=architecture)))
        raise UserError(f"{source} is not a config of {kind.name}: {error!r}; need {needed}") from None


def _model_of(config: Mapping[str, Any], architecture: Architecture) -> ModelConfig:
    quantization = config.get("quantization_config")
    if quantization is not None:
        remedy = "take the model as it was before it was quantised"
        raise ConfigError("quantization_config", found=quantization, need="weights as floats", remedy=remedy)
    kind = _KINDS[architecture]
    kind.check(config)
    shape = {**kind.shape(config), "vocab_size": int(config["vocab_size"])}
    for key, value in shape.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(key, found=value, need="a number")
    return ModelConfig(architecture=architecture, **shape)

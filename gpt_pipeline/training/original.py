"""Checkpoints of the scripts that this program grew out of: what they hold, under our names.

Such a file is a dictionary with `model_state_dict` (`tok_emb.weight`, `trf_blocks.0.att.W_query.weight`, ...),
`optimizer_state_dict`, `global_step`, `epoch`, `val_loss` and `best_val_loss`. The weights map one to one; AdamW's
moments come along where they are those of these weights, in their order. The file is read, never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.checkpoints.load import UNREADABLE
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.model.architectures import make_empty_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.fingerprint import neutral_values
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.optimizer import Optimizer

OPTIMIZER = "adamw"
"""The one that those scripts trained with."""

_COMPILED = "_orig_mod."  # before each name when the model was compiled as it was saved
_QKV = ("att.W_query", "att.W_key", "att.W_value")
_NAMES = {
    "tok_emb.weight": "transformer.wte.weight",
    "pos_emb.weight": "transformer.wpe.weight",
    "final_norm.scale": "transformer.ln_f.weight",
    "final_norm.shift": "transformer.ln_f.bias",
    "out_head.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "att.out_proj.weight": "attn.c_proj.weight",
    "att.out_proj.bias": "attn.c_proj.bias",
    "ff.layers.0.weight": "mlp.c_fc.weight",
    "ff.layers.0.bias": "mlp.c_fc.bias",
    "ff.layers.2.weight": "mlp.c_proj.weight",
    "ff.layers.2.bias": "mlp.c_proj.bias",
    "norm1.scale": "ln_1.weight",
    "norm1.shift": "ln_1.bias",
    "norm2.scale": "ln_2.weight",
    "norm2.shift": "ln_2.bias",
}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class OriginalCheckpoint:
    """What one of those files holds, under our names."""

    model: Mapping[str, Tensor]
    """Float32, by GPT-2's parameter names."""

    shape: Mapping[str, Any]
    """What the tensors tell of the model: keys of `ModelConfig`; the number of heads does not show."""

    step: int
    """Optimizer updates done, as `global_step` says."""

    moments: Mapping[str, Mapping[str, Tensor]] | None
    """AdamW's `step`, `exp_avg` and `exp_avg_sq` by parameter name; None where the file has no such state."""

    notes: Mapping[str, Any]
    """`epoch`, `val_loss` and `best_val_loss` as they stand there."""


def read_original(path: Path) -> OriginalCheckpoint | None:
    """Return the original checkpoint in the file `path`; None if it is a file of another kind.

    Raises:
        DamagedFileError: it holds more than tensors and plain values, or is cut short, or lacks weights.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends too early"
        raise DamagedFileError(
            f"{path} is refused: a checkpoint holds tensors and plain values only, and reading it as such failed "
            f"({reason})"
        ) from error
    if not isinstance(payload, Mapping) or "model_state_dict" not in payload:
        return None
    try:
        return _converted(payload)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(
            f"{path} looks like a checkpoint of the original scripts, but its weights are not theirs: {error}"
        ) from error


def optimizer_state(original: OriginalCheckpoint, config: ModelConfig, training: TrainingConfig) -> dict[str, Any]:
    """Return the state that the optimizer of `training` takes over: the moments where there are some, else none."""
    model = make_empty_model(config)
    model.load_state_dict(dict(original.model), assign=True)
    optimizer = Optimizer(model, training)
    state = optimizer.state()
    if original.moments is None:
        return state
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for part, parameters in zip(state["states"], optimizer.parameters, strict=True):
        part["state"] = {
            number: dict(original.moments[names[id(parameter)]]) for number, parameter in enumerate(parameters)
        }
    return state


def _converted(payload: Mapping[str, Any]) -> OriginalCheckpoint:
    found = {name.removeprefix(_COMPILED): tensor for name, tensor in payload["model_state_dict"].items()}
    # `att.mask` is the causal mask, a buffer that some versions of the scripts saved too.
    weights = {name: tensor.float() for name, tensor in found.items() if not name.endswith("att.mask")}
    n_layer = len({name.split(".")[1] for name in weights if name.startswith("trf_blocks.")})
    return OriginalCheckpoint(
        model=_under_our_names(weights, n_layer),
        shape=_shape(weights, n_layer),
        step=int(payload["global_step"]),
        moments=_moments(payload.get("optimizer_state_dict"), weights, n_layer),
        notes={name: payload.get(name) for name in ("epoch", "val_loss", "best_val_loss")},
    )


def _shape(weights: Mapping[str, Tensor], n_layer: int) -> dict[str, Any]:
    vocab_size, n_embd = weights["tok_emb.weight"].shape
    return {
        **neutral_values(ModelConfig),  # GPT-2, without the keys that came later
        "n_layer": n_layer,
        "n_embd": n_embd,
        "context_length": weights["pos_emb.weight"].size(0),
        "vocab_size": vocab_size,
        "qkv_bias": "trf_blocks.0.att.W_query.bias" in weights,
        "tie_weights": "out_head.weight" not in weights,
    }


def _under_our_names(tensors: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Return one tensor per parameter of ours; query, key and value are stacked into one matrix, in this order."""
    rest = dict(tensors)
    ours = {_NAMES[name]: rest.pop(name) for name in _NAMES if name in rest}
    for layer in range(n_layer):
        theirs = f"trf_blocks.{layer}."
        own = f"transformer.h.{layer}."
        for part in ("weight", "bias"):
            names = [f"{theirs}{name}.{part}" for name in _QKV]
            if part == "weight" or names[0] in rest:
                ours[f"{own}attn.c_attn.{part}"] = torch.cat([rest.pop(name) for name in names])
        ours |= {f"{own}{name}": rest.pop(f"{theirs}{key}") for key, name in _BLOCK_NAMES.items()}
    if rest:
        raise ValueError(f"found {sorted(rest)[0]!r} besides the weights of this architecture")
    return ours


def _moments(state: Any, weights: Mapping[str, Tensor], n_layer: int) -> dict[str, dict[str, Tensor]] | None:
    """Return AdamW's state by our names, or None unless there is one entry per weight, of its shape, in its order."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return None
    entries = state["state"]
    # Several groups number the parameters group by group, which is not the order of the weights.
    if len(state.get("param_groups", ())) != 1 or set(entries) != set(range(len(weights))):
        return None
    by_name = {name: entries[number] for number, name in enumerate(weights)}
    if not all(_fits(by_name[name], weight) for name, weight in weights.items()):
        return None
    kinds = {
        kind: _under_our_names({name: entry[kind].float() for name, entry in by_name.items()}, n_layer)
        for kind in _MOMENTS
    }
    # The same count for all of them: those scripts updated every parameter at every step.
    count = float(max(float(entry["step"]) for entry in by_name.values()))
    return {
        name: {"step": torch.tensor(count), **{kind: tensors[name] for kind, tensors in kinds.items()}}
        for name in kinds["exp_avg"]
    }


def _fits(entry: Any, weight: Tensor) -> bool:
    return (
        isinstance(entry, Mapping)
        and "step" in entry
        and all(isinstance(entry.get(kind), Tensor) and entry[kind].shape == weight.shape for kind in _MOMENTS)
    )

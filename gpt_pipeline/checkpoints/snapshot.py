"""The state of a training at one step: all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import UnknownKeysError, newer_file, only_known_fields

_FORMAT = 1  # raised when the payload changes in a way that older code cannot read


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a training after `step` updates: tensors and plain values only."""

    model: Mapping[str, Tensor]
    """By GPT-2's parameter names, without padding; a tied head is not repeated."""

    model_config: ModelConfig
    optimizer: Mapping[str, Any]
    """`{"name": ..., "states": [one state_dict per torch optimizer]}`."""

    random: Mapping[str, Any]
    """State of every random number generator."""

    step: int
    tokens_seen: int
    seconds: float
    """Training time so far, over all runs."""

    train_loss: float | None
    """Of the last update, mean nats per token."""

    val_loss: float | None
    """Newest estimate, mean nats per token."""

    validated_step: int
    """Step of that estimate; -1: none yet."""

    best_val_loss: float | None
    best_step: int
    """Step of the lowest estimate so far; -1: none yet."""

    fingerprint: str
    """Of the training."""

    shards_fingerprint: str

    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the training was told, by key of the experiment file: plain values."""

    def payload(self) -> dict[str, Any]:
        """Return what is written: plain values and tensors."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": _FORMAT, **values, "model_config": dataclasses.asdict(self.model_config)}

    @classmethod
    def from_payload(cls, payload: Any, *, source: object) -> Snapshot:
        """Return the snapshot that `payload` gave; `source` names it in errors.

        Raises:
            DamagedFileError: the payload is not one of ours.
            NewerFileError: a newer version wrote it, with what this one does not know.
        """
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        if type(found) is int and found > _FORMAT:
            raise newer_file(source, f"format {found}, and this version knows {_FORMAT}", payload)
        if found != _FORMAT:
            raise DamagedFileError(f"{source} is no checkpoint of this program: found format {found!r}, need {_FORMAT}")
        values = {name: value for name, value in payload.items() if name != "format"}
        try:
            model = only_known_fields(ModelConfig, values["model_config"], section="model_config")
            return cls(**{**only_known_fields(cls, values), "model_config": ModelConfig(**model)})
        except UnknownKeysError as error:
            raise newer_file(source, str(error), payload) from None
        except (TypeError, KeyError, ValueError) as error:
            raise DamagedFileError(f"{source} is no checkpoint of this program: {error}") from error


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors inside nested containers."""
    if isinstance(value, Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, Mapping):
        return sum(tensor_bytes(item) for item in value.values())
    return sum(tensor_bytes(item) for item in value) if isinstance(value, list | tuple) else 0


def weights_sha256(model: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over each tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

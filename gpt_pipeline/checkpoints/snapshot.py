"""The state of a training at one step: everything that is needed to continue as if it had never stopped.

The fields of `Snapshot` and `Progress` declare what a checkpoint holds. Saving, loading, the copy in host memory and
sizes follow them; only `training.state` says where each comes from and where it goes. Declare a new field as
`added(...)` with its neutral value: what it is in a checkpoint that lacks it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import UnknownKeysError, newer_file, only_known_fields
from gpt_pipeline.storage.fingerprint import identity_of

_FORMAT = 1  # raised when the payload changes in a way that older code cannot read
_ADDED = "added"
_OVERHEAD_BYTES = 1 << 20  # what a file holds besides tensors: names, shapes, alignment, the generators' plain values

_Place = tuple[str | int, ...]


def added(**neutral: Any) -> Any:
    """Declare a field that the first checkpoints lack; `default` or `default_factory` gives its neutral value."""
    return field(**neutral, metadata={_ADDED: True})


@dataclass(kw_only=True)
class Progress:
    """How far a training has come: plain values, as they are before the first update."""

    step: int = 0
    """Optimizer updates done."""

    tokens_seen: int = 0
    seconds: float = 0.0
    """Training time so far, over all runs."""

    train_loss: float | None = None
    """Of the last update, mean nats per token."""

    val_loss: float | None = None
    """Newest estimate, mean nats per token."""

    validated_step: int = -1
    """Step of `val_loss`; -1: none yet."""

    best_val_loss: float | None = None
    """Lowest estimate so far of the loss that decides: `TrainingJob.deciding_loss`."""

    best_step: int = -1
    """Its step; -1: none yet."""

    def note_validation(self, val_loss: float, *, deciding: float) -> bool:
        """Record an estimate at the present step; return whether `deciding` is the lowest of a trained model so far."""
        self.val_loss, self.validated_step = val_loss, self.step
        if self.step == 0 or deciding >= (math.inf if self.best_val_loss is None else self.best_val_loss):
            return False
        self.best_val_loss, self.best_step = deciding, self.step
        return True

    def forget_best(self) -> None:
        """Count the best from the present step on, which is estimated again."""
        self.best_val_loss, self.best_step, self.validated_step = None, -1, -1

    def forget_estimates(self) -> None:
        """As `forget_best`; the newest estimate is none either."""
        self.forget_best()
        self.val_loss = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a training: tensors and plain values, in mappings and lists."""

    model: Mapping[str, Tensor]
    """By the names of the model's parameters, without padding; a tied head is not repeated."""

    model_config: ModelConfig
    optimizer: Mapping[str, Any]
    """`{"name": ..., "states": [one for AdamW, one for Muon if any]}`.

    Each is `{"state": {number of the parameter: its tensors, named as in `torch.optim`}, "param_groups": [...]}`. The
    groups say which settings were used, and are not read again.
    """

    random: Mapping[str, Any]
    """State of every random number generator."""

    progress: Progress
    """Written field by field, beside the others."""

    fingerprint: str
    """Of the training; empty: of none that is known here."""

    shards_fingerprint: str

    settings: Mapping[str, Any] = added(default_factory=dict)
    """The configuration of the training, by key of the experiment file: plain values."""

    tokenizer: str | None = added(default=None)
    """The text of its `tokenizer.json`; None: GPT-2's, and then nothing of it is written."""

    average: Mapping[str, Tensor] | None = added(default=None)
    """The mean of the weights over updates, as `model`, in float32; None: none is kept, or it has not begun."""

    average_since: int | None = added(default=None)
    """Updates before the first whose weights are in `average`; None: as the configuration says, or none is kept."""

    loss_scale: Mapping[str, Tensor] | None = added(default=None)
    """Of a training in fp16: `value`, and `good_updates` since it last changed; None: trained in another precision."""

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.progress.step

    def payload(self) -> dict[str, Any]:
        """Return what is written: plain values and tensors."""
        values: dict[str, Any] = {"format": _FORMAT}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is None and _ADDED in each.metadata:
                continue  # so that a version which knows no such field reads the checkpoint
            values |= dataclasses.asdict(value) if each.name == "progress" else {each.name: value}
        # Without keys that are neutral, which an earlier version does not know.
        return {**values, "model_config": identity_of(self.model_config)}

    @classmethod
    def from_payload(cls, payload: Any, *, source: object) -> Self:
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
            progress = Progress(**_take_fields(Progress, values))
            model = only_known_fields(ModelConfig, values["model_config"], section="model_config")
            known = only_known_fields(cls, values)
            return cls(**{**known, "progress": progress, "model_config": ModelConfig(**model)})
        except UnknownKeysError as error:
            raise newer_file(source, str(error), payload) from None
        except (TypeError, KeyError, ValueError) as error:
            raise DamagedFileError(f"{source} is no checkpoint of this program: {error}") from error


class HostCopy:
    """Host memory for the tensors of one snapshot, so that training can go on while they are written.

    The memory is allocated for the first snapshot and reused for each one after it: fresh pages cost more time than
    the copy itself, on the CPU too. From a GPU the copies go to pinned memory, all at the same time.
    """

    def __init__(self) -> None:
        self._memory: dict[_Place, Tensor] = {}

    def of(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with tensors that no update changes any more; the next call reuses their memory."""
        copy: Snapshot = self._copied(snapshot, ())
        devices.synchronize()
        return copy

    def _copied(self, value: Any, place: _Place) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(value, place).copy_(value, non_blocking=devices.runs_ahead(value.device))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in dataclasses.fields(value)]
            parts = {name: self._copied(getattr(value, name), (*place, name)) for name in names}
            return dataclasses.replace(value, **parts)
        if isinstance(value, Mapping):
            return {key: self._copied(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(item, (*place, number)) for number, item in enumerate(value))
        return value

    def _buffer(self, value: Tensor, place: _Place) -> Tensor:
        kept = self._memory.get(place)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            # Not empty_like: a tensor that is a view would have its whole storage written to the file.
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=devices.runs_ahead(value.device))
            self._memory[place] = kept
        return kept


def _take_fields(cls: type[Progress], values: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields of `cls` from `values` and return them; raises KeyError for one that every checkpoint has."""
    due = [each.name for each in dataclasses.fields(cls) if each.name in values or _ADDED not in each.metadata]
    return {name: values.pop(name) for name in due}


def snapshot_bytes(snapshot: Snapshot) -> int:
    """Return about how many bytes the checkpoint file of `snapshot` has, rounded up."""
    return tensor_bytes(snapshot.payload()) + len(snapshot.tokenizer or "") + _OVERHEAD_BYTES


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

"""A copy of a snapshot in this computer's memory, so that the training can go on while it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.checkpoints.snapshot import Snapshot

_Place = tuple[str | int, ...]


class HostCopy:
    """Memory for the tensors of one snapshot, allocated for the first and used again for each one after it.

    From a GPU the copies go to pinned memory, all under way at once. Fresh pages cost more time than the copy itself,
    on the CPU too, which is why the memory is kept.
    """

    def __init__(self) -> None:
        self._memory: dict[_Place, Tensor] = {}

    def of(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with tensors that no update changes any more; the next call takes their memory again."""
        parts = {name: self._copied(getattr(snapshot, name), (name,)) for name in ("model", "optimizer", "random")}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return dataclasses.replace(snapshot, **parts)

    def _copied(self, value: Any, place: _Place) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(value, place).copy_(value, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self._copied(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(item, (*place, number)) for number, item in enumerate(value))
        return value

    def _buffer(self, value: Tensor, place: _Place) -> Tensor:
        kept = self._memory.get(place)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            # Not empty_like: a tensor that is a view would have its whole storage written to the file.
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._memory[place] = kept
        return kept

"""What changed between the training that made a checkpoint and the one that continues it. Imports no torch.

Each key is free (it changes no weight), warned about (the weights to come differ from those of either training alone)
or refused (the checkpoint's tensors do not fit).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpt_pipeline.training.job import TrainingJob

Effect = Literal["free", "warned", "refused"]
Settings = Mapping[str, Any]
"""Values by the whole path of their key in the experiment file."""

SHARDS = "token shards"
"""Stands for everything that decides the documents and their split: the fingerprint of the shards."""

_FREE_SECTIONS = ("hardware", "evaluation")
_FREE = ("training.micro_batch_size", "training.compile")
_WARNED_MODEL = "model.dropout"
_REFUSED = ("training.optimizer",)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key that has another value now."""

    key: str
    before: Any
    after: Any

    @property
    def effect(self) -> Effect:
        """What the change means for a training that goes on."""
        section = self.key.split(".")[0]
        if section in _FREE_SECTIONS or self.key in _FREE:
            return "free"
        refused = self.key in _REFUSED or (section == "model" and self.key != _WARNED_MODEL)
        return "refused" if refused else "warned"

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)}"


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """Return all that `job` was told, but for names and folders: plain values by key, as a checkpoint keeps them."""
    sections = {
        "model": dataclasses.asdict(job.model),
        "training": dataclasses.asdict(job.training),
        "evaluation": dataclasses.asdict(job.cadence),
        "hardware": dataclasses.asdict(job.hardware),
    }
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {**flat, "data.max_length": job.max_length, SHARDS: job.shards_fingerprint}


def find_changes(before: Settings, job: TrainingJob) -> list[Change]:
    """Return the keys whose value in `job` is another than in `before`; what `before` does not know is no change."""
    after = settings_of(job)
    return [
        Change(key=key, before=before[key], after=value)
        for key, value in after.items()
        if key in before and before[key] != value
    ]


def listed(changes: Iterable[Change], effect: Effect) -> str:
    """Return the changes of one effect in a line; empty if there are none."""
    return "; ".join(str(change) for change in changes if change.effect == effect)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text  # a fingerprint

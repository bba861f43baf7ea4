"""Who watches a training. The trainer tells; it never waits for an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gpt_pipeline.checkpoints.manifest import CheckpointInfo


class Observer(Protocol):
    """Hears what happens while a training runs, in the trainer's own process."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Hear a line of `metrics.jsonl`, with `max_steps` and `eta_seconds` (null: unknown) besides."""

    def checkpoint(self, info: CheckpointInfo) -> None:
        """Hear of a finished checkpoint."""

    def message(self, text: str) -> None:
        """Hear a sentence for the user."""


class SilentObserver:
    """Hears nothing: for the processes besides the first."""

    def progress(self, record: Mapping[str, Any]) -> None: ...

    def checkpoint(self, info: CheckpointInfo) -> None: ...

    def message(self, text: str) -> None: ...

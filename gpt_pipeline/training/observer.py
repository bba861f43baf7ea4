"""Who watches a training. The trainer tells; it never waits for an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gpt_pipeline.checkpoints.manifest import CheckpointInfo

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Hears what happens while a training runs, in the trainer's own process."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Hear a line of `metrics.jsonl`, with `max_steps` besides."""

    def checkpoint(self, info: CheckpointInfo) -> None:
        """Hear of a finished checkpoint."""

    def message(self, text: str) -> None:
        """Hear a sentence for the user."""


class SilentObserver:
    """Hears nothing: for the processes besides the first."""

    def progress(self, record: Mapping[str, Any]) -> None: ...

    def checkpoint(self, info: CheckpointInfo) -> None: ...

    def message(self, text: str) -> None: ...


class ShieldedObserver:
    """Passes on to another observer and outlives it: a watcher that fails is no reason to lose a training.

    The first failure is logged, and the watcher hears nothing more.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._failed = False

    def progress(self, record: Mapping[str, Any]) -> None:
        self._pass_on(lambda: self._observer.progress(record))

    def checkpoint(self, info: CheckpointInfo) -> None:
        self._pass_on(lambda: self._observer.checkpoint(info))

    def message(self, text: str) -> None:
        self._pass_on(lambda: self._observer.message(text))

    def _pass_on(self, tell: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            tell()
        except Exception:
            self._failed = True
            _logger.exception("the training's observer failed and is told nothing more; training goes on")

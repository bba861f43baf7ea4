"""Who watches a training: the trainer tells, and never waits for an answer. A terminal gets a bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.shown import on_terminal

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


_LINE_SECONDS = 10.0  # between two lines of training; estimates and checkpoints are always shown


@contextmanager
def console_observer(stream: TextIO) -> Iterator[Observer]:
    """Yield an observer that writes to `stream`: with rich's bar if it is a terminal and rich is installed."""
    if not stream.isatty():
        yield PlainObserver(stream)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # a GPU host's own Python
        yield PlainObserver(stream)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        yield BarObserver(bar)


class PlainObserver:
    """Writes lines, not too many."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = float("-inf")

    def progress(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if record["kind"] == "train" and now - self._last < _LINE_SECONDS and record["step"] < record["max_steps"]:
            return
        self._last = now
        self.message(f"step {record['step']}/{record['max_steps']}  {describe(record)}")

    def checkpoint(self, info: CheckpointInfo) -> None:
        self.message(f"saved {info.path.name} ({info.size / 1e6:.1f} MB)")

    def message(self, text: str) -> None:
        # A closed terminal or a dead reader of the pipe is no reason to stop training: metrics.jsonl has it all.
        with suppress(OSError):
            print(on_terminal(text), file=self._stream, flush=True)


class BarObserver:
    """Moves a rich progress bar and prints above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._val = ""

    def progress(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "validation":
            self._val = f"  {describe(record)}"
            return
        text = describe(record) + self._val
        self._bar.update(self._task, completed=record["step"], total=record["max_steps"], description=text)

    def checkpoint(self, info: CheckpointInfo) -> None:
        self.message(f"saved {info.path.name} ({info.size / 1e6:.1f} MB)")

    def message(self, text: str) -> None:
        self._bar.console.print(on_terminal(text), markup=False, highlight=False)


def describe(record: Mapping[str, Any]) -> str:
    """Return a line of metrics in words."""
    if record["kind"] == "validation":
        return f"val_loss {record['val_loss']:.4f}"
    words = [
        f"train_loss {record['train_loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"norm {record['gradient_norm']:.2f}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if record["mfu"] is not None:
        words.append(f"mfu {record['mfu']:.1%} of {record['peak_flops'] / 1e12:,.0f} TFLOP/s")
    if record["memory_gb"] is not None:
        words.append(f"{record['memory_gb']:.1f} GB")
    return "  ".join([*words, f"{_duration(record['eta_seconds'])} left"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

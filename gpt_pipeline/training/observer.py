"""Who watches a training: the trainer tells, and never waits for an answer. A terminal gets a row of progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Protocol, TextIO

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.row import Drawn, Row, drawn
from gpt_pipeline.shown import duration, on_terminal
from gpt_pipeline.training.config import ESTIMATES, PASSES

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Hears what happens while a training runs, in the trainer's own process."""

    def progress(self, record: Mapping[str, Any]) -> None:
        """Hear a line of `metrics.jsonl`, with `max_steps` besides."""

    def validating(self, done: int, total: int) -> None:
        """Hear that `done` of `total` batches of an estimate of the validation loss are done."""

    def checkpoint(self, info: CheckpointInfo) -> None:
        """Hear of a finished checkpoint."""

    def message(self, text: str) -> None:
        """Hear a sentence for the user."""


class SilentObserver:
    """Hears nothing: for the processes besides the first."""

    def progress(self, record: Mapping[str, Any]) -> None: ...

    def validating(self, done: int, total: int) -> None: ...

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

    def validating(self, done: int, total: int) -> None:
        self._pass_on(lambda: self._observer.validating(done, total))

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
    """Yield an observer that writes to `stream`: with a row of progress if it is a terminal and rich is installed."""
    if not stream.isatty() or find_spec("rich") is None:  # a GPU host's own Python
        yield PlainObserver(stream)
        return
    with drawn(stream, Row(title="preparing the training")) as row:
        yield RowObserver(row)


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

    def validating(self, done: int, total: int) -> None: ...

    def checkpoint(self, info: CheckpointInfo) -> None:
        self.message(f"saved {info.path.name} ({info.size / 1e6:.1f} MB)")

    def message(self, text: str) -> None:
        # A closed terminal or a dead reader of the pipe is no reason to stop training: metrics.jsonl has it all.
        with suppress(OSError):
            print(on_terminal(text), file=self._stream, flush=True)


class RowObserver:
    """Keeps a row of progress up to date and prints above it."""

    def __init__(self, row: Drawn) -> None:
        self._row = row
        self._steps = Row(title="training")
        self._val: tuple[str, ...] = ()

    def progress(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "validation":
            self._val = (f"val {record['val_loss']:.3f}",)
        self._steps = training_row(record, before=self._steps, val=self._val)
        self._row.show(self._steps)

    def validating(self, done: int, total: int) -> None:
        where = (f"step {self._steps.amount}",) if self._steps.amount else ()
        details = (*where, *self._steps.details)
        amount = f"{done:,}/{total:,}"
        self._row.show(Row(title="validating", done=done, total=total, amount=amount, details=details))

    def checkpoint(self, info: CheckpointInfo) -> None:
        self.message(f"saved {info.path.name} ({info.size / 1e6:.1f} MB)")

    def message(self, text: str) -> None:
        self._row.print(text)


def training_row(record: Mapping[str, Any], *, before: Row, val: tuple[str, ...]) -> Row:
    """Return the row after a line of metrics; what an estimate of the validation loss does not say is as `before`."""
    step, steps = record["step"], record["max_steps"]
    amount = f"{step:,}/{steps:,}"
    details = before.details
    if record["kind"] == "train":
        left = (f"{duration(record['eta_seconds'])} left",) if step < steps else ()
        said = f"loss {record['train_loss']:.3f}" if record.get("reward") is None else _reward(record)
        details = (*left, said, *val, *_speed(record))
    return Row(title="training", done=step, total=steps, amount=amount, details=details)


def describe(record: Mapping[str, Any]) -> str:
    """Return a line of metrics in words."""
    if record["kind"] == "validation":
        names = (*ESTIMATES, PASSES, "pass_at_k")
        return "  ".join(f"{name} {record[name]:.4f}" for name in names if record.get(name) is not None)
    said = f"train_loss {record['train_loss']:.4f}" if record.get("reward") is None else _reward(record)
    words = [said, *_speed(record)]
    return "  ".join([*words, f"{duration(record['eta_seconds'])} left"])


def _reward(record: Mapping[str, Any]) -> str:
    """Return what sampled answers are worth: the loss that moves them says little."""
    return f"reward {record['reward']:.3f}"


def _speed(record: Mapping[str, Any]) -> list[str]:
    """Return how the updates go, in words, the most important first."""
    words = [f"{record['tokens_per_second']:,.0f} tokens/s"]
    if record["mfu"] is not None:
        words.append(f"mfu {record['mfu']:.1%} of {record['peak_flops'] / 1e12:,.0f} TFLOP/s")
    words.append(f"lr {record['learning_rate']:.2e}")
    if record["gradient_norm"] is not None:
        words.append(f"norm {record['gradient_norm']:.2f}")
    if record.get("skipped_updates"):
        words.append(f"{record['skipped_updates']} skipped at loss scale {record['loss_scale']:,.0f}")
    if record["memory_gb"] is not None:
        words.append(f"{record['memory_gb']:.1f} GB")
    return words

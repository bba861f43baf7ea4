"""How a training ends early: on a signal, with a checkpoint, or by a watchdog when it hangs."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Protocol

from gpt_pipeline.shown import Say

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopFlag:
    """Whether, and by which signal, the training was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first signal that arrived."""

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """As shells report a process that a signal ended: 130 for Ctrl+C, 143 for SIGTERM; 130 for CTRL_BREAK too."""
        unix = (signal.SIGTERM, getattr(signal, "SIGHUP", None))
        return 128 + (self.signal if self.signal in unix and self.signal is not None else signal.SIGINT)

    def request(self, number: int) -> None:
        """Ask for a stop at the next step boundary."""
        if self.signal is None:
            self.signal = number


@contextmanager
def stop_on_signals(stop: StopFlag) -> Iterator[None]:
    """Turn SIGINT, SIGTERM, SIGHUP and (on Windows) CTRL_BREAK into requests to `stop` for the length of the block.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Python sets handlers in the main thread only;
    elsewhere this does nothing and the caller requests the stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _frame: FrameType | None) -> None:
        stop.request(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    present = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in present if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_when_parent_dies(number: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Have the kernel send this process the signal when its parent ends, by default so that it saves and leaves.

    "Parent" is the thread that started this process: it must live as long as the parent process should be heeded.
    `parent` is that process where this one was told; without it, a parent that has ended already goes unnoticed.
    Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = parent or os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), number)


PATIENCE_SECONDS = 600.0
"""The least time without progress that counts as hung."""

COMPILING_SECONDS = 3000.0
"""What compiling a graph may take beyond the patience: a large model on few processors is no hang."""

OTHERS_SECONDS = 1800.0
"""What waiting for another process may take beyond the patience, where one may have more to do. One that hangs ends
itself."""

SLOW_DISK = 1e6
"""Bytes a second: what a checkpoint may take to write beyond the patience."""

EXIT_HUNG = 75
"""Exit code of a training that hung: EX_TEMPFAIL of sysexits.h, trying again may help."""

HANGS = "Training hangs:"
"""How it says so on its error output, after `error: `."""

_STEPS = 20  # without progress for this many median steps, when that is longer
_REMEMBERED = 101  # newest steps that the median is taken of
_LOOKS = 20  # at the clock within the patience
_STDERR = 2
_SAY_SECONDS = 5.0


class GoesOn(Protocol):
    """Called where work goes on between two steps."""

    def __call__(self, seconds: float = 0.0) -> None:
        """Take note. What comes now may take `seconds` beyond the patience before the next call."""
        ...


def unheeded(seconds: float = 0.0) -> None:
    """Nobody waits for a sign that work goes on."""


class Watchdog:
    """Ends the process when neither `beat` nor `goes_on` was called for too long; to be used as a context.

    Only time in which this process was running counts: one that was suspended, or its machine with it, is not hung.
    """

    def __init__(
        self,
        *,
        patience: float = PATIENCE_SECONDS,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """`say` tells the person who watches; it may fail or block without harm."""
        self.step = 0
        """Updates done at the last beat."""

        self._patience = patience
        self._say = say
        self._clock = clock
        self._end = end
        self._signs = 0  # written by the training's thread alone, as what it grants
        self._granted = 0.0
        self._idle = 0.0  # written by the watching thread alone
        self._beaten = False
        self._step_began = clock()
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def beat(self, step: int) -> None:
        """Note progress: `step` updates are done. The watch begins with the first call."""
        if not self._beaten or step != self.step:
            now = self._clock()
            if self._beaten:
                self._durations.append(now - self._step_began)
            self.step, self._step_began, self._beaten = step, now, True
        self.goes_on()

    def goes_on(self, seconds: float = 0.0) -> None:
        """Note that work goes on between two steps. What comes now may take `seconds` beyond the patience."""
        self._signs += 1  # first: the watching thread may look in between
        self._granted = seconds

    @property
    def allowed_seconds(self) -> float:
        """How long training may be without progress."""
        durations = list(self._durations)
        return max(self._patience, _STEPS * statistics.median(durations)) if durations else self._patience

    def _watch(self) -> None:
        pause = self._patience / _LOOKS
        last, seen = self._clock(), self._signs
        while not self._closed.wait(pause):
            now = self._clock()
            if self._signs != seen:
                self._idle, seen = 0.0, self._signs
            elif self._beaten:
                self._idle += min(now - last, 2 * pause)  # more has passed only while this process was suspended
            last = now
            if self._idle > self.allowed_seconds + self._granted:
                self._give_up()
                return

    def _give_up(self) -> None:
        text = (
            f"{HANGS} no progress for {self._idle:.0f} s after step {self.step}. What each thread was doing is "
            f"written to the trainer's error output. The process ends with exit code {EXIT_HUNG}; the last checkpoint "
            "stands, and the training started again continues from it."
        )
        with suppress(OSError):
            os.write(_STDERR, f"error: {text}\n".encode())
            faulthandler.dump_traceback(_STDERR, all_threads=True)
        # In a thread of its own: whatever hangs may hold what telling someone needs.
        telling = threading.Thread(target=self._say, args=[text], daemon=True)
        telling.start()
        telling.join(_SAY_SECONDS)
        self._end(EXIT_HUNG)

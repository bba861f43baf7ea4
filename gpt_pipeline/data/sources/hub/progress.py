"""Progress of downloads: a row on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from gpt_pipeline.row import Row, drawn, has_terminal_alone
from gpt_pipeline.shown import Say, duration, on_terminal

Observer = Callable[[str, int], None]
"""Receives a file's name and how many of its bytes are here, once before the first piece and after each."""

_LINE_SECONDS = 5.0
_WINDOW_SECONDS = 20.0  # the rate is measured over these
_SAMPLE_SECONDS = 0.5
_MB, _GB = 10**6, 10**9


class Meter:
    """Bytes, rate and time left of several files at once; several threads may report to it."""

    def __init__(self, sizes: Mapping[str, int], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = sum(sizes.values())
        self.here = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}
        self._arrived = 0  # without what was here before, which would inflate the rate
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def moved(self, name: str, here: int) -> None:
        """Note that `here` bytes of the file are here."""
        with self._lock:
            before = self._here.get(name)
            self._arrived += 0 if before is None else max(here - before, 0)  # fewer than before: it starts over
            self.here += here - (before or 0)
            self._here[name] = here
            self._sample()

    @property
    def rate(self) -> float:
        """Bytes per second, recently."""
        (then, before), now = self._samples[0], self._clock()
        return max(self._arrived - before, 0) / (now - then) if now > then else 0.0

    def describe(self) -> str:
        """Return text such as `120 of 470 MB, 38 MB/s, 9 s left`."""
        row = self.row("")
        return ", ".join([row.amount, *reversed(row.details)])

    def row(self, title: str) -> Row:
        """Return the same as a row of progress."""
        with self._lock:
            rate, here = self.rate, self.here
        left = [f"{duration((self.total - here) / rate)} left"] if rate > 0 and here < self.total else []
        speed = f"{rate / _MB:.{0 if rate >= 10 * _MB else 1}f} MB/s"
        amount = amounts(here, self.total)
        return Row(title=title, done=here, total=self.total, amount=amount, details=(*left, speed))

    def _sample(self) -> None:
        now = self._clock()
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self._arrived))
        while len(self._samples) > 1 and now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()


@contextmanager
def shown(sizes: Mapping[str, int], *, say: Say, stream: TextIO | None = None) -> Iterator[Observer]:
    """Yield an observer of these files' download: a row if `stream` (stderr) is this process's terminal, else lines."""
    title = on_terminal(next(iter(sizes))) if len(sizes) == 1 else f"{len(sizes)} files"
    stream = stream or sys.stderr
    if not has_terminal_alone(stream):
        yield lines(title, Meter(sizes), say=say)
        return
    with _row(title, Meter(sizes), stream) as observer:
        yield observer


def lines(title: str, meter: Meter, *, say: Say, clock: Callable[[], float] = time.monotonic) -> Observer:
    """Return an observer that says a line every five seconds, and nothing about what takes less."""
    last, lock = clock(), threading.Lock()

    def observe(name: str, here: int) -> None:
        nonlocal last
        meter.moved(name, here)
        with lock:
            if clock() - last < _LINE_SECONDS:
                return
            last = clock()
        say(f"{title}: {meter.describe()}")

    return observe


@contextmanager
def _row(title: str, meter: Meter, stream: TextIO) -> Iterator[Observer]:
    title = f"downloading {title}"
    with drawn(stream, meter.row(title)) as row:

        def observe(name: str, here: int) -> None:
            meter.moved(name, here)
            row.show(meter.row(title))

        yield observe


def amounts(here: int, total: int) -> str:
    """Return text such as `120 of 470 MB`."""
    if total >= 10 * _GB:
        return f"{here / _GB:.1f} of {total / _GB:.1f} GB"
    return f"{here / _MB:.0f} of {total / _MB:.0f} MB" if total >= 10 * _MB else f"{here:,} of {total:,} bytes"

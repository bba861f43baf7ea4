"""Work on several files at once in threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gpt_pipeline.errors import DataError, StoppedError, UserError

_MANY_FAILURES = 3  # after these the rest would most likely fail as well

T = TypeVar("T")


class Stop:
    """Tells threads that their work is no longer wanted."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raise `StoppedError` if the work is no longer wanted."""
        if self._event.is_set():
            raise StoppedError("stopped; what is here is kept")


def in_order(work: Callable[[str], T], names: Iterable[str], *, threads: int, stop: Stop) -> Iterator[tuple[str, T]]:
    """Yield each name with what `work` returns for it, in order.

    Starts with two at once and adds one with each result, up to `threads`: a caller that stops early has asked for
    little more than it needed. `stop` is set at the end, also an early one.
    """
    waiting: deque[tuple[str, Future[T]]] = deque()
    left = iter(names)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="hub")
    try:
        ahead = 2
        while True:
            while len(waiting) < min(ahead, threads) and (name := next(left, None)) is not None:
                waiting.append((name, pool.submit(work, name)))
            if not waiting:
                return
            name, future = waiting.popleft()
            yield name, future.result()
            ahead += 1
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def all_of(work: Callable[[str], object], names: Sequence[str], *, threads: int, stop: Stop) -> None:
    """Do `work` for each name; one failure lets the others finish.

    After several failures nothing more is started. `stop` is set when this thread is interrupted.

    Raises:
        UserError: the only failure.
        DataError: names the files that failed, and the first failure.
    """
    failed: dict[str, UserError] = {}
    done: list[str] = []

    def one(name: str) -> None:
        if len(failed) >= _MANY_FAILURES:
            return
        try:
            work(name)
            done.append(name)
        except UserError as error:
            failed[name] = error

    with ThreadPoolExecutor(threads, thread_name_prefix="hub") as pool:
        try:
            for future in [pool.submit(one, name) for name in names]:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if not failed:
        return
    name, error = next(iter(failed.items()))
    if len(names) == 1:
        raise error
    said = str(error) if name in str(error) else f"{name}: {error}"
    others = f" (also {', '.join(list(failed)[1:])})" if len(failed) > 1 else ""
    raise DataError(f"{len(done)} of {len(names)} files are here; failed: {said}{others}") from error

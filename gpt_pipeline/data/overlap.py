"""Two halves of a job at once: what is read next, while what was read is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_END = object()


def ahead(items: Iterable[_Item], *, depth: int = 2) -> Iterator[_Item]:
    """Yield `items` in order, computed by a second thread that is at most `depth` of them ahead.

    It pays where both halves leave Python's lock, as Arrow's reading and writing do. What the second thread raises is
    raised here, in its place.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        waiting = [thread.submit(next, iterator, _END) for _ in range(depth)]
        try:
            while (item := waiting.pop(0).result()) is not _END:
                waiting.append(thread.submit(next, iterator, _END))
                yield item  # type: ignore[misc]  # not the end
        finally:
            thread.shutdown(cancel_futures=True)

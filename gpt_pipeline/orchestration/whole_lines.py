"""The trainer's messages, read line by line as it writes them, and never half of one.

Dagster's own reader takes what stands at the end of the file for a line, also where its writer has only begun it, as
can be seen at the edge of a page of memory; its thread then dies, and no later message arrives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter, PipesParams

from gpt_pipeline.storage.lock import beside

_POLL_SECONDS = 0.05


class WholeLineReader(dg.PipesMessageReader):
    """Reads the messages of one session from a file of its own."""

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Pass messages to `handler` during the block; yields what tells the trainer where to write them."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "messages"
            path.touch()
            with beside(lambda ended: _read(path, handler, ended), name="messages of the trainer"):
                yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(path)}

    def no_messages_debug_text(self) -> str:
        """Say where messages were looked for."""
        return "Attempted to read messages from a file for this session."


def _read(path: Path, handler: dg.PipesMessageHandler, ended: Event) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            for line in whole_lines(file.read, ended):
                handler.handle_message(json.loads(line))
    except Exception:
        handler.report_pipes_framework_exception("the reader of the trainer's messages", sys.exc_info())
        raise


def whole_lines(read: Callable[[], str], ended: Event) -> Iterator[str]:
    """Yield each line that `read` gives, piece by piece, until `ended` is set and there is no more."""
    begun = ""
    while True:
        is_last = ended.is_set()  # before reading, so that nothing that was written before the end is missed
        *lines, begun = (begun + read()).split("\n")
        yield from lines
        if is_last:
            return
        ended.wait(_POLL_SECONDS)

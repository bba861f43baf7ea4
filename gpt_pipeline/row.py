"""A row of progress on a terminal: what goes on, a bar, how far it is, what is left. It never exceeds the width.

`Row` is text and knows no terminal; drawing it takes rich, imported where it is done.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from gpt_pipeline.shown import on_terminal, without_password

if TYPE_CHECKING:
    from rich.text import Text

Watch = Callable[[int, int], None]
"""Called with the number done and the total."""

_GAP = "  "
_BAR = 8  # columns at least; more on a wide terminal
_BARS = ("━", "─"), ("#", "-")  # done and to do; the second pair for a terminal without these characters
_ERASE = "\r\x1b[K"


def unwatched(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a row shows."""

    title: str
    """What goes on."""

    done: int = 0
    total: int | None = None
    """Of which `done` is a part; None: unknown, so there is no bar."""

    amount: str = ""
    """`done` and `total` for a person: shown whole at any width."""

    details: tuple[str, ...] = ()
    """The most important first; those that do not fit are left out."""

    def fitted(self, width: int, *, encoding: str = "utf-8") -> str:
        """Return the row in at most `width` columns."""
        bar = self._bar(max(_BAR, width // 8), encoding) if self.total else ""
        if len(_joined(self.title, bar, self.amount, *self.details[:1])) > width:
            bar = ""  # the time left says more
        shown = [_cut(self.title, width - len(_GAP) - len(self.amount)), bar, self.amount]
        for detail in self.details:
            if len(_joined(*shown, detail)) > width:
                break
            shown.append(detail)
        return _joined(*shown)

    def _bar(self, length: int, encoding: str) -> str:
        assert self.total
        done, to_do = _BARS[0 if encoding.lower().startswith("utf") else 1]
        filled = length * min(self.done, self.total) // self.total
        return done * filled + to_do * (length - filled)


def _joined(*parts: str) -> str:
    return _GAP.join(part for part in parts if part)


def _cut(title: str, length: int) -> str:
    return title if len(title) <= length else title[: max(0, length - 3)] + "..."


class Drawn:
    """A row on a terminal, drawn again ten times a second; text is printed above it."""

    def __init__(self, stream: TextIO, row: Row) -> None:
        from rich.console import Console
        from rich.live import Live

        self._encoding = stream.encoding or "ascii"
        self._console = Console(file=stream, highlight=False)
        if not self._console.width:  # some terminals set COLUMNS=0, at which rich prints nothing
            self._console.width = 80
        self._row = row
        self.live = Live(get_renderable=self._text, console=self._console, refresh_per_second=10, transient=True)

    def show(self, row: Row) -> None:
        """Draw `row` from now on."""
        self._row = row

    def print(self, text: str) -> None:
        """Print a line above the row."""
        self._console.print(on_terminal(text), markup=False)

    def _text(self) -> Text:
        from rich.text import Text

        row = on_terminal(self._row.fitted(self._console.width - 1, encoding=self._encoding))
        return Text(row, no_wrap=True, overflow="crop")


@contextmanager
def drawn(stream: TextIO, row: Row) -> Iterator[Drawn]:
    """Yield `row`, drawn on the terminal `stream` for the block.

    Raises:
        ImportError: rich is not installed, as on a GPU host with its own Python.
    """
    drawing = Drawn(stream, row)
    with drawing.live:
        yield drawing


def has_terminal_alone(stream: TextIO) -> bool:
    """Whether `stream` is a terminal and no other process of this command draws a row there.

    Workers of a run and the process that evaluates beside a training do not have it, nor has a command in the
    background.
    """
    if not stream.isatty() or multiprocessing.parent_process() is not None:
        return False
    if os.name == "nt":
        return True
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # another session's terminal, or no real one
        return False


def speak_utf8() -> None:
    """Write UTF-8 to files and pipes from now on, in this process and those it starts, unless the user chose otherwise.

    Windows writes them in the encoding of its language (Python does until 3.15), which lacks letters that documents
    have. A terminal keeps its encoding; what that lacks is printed as `?`. `PYTHONIOENCODING`, or `PYTHONUTF8=0` for
    the system's own encoding, is the user's choice.
    """
    chosen = "PYTHONIOENCODING" in os.environ or os.environ.get("PYTHONUTF8") == "0"
    os.environ.setdefault("PYTHONUTF8", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=stream.encoding if chosen or stream.isatty() else "utf-8", errors="replace")


def show_each_warning_once() -> None:
    """Have a warning of this process printed as text that no terminal obeys, and only once however often it comes."""
    if logging.lastResort is not None:  # what prints warnings where nothing else is configured
        logging.lastResort.setFormatter(_Harmless())
        logging.lastResort.filters[:] = [_Once()]  # of this command, not of one before it in the same process


class _Harmless(logging.Formatter):
    """Warnings quote names of files, which come from elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        return instead_of_row(sys.stderr, on_terminal(without_password(super().format(record))))


class _Once(logging.Filter):
    """Of the same file, a command asks several times."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._seen
        self._seen.add(text)
        return new


def instead_of_row(stream: TextIO, text: str) -> str:
    """Return a line for `stream` that replaces the row drawn there, maybe by another process, which draws it below."""
    return _ERASE + text if stream.isatty() and os.environ.get("TERM") != "dumb" else text

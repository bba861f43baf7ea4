"""Stop requests: handlers set a flag and nothing else, so that a save is never torn by a second signal."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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


def stop_when_parent_dies() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, so that it saves and leaves; Linux only.

    "Parent" is the thread that started this process: it must live as long as the parent process should be heeded.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died while we asked
        os.kill(os.getpid(), signal.SIGTERM)

"""A child process with a group of its own: asked to stop, and killed, together with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

_GONE = (ProcessLookupError, PermissionError)  # the second: macOS, of a group whose processes have all ended


def own_group() -> dict[str, Any]:
    """Return the options of Popen for it: Ctrl+C in a terminal then reaches the child once, through us."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def ask_to_stop(child: subprocess.Popen[bytes], number: int) -> None:
    """Send the signal to the group; on Windows, which knows no other for groups, CTRL_BREAK."""
    if sys.platform == "win32":
        if child.poll() is None:
            child.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        _signal_group(child, number)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the group; on Windows the child alone."""
    if sys.platform == "win32":
        child.kill()
    else:
        _signal_group(child, signal.SIGKILL)


def is_alive(child: subprocess.Popen[bytes]) -> bool:
    """Whether anything of the group is still there; on Windows, whether the child is."""
    running = child.poll() is None  # and takes note of one that has ended, which would else stay in its group
    if sys.platform == "win32":
        return running
    try:
        os.killpg(child.pid, 0)
    except _GONE:
        return False
    return True


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(*_GONE):  # it left by itself between our look and our signal
        os.killpg(child.pid, number)

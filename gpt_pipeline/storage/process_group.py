"""A child process in its own group, so that it is stopped and killed together with everything it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

_GONE = (ProcessLookupError, PermissionError)  # the second on macOS, for a group whose processes have all ended


def own_group() -> dict[str, Any]:
    """Return options of Popen for a new group: Ctrl+C in a terminal then reaches the child once, through us.

    It stays in our session: Linux may share the processors among sessions first, and a priority counts within one only.
    """
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


def own_session() -> dict[str, Any]:
    """Return the same for a child that the end of our session must not reach."""
    return own_group() if sys.platform == "win32" else {"start_new_session": True}


def ask_to_stop(child: subprocess.Popen[bytes], number: int) -> None:
    """Send the signal to the group; on Windows CTRL_BREAK, the only one for groups."""
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
    """Whether any process of the group still exists; on Windows, whether the child does."""
    running = child.poll() is None  # also reaps a child that has ended, which would otherwise stay in its group
    if sys.platform == "win32":
        return running
    try:
        os.killpg(child.pid, 0)
    except _GONE:
        return False
    return True


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(*_GONE):  # it ended by itself in between
        os.killpg(child.pid, number)

"""Run a program, such as torchrun, and end only when everything that it started has ended.

    python -m gpt_pipeline.training.supervise PARENT PROGRAM [ARGUMENT ...]

PARENT is the number of the process that starts this one.

torchrun alone goes on when the process that started it is killed. It leaves trainers behind when it is killed itself;
and also, or itself stays for ever, when SIGTERM comes while it ends them already because another node has failed (torch
2.13: the signal cuts the waiting of `SimpleElasticAgent.run` short). This process asks the program once to stop, also
when its own parent ends, and kills what takes too long. On Linux it does the same with what the program leaves behind,
which is all that has inherited its standard input, a pipe in which nothing comes. What is to outlive a training, as the
sender of its mirror does, has another.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt_pipeline.launchers.protocol import SHUTDOWN_SECONDS
from gpt_pipeline.storage.process_group import ask_to_stop, kill, own_group
from gpt_pipeline.training.stopping import StopFlag, stop_on_signals, stop_when_parent_dies

GRACE_SECONDS = SHUTDOWN_SECONDS + 5.0
"""From the request to stop, else from the program's end, until what is left is killed; torchrun itself is faster."""

_POLL_SECONDS = 0.1
_KILLED_SECONDS = 10.0  # a process that waits for its device within the kernel may not even heed SIGKILL
_KILLED = -9  # as Popen has it


def supervise(command: Sequence[str], *, grace: float = GRACE_SECONDS) -> int:
    """Run the command as described above; return its exit code as shells tell it (128 and a signal's number)."""
    stop = StopFlag()
    theirs, ours = os.pipe()
    pipe = f"pipe:[{os.fstat(ours).st_ino}]"
    with stop_on_signals(stop):
        program = subprocess.Popen(command, stdin=theirs, **_apart())
        os.close(theirs)
        while program.poll() is None and not stop.requested:
            time.sleep(_POLL_SECONDS)
        until = time.monotonic() + grace
        if stop.requested:
            ask_to_stop(program, signal.SIGTERM)
        code = _end_of(program, until)
        _end_the_rest(pipe, until)
    return code if code >= 0 else 128 - code


def _apart() -> dict[str, Any]:
    """Return options of Popen for a group of the program's own: what our group is sent, it gets from us, and once.

    If this process is killed, so is the program (Linux).
    """
    if sys.platform == "win32":  # which has no fork to do something after
        return own_group()
    supervisor = os.getpid()
    return {**own_group(), "preexec_fn": lambda: stop_when_parent_dies(signal.SIGKILL, parent=supervisor)}


def _end_of(program: subprocess.Popen[bytes], until: float) -> int:
    """Return its exit code; from `until`, on the clock of `time.monotonic`, its group is killed."""
    with suppress(subprocess.TimeoutExpired):
        return program.wait(max(0.0, until - time.monotonic()))
    kill(program)
    with suppress(subprocess.TimeoutExpired):
        return program.wait(_KILLED_SECONDS)
    return _KILLED


def _end_the_rest(pipe: str, until: float) -> None:
    """Ask those that hold the pipe to stop, and wait; from `until`, on the same clock, kill them."""
    number: int = signal.SIGTERM  # nobody may have asked them yet
    told: set[int] = set()
    while left := _holders(pipe):
        late = time.monotonic() - until
        if late > _KILLED_SECONDS:
            return
        if late > 0 and number == signal.SIGTERM:
            number, told = signal.SIGKILL, set()
        for pid in left - told:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        told |= left
        time.sleep(_POLL_SECONDS)


def _holders(pipe: str) -> set[int]:
    """Return the processes whose standard input is the pipe, by Linux's `/proc`; none elsewhere."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/0"):
        with suppress(OSError):  # it has just ended, or is somebody else's
            if str(path.readlink()) == pipe:
                found.add(int(path.parts[2]))
    return found


def main() -> int:
    """Supervise the program on the command line; on Linux, be asked to stop when the parent ends."""
    parser = argparse.ArgumentParser(prog="python -m gpt_pipeline.training.supervise")
    parser.add_argument("parent", type=int, help="the process that starts this one")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="what to run, with its arguments")
    options = parser.parse_args()
    if not options.program:
        parser.error("need a program to run")
    stop_when_parent_dies(parent=options.parent)
    return supervise(options.program)


if __name__ == "__main__":
    sys.exit(main())

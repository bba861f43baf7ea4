"""Run a module as `python -m` does, and end it, with all that it starts, when the process that started it is gone.

    python -m gpt_pipeline.orchestration.with_parent MODULE [ARGUMENT ...]

The parent keeps the other end of standard input, which closes however the parent ends. Nothing else is sent through it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

STOP_SECONDS = 150.0
"""From the request to stop until a server is killed: a training below Dagster's has 120 to save its checkpoint."""


def main() -> None:
    """Run the module that the command line names."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """Wait for the parent's end; ask this process, and its group, which it leads, to stop, and kill what stays."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    if sys.platform == "win32":
        os.kill(os.getpid(), signal.CTRL_BREAK_EVENT)
    else:
        os.killpg(os.getpgrp(), signal.SIGINT)
        time.sleep(STOP_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Waiting with an end: a test that hangs says which of its processes still run, and what each does, and ends them.

Each Python process that a test starts writes the stacks of its threads when `waiting/sitecustomize.py` is told to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

WAITING = Path(__file__).parent / "waiting"
PATIENCE_SECONDS = 240.0
"""For one command: below the default timeout of a test, so that the command is blamed."""

_VARIABLE = "STACKS"  # of the environment: the folder in which a process has a file for its stacks, by its id
_CLOCK_SECONDS = (
    2.0  # that the time at which a process began may be wrong by: Linux knows that of its boot in whole ones
)


def ask_for_stacks(folder: Path) -> None:
    """Let the processes that are started from now on write their stacks into files of this folder when asked."""
    os.environ[_VARIABLE] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(WAITING), os.environ.get("PYTHONPATH", "")]))


def output_of(process: subprocess.Popen[str], *, seconds: float = PATIENCE_SECONDS) -> str:
    """Wait for the end of a process and return what it printed.

    If it takes longer, the test fails with that and with what runs, and the process and its children are killed.
    """
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running = report()
        kill([*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)])
        printed = _rest(process)
        pytest.fail(f"no end after {seconds:.0f} s of {process.args}, which printed:\n{printed}\n{running}")
    return output


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """After so many seconds of the block, print what runs and kill what the block has started, so that it can go on."""
    begun = time.time() - _CLOCK_SECONDS

    def end() -> None:
        print(f"\nno end after {seconds:.0f} s. {report()}", flush=True)
        kill([process for process in _started() if _created(process) >= begun])

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def report() -> str:
    """Describe each process that the tests have started and that still runs, with the stacks of its threads."""
    found = [_describe(process) for process in _started()]
    return "\n".join([f"Processes of the tests that run: {len(found)}", *found])


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _started() -> list[psutil.Process]:
    """Return the children of this process and theirs; and those whose parent is gone, if they can show their stacks."""
    children = psutil.Process().children(recursive=True)
    orphans = [process for process in psutil.process_iter() if process not in children and _shows_stacks(process)]
    return children + [process for process in orphans if process.pid != os.getpid()]


def _shows_stacks(process: psutil.Process) -> bool:
    """Whether the process has a file for its stacks, and is the one that made it."""
    folder = os.environ.get(_VARIABLE)
    if folder is None or not (Path(folder) / str(process.pid)).is_file():
        return False
    try:
        return process.environ().get(_VARIABLE) == folder
    except psutil.Error:
        return False


def _created(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.Error:
        return 0.0


def _describe(process: psutil.Process) -> str:
    try:
        with process.oneshot():
            used, age = sum(process.cpu_times()[:2]), time.time() - process.create_time()
            words = f"{process.pid} child of {process.ppid()}, {process.status()}, {age:.0f} s old, {used:.1f} s of CPU"
            return f"\n{words}: {' '.join(process.cmdline())}\n{_stacks(process)}"
    except psutil.Error as gone:
        return f"\n{gone}"


def _stacks(process: psutil.Process) -> str:
    """Have the process write its stacks, where it can, and return them."""
    if os.name == "nt" or not _shows_stacks(process):
        return ""
    file = Path(os.environ[_VARIABLE]) / str(process.pid)
    file.write_text("")
    process.send_signal(signal.SIGQUIT)
    return _settled(file)


def _settled(file: Path) -> str:
    """Return the text of a file that is being written, once it grows no more; what there is after two seconds."""
    text = ""
    for _ in range(20):
        time.sleep(0.1)
        before, text = text, file.read_text()
        if text and text == before:
            break
    return text


def _rest(process: subprocess.Popen[str]) -> str:
    """Return what a killed process had printed, even if another one still holds its output."""
    try:
        return process.communicate(timeout=10)[0]
    except subprocess.TimeoutExpired as held:
        return f"{(held.output or b'').decode()}\n(something still holds this output)"

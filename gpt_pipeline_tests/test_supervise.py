"""A program and all that it starts, as one process: its end, its stop, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gpt_pipeline_tests.servers import descendants, wait

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows who holds a pipe")

TRAINER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked"), time.sleep(1), print("saved", flush=True), sys.exit()))
open("ready", "w")
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("ready", "w")
print("ready", os.getpid(), flush=True)
time.sleep(60)
"""


def starts(trainer: str, then: str) -> str:
    """Return a program that starts a trainer in a session of its own, as torchrun does; then it goes on."""
    start = f"child = subprocess.Popen([sys.executable, '-c', {trainer!r}], start_new_session=True)"
    ready = "while not Path('ready').exists(): time.sleep(0.05)"
    return f"import os, signal, subprocess, sys, time\nfrom pathlib import Path\n{start}\n{ready}\n{then}"


@contextmanager
def supervised(
    log: Path, program: str, *, grace: float = 30.0, ready: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """The program under supervision, once its trainer is ready; nothing of it is left afterwards."""
    supervise = f"supervise([sys.executable, '-c', {program!r}], grace={grace})"
    code = f"import sys; from gpt_pipeline.training.supervise import supervise; sys.exit({supervise})"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=output, stderr=output, process_group=0, cwd=log.parent
        )
    try:
        wait(lambda: not ready or "ready" in log.read_text(), seconds=30, what="a trainer")
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def runs(pid: int) -> bool:
    """Whether the process has not ended; nobody may have reaped one that has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("pass", 0)])
def test_program_that_ends_leaves_its_code_as_shells_tell_it(tmp_path: Path, end: str, code: int) -> None:
    with supervised(tmp_path / "log", f"import os, sys; {end}", ready=False) as process:
        assert process.wait(30) == code


def test_program_that_leaves_a_trainer_behind_has_ended_only_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with supervised(log, starts(TRAINER, "sys.exit(1)")) as process:  # as torchrun, whose waiting was cut short
        assert process.wait(30) == 1
        assert log.read_text().split() == ["ready", "asked", "saved"]


def test_stop_reaches_the_program_once_also_when_the_whole_group_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import signal, time\nsignal.signal(15, lambda *_: print('told', flush=True))\nprint('ready', flush=True)\n"
    )
    with supervised(
        log, f"{program}end = time.monotonic() + 2\nwhile time.monotonic() < end: time.sleep(0.1)"
    ) as process:
        for _ in range(3):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(30) == 0
        assert log.read_text().split() == ["ready", "told"]


def test_process_that_is_to_outlive_a_training_is_left_alone(tmp_path: Path) -> None:
    start = (
        f"child = subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True, stdin=subprocess.DEVNULL)"
    )
    with supervised(tmp_path / "log", f"import subprocess, sys\n{start}\nprint(child.pid, flush=True)") as process:
        assert process.wait(30) == 0
        sender = next(int(word) for word in (tmp_path / "log").read_text().split() if word.isdigit())
        assert runs(sender)
        os.kill(sender, signal.SIGKILL)


@pytest.mark.parametrize("then", ["time.sleep(60)", "signal.signal(15, signal.SIG_IGN); time.sleep(60)", "sys.exit(1)"])
def test_trainer_that_heeds_no_stop_is_killed_after_the_grace(tmp_path: Path, then: str) -> None:
    log = tmp_path / "log"
    trainer = f"import os; print(os.getpid(), flush=True)\n{starts(DEAF, 'child.wait()')}"  # has a process of its own
    with supervised(log, starts(trainer, then), grace=2.0) as process:
        wait(lambda: len(log.read_text().split()) == 3, seconds=30, what="the trainer and its process")
        process.terminate()
        process.wait(30)
        assert not [word for word in log.read_text().split() if word.isdigit() and runs(int(word))]


def test_supervisor_that_is_killed_takes_the_program_along(tmp_path: Path) -> None:
    with supervised(tmp_path / "log", DEAF) as process:
        [program] = descendants(process.pid)
        process.kill()
        process.wait()
        wait(lambda: not runs(program), seconds=30, what="the program's end")


@pytest.mark.parametrize("who", ["supervisor", "trainer"])
def test_one_whose_parent_has_ended_before_it_could_ask_ends_too(tmp_path: Path, who: str) -> None:
    started = tmp_path / "started"
    program = f"open({str(started)!r}, 'w')"
    supervisor = ["-m", "gpt_pipeline.training.supervise", "1", sys.executable, "-c", program]
    stop = "from gpt_pipeline.training.stopping import stop_when_parent_dies; stop_when_parent_dies(parent=1)"
    trainer = ["-c", f"{stop}; {program}"]
    command = [sys.executable, *(supervisor if who == "supervisor" else trainer)]
    ended = subprocess.run(command, timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM
    assert not started.exists()

"""The trainers of one node: how they are started, watched and stopped. No Ray is needed for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_pipeline.training import ray_driver
from gpt_pipeline.training.ray_node import NodeTrainers
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.servers import wait

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters run Linux")

SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"saved\\n"), sys.exit(143)))
os.write(1, b"ready\\n")  # a line at once: two processes write
time.sleep(60)
"""
STOPPABLE = f"import os; os.fork(); {SLEEPER}"
"""Two processes, as torchrun and a trainer are."""


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[NodeTrainers]:
    trainers = NodeTrainers(tmp_path / "job.log")
    yield trainers
    trainers.kill()


def start(trainers: NodeTrainers, code: str, *, lines: int = 0) -> None:
    """Start Python with the code, and wait until it has written that many lines."""
    trainers.start([sys.executable, "-c", code])
    wait(lambda: len(trainers.last_lines(100).splitlines()) >= lines, seconds=30, what="output")


def ended(trainers: NodeTrainers) -> int:
    wait(lambda: trainers.exit_code() is not None, seconds=30, what="the trainers' end")
    code = trainers.exit_code()
    assert code is not None
    return code


def test_driver_asked_to_stop_waits_for_no_node_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, asked = StopFlag(), ["n1", "n2"]

    def wait_for(answers: list[str], **_: object) -> tuple[list[str], list[str]]:
        stop.request(signal.SIGTERM)
        return answers[:1], answers[1:]

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(wait=wait_for, get=lambda answers: answers))
    assert ray_driver._answers(asked, stop) is None
    assert ray_driver._answers(asked[:1], stop) == ["n1"]


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("pass", 0)])
def test_trainers_that_end_leave_their_code_as_shells_tell_it(trainers: NodeTrainers, end: str, code: int) -> None:
    start(trainers, f"import os, sys; {end}")
    assert ended(trainers) == code


def test_trainers_asked_to_stop_save_before_they_leave(trainers: NodeTrainers) -> None:
    start(trainers, STOPPABLE, lines=2)
    assert trainers.exit_code() is None
    trainers.stop()
    assert ended(trainers) == 143
    wait(lambda: trainers.last_lines(100).count("saved") == 2, seconds=30, what="both processes saved")
    trainers.stop()  # nobody is left to ask


def test_trainers_that_do_not_leave_are_killed(trainers: NodeTrainers) -> None:
    start(
        trainers,
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
        lines=1,
    )
    trainers.stop()
    trainers.kill()
    assert ended(trainers) == 137


def test_output_goes_to_the_end_of_the_log_and_notes_behind_it(trainers: NodeTrainers, tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text("before\n")
    start(trainers, "import sys; print('out', flush=True); print('err', file=sys.stderr)")
    ended(trainers)
    trainers.note("node 1 failed")
    assert (tmp_path / "job.log").read_text() == "before\nout\nerr\n\nnode 1 failed\n"
    assert trainers.last_lines(1) == "node 1 failed"


def test_place_in_another_launch_is_not_passed_on(trainers: NodeTrainers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    start(trainers, "import os; print(sorted({'RANK', 'MASTER_ADDR', 'WORLD_SIZE'} & set(os.environ)))")
    ended(trainers)
    assert trainers.last_lines(1) == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent has ended")
def test_trainers_whose_node_process_is_killed_are_told_to_save(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    code = f"""
import sys, time
from pathlib import Path
from gpt_pipeline.training.ray_node import NodeTrainers
NodeTrainers(Path({str(log)!r})).start([sys.executable, "-c", {SLEEPER!r}])
time.sleep(60)
"""
    node = subprocess.Popen([sys.executable, "-c", code])
    wait(lambda: log.exists() and "ready" in log.read_text(), seconds=30, what="trainers")
    node.kill()
    node.wait()
    wait(lambda: log.read_text() == "ready\nsaved\n", seconds=30, what="the trainers' last words")

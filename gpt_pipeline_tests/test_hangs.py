from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import psutil
import pytest

from gpt_pipeline_tests.hangs import kill, output_of, watched

_HANGS = """
    import subprocess, sys, time
    def hang_in_the_parent(orphan):
        print(orphan.pid, flush=True)
        time.sleep(600)
    program = "import time\\ndef hang_in_the_child():\\n  print(flush=True); time.sleep(600)\\nhang_in_the_child()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    hang_in_the_parent(child)
"""


@pytest.fixture
def hanging() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A program that waits for ever, and its child in a session of its own, which does so too."""
    command = [sys.executable, "-c", textwrap.dedent(_HANGS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        yield parent, child
        kill([child, psutil.Process(parent.pid)] if parent.poll() is None else [child])


def test_output_of_a_command_that_hangs_fails_with_what_its_processes_do_and_ends_them(
    hanging: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    parent, child = hanging
    with pytest.raises(pytest.fail.Exception) as failed:
        output_of(parent, seconds=0.1)
    said = str(failed.value)
    assert f"\n{parent.pid} child of {os.getpid()}" in said
    assert f"\n{child.pid} child of {parent.pid}" in said
    if os.name != "nt":
        assert "in hang_in_the_parent" in said
        assert "in hang_in_the_child" in said
    assert parent.poll() is not None
    assert child.wait(timeout=10) != 0


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no stacks")
def test_output_of_a_command_that_hangs_shows_a_process_whose_parent_is_gone(
    hanging: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    parent, child = hanging
    parent.kill()
    parent.wait()
    program = "import time; print('so far', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        with pytest.raises(pytest.fail.Exception, match="so far") as failed:
            output_of(other, seconds=1)
        assert "in hang_in_the_child" in str(failed.value)
        assert child.is_running()  # it is not of the command


def test_watched_block_that_hangs_goes_on_after_its_processes_are_shown_and_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = psutil.Process().children()
    with (
        watched(0.5),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.PIPE) as child,
    ):
        child.wait(60)
    assert f"\n{child.pid} child of {os.getpid()}" in capsys.readouterr().out
    assert [each for each in psutil.Process().children() if each not in before] == []

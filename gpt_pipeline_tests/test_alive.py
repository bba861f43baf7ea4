"""Whether a process is alive, as other processes, containers and hosts see it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gpt_pipeline.storage.alive import show_life, silence
from gpt_pipeline.storage.lock import SILENT_SECONDS
from gpt_pipeline.storage.process import ProcessId, pid_namespace
from gpt_pipeline_tests.hangs import output_of

_SHOW = """
import dataclasses, json, signal, sys
from pathlib import Path
from gpt_pipeline.storage.alive import show_life
from gpt_pipeline.storage.process import ProcessId
with show_life(Path(sys.argv[1]), ProcessId.here()):
    print(json.dumps(dataclasses.asdict(ProcessId.here())), flush=True)
    signal.pause()
"""


def _can_unshare() -> bool:
    command = shutil.which("unshare")
    return (
        command is not None
        and subprocess.run([command, "-fp", "true"], check=False, capture_output=True).returncode == 0
    )


def test_silence_of_a_process_that_was_killed_begins_when_it_is(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _SHOW, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    process = ProcessId.from_text(json.loads(child.stdout.readline()))
    assert silence(tmp_path, process) == 0
    child.kill()
    output_of(child)
    seconds = silence(tmp_path, process)
    assert seconds is not None
    assert seconds < SILENT_SECONDS
    (sign,) = (tmp_path / ".alive").iterdir()
    os.utime(sign, (time.time() - SILENT_SECONDS - 1,) * 2)
    assert (silence(tmp_path, process) or 0) > SILENT_SECONDS


def test_show_life_leaves_nothing_behind(tmp_path: Path) -> None:
    with show_life(tmp_path, ProcessId.here()), show_life(tmp_path, ProcessId.here()):  # as two steps of a run do
        assert silence(tmp_path, ProcessId.here()) == 0
    assert list((tmp_path / ".alive").iterdir()) == []
    assert silence(tmp_path, ProcessId.here()) is None


_TWO_STEPS = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from gpt_pipeline.storage.alive import show_life, silence
from gpt_pipeline.storage.process import ProcessId
base, process = Path(sys.argv[1]), ProcessId.here()
first, second = ExitStack(), ExitStack()
first.enter_context(show_life(base, process, every=0.01))
second.enter_context(show_life(base, process, every=0.01))
(first if sys.argv[2] == "first" else second).close()
print(silence(base, process), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ended", ["first", "second"])
def test_silence_after_one_of_two_steps_has_ended_is_that_of_the_other(tmp_path: Path, ended: str) -> None:
    command = [sys.executable, "-c", _TWO_STEPS, str(tmp_path), ended]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process = ProcessId.of(child.pid)
    assert output_of(child) == "0.0\n"
    (sign,) = (tmp_path / ".alive").iterdir()
    os.utime(sign, (time.time() - SILENT_SECONDS - 1,) * 2)
    assert (silence(tmp_path, process) or 0) > SILENT_SECONDS
    with show_life(tmp_path, process):  # the run's process lives on, and tries the step again
        assert silence(tmp_path, process) == 0
    assert silence(tmp_path, process) is None


@pytest.mark.skipif(not _can_unshare(), reason="needs the right to make a PID namespace")
def test_process_in_another_pid_namespace_is_neither_dead_nor_seen(tmp_path: Path) -> None:
    command = ["unshare", "-fp", "--kill-child", sys.executable, "-c", _SHOW, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    process = ProcessId.from_text(json.loads(child.stdout.readline()))
    assert process.namespace != pid_namespace()
    assert (process.is_dead, process.is_seen_here, silence(tmp_path, process)) == (False, False, 0)
    child.send_signal(signal.SIGKILL)
    output_of(child)
    assert not process.is_dead


@pytest.mark.parametrize(
    ("later", "dead"), [(0.0, False), (-2.0, False), (60.0, True)], ids=["same", "clock corrected", "another process"]
)
def test_process_elsewhere_than_linux_is_known_by_when_it_started(
    later: float, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    process = ProcessId.here()
    assert abs(float(process.started) - psutil.Process().create_time()) < 1
    other = dataclasses.replace(process, started=str(float(process.started) + later))
    assert other.is_dead is dead


@pytest.mark.parametrize(
    ("changes", "dead", "seen"),
    [
        ({}, False, True),
        ({"started": "1"}, True, True),
        ({"pid": 2**22 + 1}, True, True),  # more than Linux ever gives
        ({"pid": 2**22 + 1, "namespace": ""}, True, True),  # as an earlier version wrote it
        ({"boot": "earlier"}, True, False),
        ({"boot": "earlier", "namespace": ""}, True, False),
        ({"boot": "earlier", "namespace": "pid:[1]"}, False, False),
        ({"pid": 2**22 + 1, "namespace": "pid:[1]"}, False, False),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False, False),
    ],
)
def test_process_is_dead_only_where_that_is_certain(
    changes: dict[str, object], dead: bool, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "pid:[4026531836]"
    monkeypatch.setattr("gpt_pipeline.storage.process.pid_namespace", lambda: first)  # of a machine, not a container
    process = dataclasses.replace(ProcessId.here(), **changes)
    assert (process.is_dead, process.is_seen_here) == (dead, seen)

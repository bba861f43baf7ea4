"""`gpt-pipeline ui`: both web pages from one command, and nothing left of them afterwards."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from gpt_pipeline.experiment.discover import ExperimentFile, find_experiments
from gpt_pipeline.orchestration.dagster_server import heed_files
from gpt_pipeline.storage.lock import beside
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import descendants, wait

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Ctrl+C cannot be sent to a process of a test there")

COMMAND = [sys.executable, "-m", "gpt_pipeline", "ui"]
FOREIGN = {"Origin": "http://evil.example"}


@pytest.fixture
def environment() -> dict[str, str]:
    """Without what is set for the tester's own project, and with a proxy that leads nowhere."""
    ours = ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI", "no_proxy", "NO_PROXY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "http_proxy": "http://127.0.0.1:9"}


@pytest.fixture
def taken() -> Iterator[int]:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


def group_is_gone(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_pages_in_an_empty_folder_answer_until_interrupted(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        COMMAND, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        start = process.stdout.readline().strip()
        dagster = start.removesuffix("/start")
        with urlopen(start, timeout=30) as answer:
            (mlflow,) = re.findall(r'href="(http://127.0.0.1:[0-9]+)/#/experiments', answer.read().decode())
        for address in (start, dagster, mlflow):
            with urlopen(address, timeout=30) as answer:
                assert answer.status == 200
            assert refuses(address, {"Host": "evil.example"})
        assert refuses(f"{dagster}/graphql", FOREIGN, b'{"query": "{version}"}')
        assert refuses(f"{mlflow}/api/2.0/mlflow/experiments/create", FOREIGN, b'{"name": "x"}')
        groups = [int(pid) for pid in children_of(process.pid)]
        assert len(groups) == 2
        second = run(tmp_path, environment)
        assert second.returncode == 1
        assert start in second.stderr
        process.send_signal(signal.SIGINT)
        output_of(process, seconds=120)
        assert process.returncode == 0
        assert all(map(group_is_gone, groups))
    finally:
        process.terminate()  # which stops both servers
        output_of(process, seconds=120)


@pytest.mark.slow
def test_pages_that_are_killed_leave_no_server_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(COMMAND, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    started = descendants(process.pid)
    assert len(started) >= 4
    process.kill()
    output_of(process)
    try:
        wait(lambda: not any(map(is_running, started)), seconds=120, what="the end of all that it had started")
    finally:
        for pid in filter(is_running, started):
            os.kill(pid, signal.SIGKILL)


CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
command = [sys.executable, "-m", "gpt_pipeline.orchestration.with_parent", "child"]
with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
    time.sleep(600)
"""


def test_module_with_a_parent_ends_with_its_own_children_when_the_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    last = int(parent.stdout.readline())
    started = descendants(parent.pid)
    assert last in started
    parent.kill()
    output_of(parent)
    wait(lambda: not any(map(is_running, started)), seconds=60, what="the end of the module and its child")


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def refuses(address: str, headers: dict[str, str], body: bytes | None = None) -> bool:
    request = Request(address, data=body, headers={"Content-Type": "application/json", **headers})
    try:
        urlopen(request, timeout=30).close()
    except HTTPError as error:
        return error.code == 403
    return False


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_pages_on_a_port_in_use_say_which(tmp_path: Path, environment: dict[str, str], taken: int) -> None:
    found = run(tmp_path, environment, "--port", str(taken))
    assert found.returncode == 1
    assert f"--port: found port {taken} in use" in found.stderr


@pytest.mark.slow
def test_pages_whose_server_ends_by_itself_quote_its_log(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "dagster.yaml").write_text("storage: {no_such_storage: {}}\n")
    found = run(tmp_path, environment)
    assert found.returncode == 1
    assert "no_such_storage" in found.stderr


def test_definitions_are_reloaded_when_an_experiment_changes_and_not_for_its_runtime_block(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    file = project.write_experiment("tiny")
    loads: list[list[ExperimentFile]] = []

    def loads_come_to(count: int) -> None:
        wait(lambda: len(loads) == count, seconds=60, what=f"reload {count}", found=lambda: str(loads))

    folder = file.parent

    def load() -> None:
        loads.append(find_experiments(folder))
        if len(loads) == 1:
            raise RuntimeError("no server")

    heed = partial(heed_files, folder, find_experiments(folder), load, every=0.05)
    with beside(heed, name="files"):
        file.write_text(file.read_text() + "runtime: {parameters: 5}\n")
        time.sleep(1)
        assert loads == []
        project.write_experiment("tiny", num_samples=200)
        loads_come_to(2)  # again, since the first failed
        file.write_text("experiment_name: [")
        loads_come_to(3)
        file.unlink()
        loads_come_to(4)
        later = project.write_experiment("another")
        base = later.read_text().replace("another", "base")
        loads_come_to(5)
        text = re.sub(r"(?m)^model:.*\n", "start_from: {experiment: ../elsewhere/base.yaml}\n", later.read_text())
        later.write_text(text)
        loads_come_to(6)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "base.yaml").write_text(base)  # which mends it, though the file stays as it is
        loads_come_to(7)
    assert [[(each.name, each.problem is None) for each in load] for load in loads] == [
        [("tiny", True)],
        [("tiny", True)],
        [("tiny", False)],
        [],
        [("another", True)],
        [("another", False)],
        [("another", True)],
    ]

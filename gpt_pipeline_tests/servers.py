"""The web pages of a test's project: Dagster's and `mlflow ui` on free ports, ended with all that they start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

from gpt_pipeline.project import DAGSTER_CONFIG, MLFLOW_PAGE_VARIABLE
from gpt_pipeline_tests.projects import TinyProject

_REPOSITORY = Path(__file__).parents[1]
_UP_SECONDS = 180.0


@contextmanager
def dagster_pages(project: TinyProject, *, mlflow_port: int | None = None) -> Iterator[str]:
    """Dagster's pages and daemon for the block, as `ui` starts them; yields their address.

    At its end every process it started is killed, as by a power cut. Links to MLflow lead to `mlflow_port`, whether
    anything is there or not.
    """
    shutil.copyfile(_REPOSITORY / DAGSTER_CONFIG, project.root / DAGSTER_CONFIG)
    port = free_port()
    command = [sys.executable, "-m", "gpt_pipeline.orchestration.dagster_server", "--port", str(port)]
    pages = {} if mlflow_port is None else {MLFLOW_PAGE_VARIABLE: f"http://127.0.0.1:{mlflow_port}"}
    with _server(project, command, pages, log="dagster.log", answers=f"http://127.0.0.1:{port}/server_info"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_ui(project: TinyProject, *, port: int | None = None) -> Iterator[str]:
    """MLflow's pages of the project's store for the block, as an address."""
    port = port or free_port()
    store = f"sqlite:///{(project.root / 'mlflow.db').as_posix()}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1", "-p", str(port)]
    with _server(project, command, {}, log="mlflow.log", answers=f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait(until: Callable[[], bool], *, seconds: float, what: str, found: Callable[[], str] = str) -> None:
    """Look again and again until it is so; `found` says what is there if it does not come to that."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not in time: {what}\n{found()}"
        time.sleep(0.2)


@contextmanager
def _server(
    project: TinyProject, command: Sequence[str], variables: Mapping[str, str], *, log: str, answers: str
) -> Iterator[None]:
    path = project.root / log
    with path.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env={**project.environment, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait(lambda: is_answered(answers) or process.poll() is not None, seconds=_UP_SECONDS, what=answers)
        assert process.poll() is None, path.read_text()
        yield
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def is_answered(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (URLError, OSError):
        return False


def descendants(pid: int) -> list[int]:
    """Every process that `pid` or a child of it has started, whichever session it is in."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (own := children.get(waiting.pop(), []))
        found += own
    return found

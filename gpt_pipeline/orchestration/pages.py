"""A project's web pages: Dagster's server with the start page and the daemon, and MLflow's; one command for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from glob import escape
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from gpt_pipeline.errors import UserError
from gpt_pipeline.guard import LOOPBACK
from gpt_pipeline.orchestration.with_parent import STOP_SECONDS
from gpt_pipeline.project import DAGSTER_PORT, MLFLOW_PAGE_VARIABLE, MLFLOW_PORT, START_PATH, Project
from gpt_pipeline.shown import without_password
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.ports import HOST, choose_port
from gpt_pipeline.storage.process_group import ask_to_stop, is_alive, kill, own_session
from gpt_pipeline.tracking.store import prepare_store
from gpt_pipeline.training.stopping import StopFlag, stop_on_signals

_START_SECONDS = 180.0
_POLL_SECONDS = 0.2
_LOG_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Page:
    """One server."""

    name: str
    address: str
    """What to open in a browser."""

    ready: str
    """An address that answers as soon as the server is up."""

    command: Sequence[str]
    """Empty for a server that runs elsewhere."""

    log: Path

    @property
    def place(self) -> str:
        """Where it is, in few words."""
        return f"port {self.address.rpartition(':')[2]}" if self.command else self.address


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The servers of a project."""

    dagster: Page
    mlflow: Page

    @property
    def start(self) -> str:
        """Address of the page that leads to all others."""
        return f"{self.dagster.address}{START_PATH}"

    @property
    def own(self) -> Sequence[Page]:
        """The servers that run here."""
        return [page for page in (self.dagster, self.mlflow) if page.command]


def serve_pages(
    project: Project,
    *,
    dagster_port: int | None,
    mlflow_port: int | None,
    names: Sequence[str],
    opened: Callable[[Pages], None],
    stopping: Callable[[], None],
) -> None:
    """Start both servers and call `opened` when they answer; on a signal, call `stopping` and stop them.

    A port of None is the usual one, or the next free one. MLflow's server is only started for a store that is not a
    server itself. The pages answer to the names of this machine and to `names`, those of a proxy. Runs in progress are
    asked to stop too, and a training saves a checkpoint.

    Raises:
        UserError: a port is taken, or a server ended by itself; quotes its log.
        LockedError: the project's pages are already open; says where.
    """
    project.enter()
    stop = StopFlag()
    folder = project.pages
    with folder_lock(folder, purpose="web pages"):  # before ports are chosen: those of pages that are open are taken
        pages = _pages(project, folder, dagster_port=dagster_port, mlflow_port=mlflow_port, names=names)
    purpose = f"web pages at {pages.start} and {pages.mlflow.address}"
    with stop_on_signals(stop), folder_lock(folder, purpose=purpose), ExitStack() as running:
        environment = {
            **os.environ,
            MLFLOW_PAGE_VARIABLE: pages.mlflow.address,
            "MLFLOW_BACKEND_STORE_URI": project.tracking_uri,  # as an argument everybody here could read it
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        prepare_store(project.tracking_uri)
        servers = [(page, running.enter_context(_server(page, environment))) for page in pages.own]
        if _wait_until_ready(servers, stop):
            opened(pages)
        while not stop.requested:
            _require_running(servers)
            time.sleep(_POLL_SECONDS)
        stopping()
        for _, server in servers:  # all at once; the end of the block waits for each
            ask_to_stop(server, signal.SIGINT)


def _pages(
    project: Project, folder: Path, *, dagster_port: int | None, mlflow_port: int | None, names: Sequence[str]
) -> Pages:
    port = choose_port(dagster_port, usual=DAGSTER_PORT, option="--port")
    dagster = Page(
        name="Dagster",
        address=f"http://{HOST}:{port}",
        ready=f"http://{HOST}:{port}/server_info",
        command=_module(
            "gpt_pipeline.orchestration.dagster_server",
            *("--port", str(port)),
            *(word for name in names for word in ("--allow-host", name)),
        ),
        log=folder / "dagster.log",
    )
    store = project.tracking_uri
    if store.startswith(("http://", "https://")):
        address = without_password(store)
        elsewhere = Page(name="MLflow", address=address, ready=address, command=(), log=folder / "mlflow.log")
        return Pages(dagster=dagster, mlflow=elsewhere)
    port = choose_port(mlflow_port, usual=MLFLOW_PORT, option="--mlflow-port")
    address = f"http://{HOST}:{port}"
    command = _module(
        "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1", *_mlflow_guard(port, names)
    )
    mlflow = Page(name="MLflow", address=address, ready=f"{address}/health", command=command, log=folder / "mlflow.log")
    return Pages(dagster=dagster, mlflow=mlflow)


def _mlflow_guard(port: int, names: Sequence[str]) -> Sequence[str]:
    """Return the options by which MLflow's server refuses other websites, as the guard of Dagster's does."""
    known = [escape(name) for name in (*sorted(LOOPBACK), *names)]
    hosts = ",".join(pattern for name in known for pattern in (name, f"{name}:*"))
    origins = [f"http://{HOST}:{port}", *(f"{scheme}://{name}" for name in names for scheme in ("http", "https"))]
    options = {"--allowed-hosts": hosts, "--cors-allowed-origins": ",".join(origins), "--x-frame-options": "DENY"}
    return [word for option in options.items() for word in option]


def _module(name: str, *arguments: str) -> Sequence[str]:
    """Return the command of a server that ends with this process, however that ends."""
    return (sys.executable, "-m", "gpt_pipeline.orchestration.with_parent", name, *arguments)


@contextmanager
def _server(page: Page, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in its own process group, which a terminal's Ctrl+C does not reach; end the group with the block."""
    page.log.parent.mkdir(parents=True, exist_ok=True)
    with page.log.open("wb") as log:
        server = subprocess.Popen(
            page.command,
            stdin=subprocess.PIPE,  # whose end tells the server of ours
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            **own_session(),
        )
    try:
        yield server
    except BaseException:
        ask_to_stop(server, signal.SIGINT)
        raise
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Wait until the server's whole group is gone, and kill what stays too long."""
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(server) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    kill(server)
    server.wait()


def _wait_until_ready(servers: Sequence[tuple[Page, subprocess.Popen[bytes]]], stop: StopFlag) -> bool:
    """Return True when all answer, False if a signal came first.

    Raises:
        UserError: a server ended, or does not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    for page, _ in servers:
        while not stop.requested and not _answers(page.ready):
            _require_running(servers)
            if time.monotonic() > deadline:
                raise UserError(f"{page.name} does not answer on {page.address}; {_last_words(page)}")
            time.sleep(_POLL_SECONDS)
    return not stop.requested


def _require_running(servers: Sequence[tuple[Page, subprocess.Popen[bytes]]]) -> None:
    for page, server in servers:
        if server.poll() is not None:
            raise UserError(f"{page.name}'s server ended with exit code {server.returncode}; {_last_words(page)}")


def _last_words(page: Page) -> str:
    lines = page.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return without_password("\n".join([f"the end of {page.log}:", *lines]))


def _answers(address: str) -> bool:
    """Whether the server is up. The request does not go through a proxy, which leads to other machines."""
    try:
        with build_opener(ProxyHandler({})).open(address, timeout=2):
            return True
    except (HTTPException, OSError):
        return False

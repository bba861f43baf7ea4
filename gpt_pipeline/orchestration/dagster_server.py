"""Dagster's web pages behind a guard, with the daemon and the server of the definitions: what `dagster dev` starts.

`dagster dev` itself serves its pages to any website that the user's browser has open, and has no place for a guard.
Nor does it look at the experiment files: a run reads them as they are, so one that a page requests as they were would
find other steps than it is asked for, and fail by an error of Dagster's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import uvicorn
from dagster import DagsterInstance
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._cli.utils import get_possibly_temporary_instance_for_cli
from dagster._core.scheduler.instigation import InstigatorType, SensorInstigatorData
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget
from dagster._serdes import serialize_value
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.log import configure_loggers
from dagster_shared.ipc import interrupt_then_kill_ipc_subprocess, open_ipc_subprocess
from dagster_webserver.version import __version__
from dagster_webserver.webserver import DagsterWebserver
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from gpt_pipeline.experiment.discover import ExperimentFile, find_experiments, folder_state
from gpt_pipeline.guard import Guard
from gpt_pipeline.orchestration.history import DEFINITIONS, turn_to_open
from gpt_pipeline.orchestration.start_routes import start_routes
from gpt_pipeline.orchestration.termination import reach_commands
from gpt_pipeline.project import Project
from gpt_pipeline.storage.lock import beside
from gpt_pipeline.storage.ports import HOST

_CODE_LOG_LEVEL = "warning"
_POLL_MILLISECONDS = 2000  # how often a page asks for news, as `dagster dev` has it
_DAEMON_STOP_SECONDS = 60
_CLOCK_SECONDS = 30.0  # between two looks whether it was set back; by fewer it does not matter
_FILES_SECONDS = 1.0  # between two looks at the experiment files, of which two must agree: one may be half written
_REREAD = 30  # looks, after which files are read that have not changed, or loaded anew that could not be
_STATEMENT_MILLISECONDS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW = 15_000, 3600, 20  # dagster-webserver's own


class GuardedWebserver(DagsterWebserver[WorkspaceProcessContext, Any]):
    """Dagster's own web server and the start page of a project; every route of both lies behind the guard."""

    def __init__(self, context: WorkspaceProcessContext, *, project: Project, names: Sequence[str] = ()) -> None:
        """Serve the workspace of `context`; `names` are those of proxies before the pages."""
        self._names = names
        self._start_routes = start_routes(project, context.instance)
        super().__init__(context, live_data_poll_rate=_POLL_MILLISECONDS)

    def build_middleware(self) -> list[Middleware]:
        """Return Dagster's middleware with the guard before it."""
        return [Middleware(Guard, names=self._names), *super().build_middleware()]

    def build_routes(self) -> list[BaseRoute]:
        """Return the start page's routes, then Dagster's: the last of those answers every other address."""
        return [*self._start_routes, *super().build_routes()]  # type: ignore[no-untyped-call]


def serve(*, port: int, names: Sequence[str]) -> None:
    """Serve the pages of the project in the working directory until SIGINT, its daemon beside them.

    Raises:
        RuntimeError: the daemon ended by itself.
    """
    project = Project.here()
    with ExitStack() as stack:
        with turn_to_open(project):
            instance = stack.enter_context(get_possibly_temporary_instance_for_cli("gpt-pipeline ui"))
        loaded = _found(project.experiments)  # before the definitions are, which may come to know more
        workspace = stack.enter_context(_definitions(instance))
        daemon = stack.enter_context(_daemon(instance, workspace))
        stack.enter_context(beside(partial(_heed_clock, instance), name="clock"))
        reach_commands(instance)
        instance.optimize_for_webserver(_STATEMENT_MILLISECONDS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW)
        target = WorkspaceFileTarget(paths=[str(workspace)])
        context = stack.enter_context(
            WorkspaceProcessContext(
                instance, version=__version__, workspace_load_target=target, code_server_log_level=_CODE_LOG_LEVEL
            )
        )
        heed = partial(heed_files, project.experiments, loaded, partial(_reload, context))
        stack.enter_context(beside(heed, name="files"))
        app = GuardedWebserver(context, project=project, names=names).create_asgi_app()
        server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=port, log_level="warning", lifespan="off"))
        Thread(target=_end_with, args=(daemon, server), daemon=True).start()
        server.run()
        if (code := daemon.poll()) is not None:
            raise RuntimeError(f"Dagster's daemon ended by itself, with exit code {code}")


@contextmanager
def _definitions(instance: DagsterInstance) -> Iterator[Path]:
    """Serve the definitions to web server and daemon for the block; yield the workspace file that leads to them."""
    target = ModuleTarget(DEFINITIONS, attribute=None, working_directory=None, location_name=None)
    with ProxyServerManager(instance, target, _CODE_LOG_LEVEL) as servers, TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace.yaml"
        workspace.write_text(json.dumps({"load_from": servers.get_code_server_specs()}), encoding="utf-8")
        yield workspace


@contextmanager
def _daemon(instance: DagsterInstance, workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    reference = serialize_value(instance.get_ref())
    options = ["--log-level", "info", "--code-server-log-level", _CODE_LOG_LEVEL, "--workspace", str(workspace)]
    daemon = open_ipc_subprocess(
        [sys.executable, "-m", "dagster._daemon", "run", *options, "--instance-ref", reference]
    )
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            interrupt_then_kill_ipc_subprocess(daemon, wait_time=_DAEMON_STOP_SECONDS)


def heed_files(
    folder: Path,
    loaded: Sequence[ExperimentFile],
    reload: Callable[[], object],
    ended: Event,
    *,
    every: float = _FILES_SECONDS,
) -> None:
    """Reload the definitions, which are of the experiments `loaded`, whenever one is changed, added or removed.

    What is wrong with one may be mended elsewhere: while there is such a one, all are read now and then.
    """
    seen: object = None
    read: object = None
    read_at = time.monotonic()
    while not ended.wait(every):
        try:
            last, seen = seen, folder_state(folder)
            again = time.monotonic() - read_at > _REREAD * every and any(each.problem for each in loaded)
            if seen == last and (seen != read or again):
                read_at = time.monotonic()
                if (found := _found(folder)) != loaded:
                    reload()
                    loaded = found
                read = seen
        except Exception as error:  # a file that has just gone, a server that does not answer: a later look does it
            logging.getLogger("dagster").warning("the experiment files cannot be loaded anew (%s)", error)
            ended.wait(_REREAD * every)


def _reload(context: WorkspaceProcessContext) -> None:
    """Load the definitions anew.

    Raises:
        RuntimeError: they cannot be loaded, which Dagster itself only notes for its pages.
    """
    context.reload_code_location(DEFINITIONS)
    error = context.get_current_workspace().code_location_entries[DEFINITIONS].load_error
    if error is not None:
        raise RuntimeError(error.message.strip())


def _found(folder: Path) -> Sequence[ExperimentFile]:
    return find_experiments(folder) if folder.is_dir() else []


def _heed_clock(instance: DagsterInstance, ended: Event) -> None:
    while not ended.wait(_CLOCK_SECONDS):
        try:
            forget_ticks_to_come(instance)
        except Exception as error:  # a database that is busy: the next look does it
            logging.getLogger("dagster").debug("the sensors' ticks cannot be read (%s)", error)


def forget_ticks_to_come(instance: DagsterInstance) -> None:
    """Forget when sensors were last asked that were asked later than now, as before the clock was set back.

    Dagster would not ask them again until that time has come once more.
    """
    latest = time.time() + _CLOCK_SECONDS
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        data = state.instigator_data
        if isinstance(data, SensorInstigatorData) and latest < max(
            data.last_tick_timestamp or 0, data.last_tick_start_timestamp or 0
        ):
            fresh = data._replace(last_tick_timestamp=None, last_tick_start_timestamp=None)
            instance.update_instigator_state(state.with_data(fresh))


def _end_with(daemon: subprocess.Popen[bytes], server: uvicorn.Server) -> None:
    daemon.wait()
    server.should_exit = True


def main() -> None:
    """Serve the pages on the port that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--allow-host", action="append", default=[])
    options = parser.parse_args()
    configure_loggers(log_level="INFO")
    setup_interrupt_handlers()
    try:
        serve(port=options.port, names=options.allow_host)
    except KeyboardInterrupt:
        logging.getLogger("dagster").info("Dagster's pages are closed.")


if __name__ == "__main__":
    main()

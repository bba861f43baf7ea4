"""Let Dagster's pages terminate a run that a command executes in its own process, which their launcher cannot reach."""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from gpt_pipeline.orchestration.dead_runs import process_of
from gpt_pipeline.storage.lock import beside

_logger = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_ASKED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


@contextmanager
def heed_termination(instance: dg.DagsterInstance, run_id: str, *, every: float = _LOOK_SECONDS) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl+C does, once the history says during the block that the run is to stop."""

    def look(ended: threading.Event) -> None:
        while not ended.wait(every):
            try:
                run = instance.get_run_by_id(run_id)
            except Exception as error:  # a database that is busy or away: the run itself has to tell of it
                _logger.debug("run %s: its state cannot be read (%s)", run_id, error)
                continue
            # Outside Dagster's own handlers a command that a shell started in the background ignores SIGINT.
            heeded = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
            if heeded and run is not None and run.status in _ASKED and not ended.is_set():
                _thread.interrupt_main()
                return

    with beside(look, name="termination"):
        yield


def reach_commands(instance: dg.DagsterInstance) -> None:
    """Have the instance's launcher terminate the runs of commands too, as described above; it would report a failure.

    Other launchers than Dagster's default are left as they are: what they start may look like it.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, dg.DefaultRunLauncher):
        return
    terminate: Callable[[str], object] = launcher.terminate

    def terminate_any(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished or process_of(run) is None or GRPC_INFO_TAG in run.tags:
            return bool(terminate(run_id))
        instance.report_run_canceling(run)
        return True

    launcher.terminate = terminate_any  # type: ignore[method-assign]

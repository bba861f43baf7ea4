"""Wait for a place in one of Dagster's pools.

Dagster's executors ask for a place again and again without a pause, which keeps a core busy. The in-process one of the
command line also says nothing, and heeds no signal until it has one: there, a request that is refused waits. It says
for whom, frees the places of runs whose process has died meanwhile, and ends when it is asked to stop. The multiprocess
one of Dagster's pages heeds all that, and its other steps go on meanwhile: there, rounds of requests get a pause.

Dagster hands a place that becomes free to a step on its waiting list. A step that finds all places taken and is put on
the list just after the last of them became free is handed none, and would wait for ever; it gets one here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.executor import multiprocess
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._utils.concurrency import ConcurrencyClaimStatus
from dagster._utils.interrupts import pop_captured_interrupt

from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import close_dead_runs, free_its_place, is_over, owners_of, process_of
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.project import Project
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.alive import least_silence
from gpt_pipeline.storage.lock import BEAT_SECONDS, SILENT_SECONDS, hold_lock
from gpt_pipeline.storage.process import ProcessId

_ASK_SECONDS = 1.0
_PAUSE_SECONDS = 0.02  # as long as that executor waits for a step at work
_LOOK_SECONDS = 5.0
_QUIET_SECONDS = {
    keys.EVALUATION_POOL: 60.0
}  # the evaluations of two trainings take turns; nothing is to be said of it


def wait_in_pools(instance: dg.DagsterInstance, project: Project, *, say: Say, stopped: Callable[[], bool]) -> None:
    """Have runs that this process executes with `instance` wait for their places as described above.

    The wait ends with `StoppedRunError` at a signal, or once `stopped` returns true.
    """
    storage = instance.event_log_storage
    claim_at_once = storage.claim_concurrency_slot

    def claim(*wanted: Any) -> ConcurrencyClaimStatus:
        with _turn(project):
            return claim_at_once(*wanted)

    def patient_claim(
        concurrency_key: str, run_id: str, step_key: str, priority: int | None = None
    ) -> ConcurrencyClaimStatus:
        status = claim(concurrency_key, run_id, step_key, priority)
        if not status.is_claimed:
            experiments = [each.experiment for each in find_experiments(project.experiments) if each.experiment]
            line = _Line(instance=instance, pool=concurrency_key, run_id=run_id, experiments=experiments, say=say)
            with explained(stopped=f"Stopped while waiting for a place in Dagster's pool {concurrency_key!r}."):
                while not status.is_claimed:
                    if stopped() or pop_captured_interrupt():
                        raise KeyboardInterrupt
                    line.look()
                    time.sleep(_ASK_SECONDS)
                    assign_free_places(instance, project, [concurrency_key])
                    status = claim(concurrency_key, run_id, step_key, priority)
        return status

    storage.claim_concurrency_slot = patient_claim  # type: ignore[method-assign]


def pause_between_rounds() -> None:
    """Have the multiprocess executors of this process pause before they ask for the same place again."""
    multiprocess.InstanceConcurrencyContext = _UnhurriedContext  # type: ignore[attr-defined]


class _UnhurriedContext(InstanceConcurrencyContext):
    """One that pauses once in each round of requests, however many steps wait."""

    def __init__(self, instance: dg.DagsterInstance, dagster_run: DagsterRun) -> None:
        super().__init__(instance, dagster_run)
        self._refused: set[str] = set()  # in this round

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        claimed = super().claim(concurrency_key, step_key, step_priority)
        if not claimed:
            if step_key in self._refused:
                time.sleep(_PAUSE_SECONDS)
                self._refused.clear()
            self._refused.add(step_key)
        return claimed


def assign_free_places(instance: dg.DagsterInstance, project: Project, pools: Iterable[str]) -> None:
    """Hand a free place of each pool that has one to the step whose turn it is, if one waits."""
    storage: EventLogStorage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):  # others, as Dagster's own cloud, have lists of another kind
        with _turn(project):
            for pool in pools:
                if storage.has_unassigned_slots(pool):
                    storage.assign_pending_steps([pool])


def _turn(project: Project) -> AbstractContextManager[None]:
    """Return a context for one of the project's processes at a time.

    Dagster looks and then writes, and SQLite lets another process look in between: a place would be given twice.
    """
    project.history.mkdir(parents=True, exist_ok=True)
    return hold_lock(project.history / ".pools.lock", wait_seconds=-1)


@dataclass(kw_only=True)
class _Line:
    """A run that waits for a place in a pool, and those before it."""

    instance: dg.DagsterInstance
    pool: str
    run_id: str
    experiments: Sequence[Experiment]
    say: Say
    said: str = ""
    looked: float = float("-inf")
    began: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Say who is before this run if that has changed, and free the places of those that are gone."""
        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return
        for run_id in close_dead_runs(self.instance, self.experiments):
            self.say(f"Run {run_id} was killed; Dagster's history now shows it as failed, and its place is free.")
        before = self._before()
        for run_id in before:
            if is_over(self.instance, run_id):  # killed, or removed from the history, before it freed its place
                free_its_place(self.instance, run_id)
        lines = [line for run_id in before if (line := self._describe(run_id))]
        text = "\n".join([f"Waiting for a place in Dagster's pool {self.pool!r}; Ctrl+C stops.", *lines])
        quiet = time.monotonic() - self.began < _QUIET_SECONDS.get(self.pool, 0)
        if lines and text != self.said and not quiet:
            self.say(text)
            self.said = text
        self.looked = time.monotonic()

    def _before(self) -> Sequence[str]:
        storage: EventLogStorage = self.instance.event_log_storage
        info = storage.get_concurrency_info(self.pool)
        return sorted((info.active_run_ids | info.assigned_run_ids) - {self.run_id})

    def _describe(self, run_id: str) -> str:
        record = self.instance.get_run_record_by_id(run_id)
        if record is None or record.dagster_run.is_finished:
            return ""
        run = record.dagster_run
        created = record.create_timestamp.replace(tzinfo=UTC)
        began = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else created
        process, owners = process_of(run), owners_of(run, self.experiments)
        name = owners[0].name if len(owners) == 1 else run.job_name
        where = f", process {process.pid} on {process.host}" if process else ", started from Dagster's pages"
        return (
            f"  It is taken by the {self.pool} of {name}{where}, since "
            f"{began:%Y-%m-%d %H:%M:%S} UTC (run {run_id}).{_sign_of_life(process, owners)}"
        )


def _sign_of_life(process: ProcessId | None, owners: Sequence[Experiment]) -> str:
    """Return what is to be said of a run's process if this one does not see whether it is alive."""
    if process is not None and process.is_seen_here:
        return ""
    seconds = least_silence({owner.folder.base for owner in owners}, process) if process else None
    if seconds is None:
        return " Whether it is alive cannot be seen from here; if it is not, terminate this run on Dagster's pages."
    if seconds > 2 * BEAT_SECONDS:
        return f" It is silent; once it has been so for {SILENT_SECONDS:.0f} seconds, it counts as dead."
    return ""

"""Runs that Dagster considers in progress although their process is gone.

Dagster's daemon ends runs that it started itself. A run that `gpt-pipeline` executes in its own process, and any run
whose whole machine went down, stays "started" for ever, keeps its place in the pool and keeps the sensor from asking
again. Such a run has its process as a tag, or the trainer's heartbeat names the run; either is proof enough to end it.
The runs that the daemon starts for evaluations get the tag from their step; until that begins (it may wait long for its
place in the pool), they bear the machine from which they were requested, and their history has the process's number.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.runs import SqliteRunStorage

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.history import UNFINISHED
from gpt_pipeline.progress.dead_runs import end_of_process, end_of_trainer
from gpt_pipeline.storage.process import ProcessId

PROCESS_TAG = ".dagster/gpt_pipeline_process"
"""Bears, as JSON, the process in which a whole run is executed. Such tags are hidden on Dagster's pages."""

REQUESTER_TAG = ".dagster/gpt_pipeline_requested_by"
"""Bears, as JSON, the process that asked for a run: of the machine on which Dagster's own launcher starts it."""

_TIME_TO_BEGIN = timedelta(seconds=60)  # a run's process begins within seconds of its launch


def process_tag() -> Mapping[str, str]:
    """Return the tag of a run that this very process executes."""
    return {PROCESS_TAG: json.dumps(dataclasses.asdict(ProcessId.here()))}


def requester_tag() -> Mapping[str, str]:
    """Return the tag of a run that a sensor or a schedule in this very process asks for."""
    return {REQUESTER_TAG: json.dumps(dataclasses.asdict(ProcessId.here()))}


def note_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tag a run, from within one of its steps, with the process that executes it, if that is of this machine.

    If the whole machine goes down, nothing else would know.
    """
    if PROCESS_TAG in run.tags:
        return
    pid = _pid_at_start(instance, run)
    # A step is executed by the run's process or by a child of it; any other number is of another machine.
    parent = multiprocessing.parent_process()  # where a fork server stands between, the system knows another
    if pid is not None and pid in (os.getpid(), os.getppid(), parent.pid if parent else None):
        instance.add_run_tags(run.run_id, {PROCESS_TAG: json.dumps(dataclasses.asdict(ProcessId.of(pid)))})


def close_dead_runs(instance: dg.DagsterInstance, experiment: Experiment) -> list[str]:
    """Mark as failed those runs of the experiment's jobs whose process is certainly gone; return their ids."""
    names = (keys.run_job, keys.data_job, keys.evaluate_job, keys.report_job)
    jobs = [name(experiment) for name in names]
    closed = []
    for job in jobs:
        for run in instance.get_runs(dg.RunsFilter(job_name=job, statuses=list(UNFINISHED))):
            why = _end(instance, run, experiment)
            if why is not None:
                instance.report_run_failed(run, message=f"{why} Finished work is kept; materialize again to continue.")
                _free_its_place(instance, run)
                closed.append(run.run_id)
    return closed


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, experiment: Experiment) -> str | None:
    """Return how the process of a run ended; None if it may still live. Of a run of the UI, say, nothing is known."""
    process = _tagged(run, PROCESS_TAG) or _process_launched(instance, run) or _launcher(instance, run)
    trainer = run.status == dg.DagsterRunStatus.STARTED
    return end_of_process(process) or (end_of_trainer(experiment.folder.root, run.run_id) if trainer else None)


def _tagged(run: dg.DagsterRun, tag: str) -> ProcessId | None:
    try:
        return ProcessId.from_text(json.loads(run.tags[tag]))
    except (KeyError, TypeError, ValueError):
        return None


def _process_launched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> ProcessId | None:
    """Return the process of a run that has begun, where it was launched on the machine of whoever asked for it.

    A person in the UI leaves no such note; where the history is a file, there is no other machine than this one.
    """
    requester, pid = _tagged(run, REQUESTER_TAG), _pid_at_start(instance, run)
    if requester is None and isinstance(instance.run_storage, SqliteRunStorage):
        requester = ProcessId.here()
    if requester is None or pid is None or not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return None
    # When the process began is not known, so a later one of the same number is taken for it: that errs on waiting.
    return dataclasses.replace(requester, pid=pid, started="")


def _launcher(instance: dg.DagsterInstance, run: dg.DagsterRun) -> ProcessId | None:
    """Return the process that was to launch a requested run, if nothing was heard of the run since long enough."""
    requester, record = _tagged(run, REQUESTER_TAG), instance.get_run_record_by_id(run.run_id)
    if record is None or run.status != dg.DagsterRunStatus.STARTING:
        return None
    changed = record.update_timestamp.replace(tzinfo=UTC)
    waits = datetime.now(UTC) - changed >= _TIME_TO_BEGIN
    return requester if waits and isinstance(instance.run_launcher, dg.DefaultRunLauncher) else None


def _pid_at_start(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int | None:
    """Return the number of the process that began to execute `run`, on whichever machine."""
    started = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    event = started[0].event_log_entry.dagster_event if started else None
    return event.pid if event is not None else None


def _free_its_place(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)

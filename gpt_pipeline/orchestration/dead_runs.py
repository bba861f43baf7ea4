"""Runs that Dagster considers in progress although their process is gone.

Dagster's daemon ends runs that it started itself. A run that `gpt-pipeline` executes in its own process, and any run
whose whole machine went down, stays "started" for ever, keeps its place in the pool and keeps the sensor from asking
again. A run has its process as a tag, which the process itself sets before it waits for a place in a pool. Where that
process cannot be seen, on another host or in another container, its signs of life in the base folder tell; so does the
trainer's heartbeat, which names the run.
Until then, the runs that the daemon starts for evaluations bear the machine from which they were requested, and the
history of a run that has begun its process's number.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import is_reserved_asset_job_name
from dagster._core.storage.runs import SqliteRunStorage

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.history import UNFINISHED
from gpt_pipeline.progress.dead_runs import end_of_process, end_of_trainer
from gpt_pipeline.storage.alive import forget, show_life
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.process import ProcessId

PROCESS_TAG = ".dagster/gpt_pipeline_process"
"""Bears, as JSON, the process in which a whole run is executed. Such tags are hidden on Dagster's pages."""

DEAD_TAG = ".dagster/gpt_pipeline_found_dead"
"""Of a run that was closed here: nobody else tells of it."""

REQUESTER_TAG = ".dagster/gpt_pipeline_requested_by"
"""Bears, as JSON, the process that asked for a run: of the machine on which Dagster's own launcher starts it."""

_BEFORE_ITS_PROCESS = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)  # between them a queue keeps it
_TIME_TO_BEGIN = timedelta(seconds=60)  # a run's process begins within seconds of its launch
_SILENT_SECONDS = 600.0  # twice the time after which a run that waits for its place in a pool says so again


def process_tag(run_id: str, process: ProcessId | None = None) -> Mapping[str, str]:
    """Return the tag of a run that `process`, else this very one, executes.

    It names the run: Dagster hands a run's tags on to one that is started from it again.
    """
    return {PROCESS_TAG: json.dumps({**dataclasses.asdict(process or ProcessId.here()), "run": run_id})}


def requester_tag() -> Mapping[str, str]:
    """Return the tag of a run that a sensor or a schedule in this very process asks for."""
    return {REQUESTER_TAG: ProcessId.here().as_text}


@contextmanager
def at_work(
    instance: dg.DagsterInstance, run: dg.DagsterRun, experiments: Sequence[Experiment], *, warn: Callable[[str], None]
) -> Iterator[None]:
    """Tag a run with this very process, which executes it for the length of the block, and show its life meanwhile.

    If the whole machine goes down, nothing else would know. It shows in the base folders of those of `experiments` that
    the run is of; a folder in which it cannot is told of by `warn`. A command has done both for its own runs.
    """
    here, shown = ProcessId.here(), ExitStack()
    if process_of(run) == here:
        yield
        return
    for base in _bases(owners_of(run, experiments), warn):
        _guarded(partial(shown.enter_context, show_life(base, here)), warn)
    instance.add_run_tags(run.run_id, process_tag(run.run_id))
    try:
        yield
    finally:
        _guarded(shown.close, warn)


def _bases(owners: Sequence[Experiment], warn: Callable[[str], None]) -> set[Path]:
    """Return the base folders of a run's experiments; where it is of several, those that there are."""
    found: set[Path] = set()
    for owner in owners:
        _guarded(partial(_add_base, owner, found), warn)
    return found if len(owners) == 1 else {base for base in found if base.is_dir()}


def _add_base(owner: Experiment, found: set[Path]) -> None:
    found.add(owner.folder.base)


def _guarded(act: Callable[[], object], warn: Callable[[str], None]) -> None:
    """Do what a run can go on without, as where only its steps have the folder; tell of it if it cannot be done."""
    try:
        act()
    except (OSError, UserError) as error:
        warn(f"The run's process shows no sign of life: {error}")


def close_dead_runs(instance: dg.DagsterInstance, experiments: Iterable[Experiment]) -> list[str]:
    """Mark as failed those runs of the experiments, as `owners_of` finds them, whose process is certainly gone.

    Return their ids.
    """
    known = list(experiments)
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNFINISHED))):
        folders = [owner.folder for owner in owners_of(run, known)]
        why = _end(instance, run, folders)
        if why is None or is_over(instance, run.run_id):  # it may have ended in this very moment
            continue
        if instance.run_will_resume(run.run_id):  # by Dagster's daemon, in another process
            continue
        instance.add_run_tags(run.run_id, {DEAD_TAG: "yes"})
        instance.report_run_failed(run, message=f"{why} Finished work is kept; materialize again to continue.")
        free_its_place(instance, run.run_id)
        if process := process_of(run):
            for base in {folder.base for folder in folders}:
                forget(base, process)
        closed.append(run.run_id)
    return closed


def owners_of(run: dg.DagsterRun, experiments: Sequence[Experiment]) -> Sequence[Experiment]:
    """Return those of `experiments` that a run is of: the one whose job it is, or whose assets somebody picked by hand.

    All of them where its assets, as the comparison or shared data, are of no single one.
    """
    if is_reserved_asset_job_name(run.job_name):
        picked = {key.path[0] for key in run.asset_selection or ()}
        return [each for each in experiments if each.name in picked] or experiments
    if run.job_name == keys.COMPARISON_JOB:
        return experiments
    names = (keys.run_job, keys.data_job, keys.evaluate_job, keys.report_job)
    return [each for each in experiments if run.job_name in {name(each) for name in names}]


def is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run has ended, or is not in the history any more."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, folders: Sequence[ExperimentFolder]) -> str | None:
    """Return how the process of a run ended; None if it may still live, or nothing is known of it."""
    if not folders:
        return None
    process = process_of(run) or _process_launched(instance, run) or _launcher(instance, run)
    trainers = folders if run.status == dg.DagsterRunStatus.STARTED else ()
    ends = [end_of_trainer(folder.root, run.run_id) for folder in trainers]
    # Of several experiments, one's trainer may have died and the run have gone on with another.
    return end_of_process(process, {folder.base for folder in folders}) or (ends[0] if ends and all(ends) else None)


def process_of(run: dg.DagsterRun) -> ProcessId | None:
    """Return the process that executes a run, as its tag says; None if the tag is of the run that it repeats."""
    try:
        of_run = json.loads(run.tags[PROCESS_TAG]).get("run", "" if run.parent_run_id else run.run_id)
    except (KeyError, AttributeError, ValueError):
        return None
    return _tagged(run, PROCESS_TAG) if of_run == run.run_id else None


def _requester(run: dg.DagsterRun) -> ProcessId | None:
    """Return the process that asked for a run, as its tag says; None if the tag is of the run that it repeats."""
    return None if run.parent_run_id else _tagged(run, REQUESTER_TAG)


def _tagged(run: dg.DagsterRun, tag: str) -> ProcessId | None:
    try:
        return ProcessId.from_text(json.loads(run.tags[tag]))
    except (KeyError, TypeError, ValueError):
        return None


def _process_launched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> ProcessId | None:
    """Return the process of a run that has begun, where it was launched on the machine of whoever asked for it.

    A person in the UI leaves no such note. Where the history is a file, it is likely this machine, but a container may
    share the file; so the run has to be silent as well, longer than one that only waits.
    """
    requester, pid = _requester(run), _pid_at_start(instance, run)
    if requester is None and isinstance(instance.run_storage, SqliteRunStorage) and _is_silent(instance, run):
        requester = ProcessId.here()
    if requester is None or pid is None or not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return None
    # When the process began is not known, so a later one of the same number is taken for it: that errs on waiting.
    return dataclasses.replace(requester, pid=pid, started="")


def _is_silent(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    newest = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    return bool(newest) and time.time() - newest[0].timestamp > _SILENT_SECONDS


def _launcher(instance: dg.DagsterInstance, run: dg.DagsterRun) -> ProcessId | None:
    """Return the process that was to queue or launch a requested run, if nothing was heard of it since long enough."""
    requester, record = _requester(run), instance.get_run_record_by_id(run.run_id)
    if record is None or run.status not in _BEFORE_ITS_PROCESS:
        return None
    changed = record.update_timestamp.replace(tzinfo=UTC)
    waits = datetime.now(UTC) - changed >= _TIME_TO_BEGIN
    return requester if waits and isinstance(instance.run_launcher, dg.DefaultRunLauncher) else None


def _pid_at_start(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int | None:
    """Return the number of the process that began to execute `run`, on whichever machine."""
    started = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    event = started[0].event_log_entry.dagster_event if started else None
    return event.pid if event is not None else None


def free_its_place(instance: dg.DagsterInstance, run_id: str) -> None:
    """Free what a run that is over holds of the pools, or waits for."""
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)

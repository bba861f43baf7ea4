"""A run that the user stops ends as canceled and leaves one line, whoever asked for the stop."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.storage.tags import GRPC_INFO_TAG, MAX_RETRIES_TAG

from gpt_pipeline.orchestration.dead_runs import PROCESS_TAG
from gpt_pipeline.orchestration.driver import _problem
from gpt_pipeline.orchestration.failures import CRASHED, STOPPED, explained, failure_text
from gpt_pipeline.orchestration.keys import EXPERIMENT_TAG
from gpt_pipeline.orchestration.stoppable import NEVER, stoppable
from gpt_pipeline.orchestration.termination import heed_termination, reach_commands
from gpt_pipeline.progress.at_work import runs_at_work
from gpt_pipeline.progress.failures import last_failure, note_failure
from gpt_pipeline.project import Project

CANCELED, CANCELING, FAILED, STARTED = (
    dg.DagsterRunStatus.CANCELED,
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.STARTED,
)
SAVED = "Stopped; checkpoint_step_23.pt is saved, and the next run continues from it."


@dg.op
def at_work() -> None:
    with explained(stopped=SAVED):
        raise KeyboardInterrupt  # as Ctrl+C does there


@dg.op
def between_steps() -> None:
    raise dg.DagsterExecutionInterruptedError  # as Dagster does outside the step's own code


@dg.op
def dying() -> None:
    os._exit(9)  # as a process ends that the system kills: without a word


@dg.op
def told_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as before Dagster's handler is there
    os.kill(os.getpid(), signal.SIGTERM)


@dg.job(executor_def=stoppable(dg.multiprocess_executor))
def dying_job() -> None:
    dying()


@dg.job(executor_def=stoppable(dg.multiprocess_executor))
def told_to_end_job() -> None:
    told_to_end()


@dg.op(pool="closed")
def waiting() -> None:
    """Waits for a place."""


@dg.op(pool="closed")
def waiting_too() -> None:
    """Waits for the same place."""


@dg.job(executor_def=stoppable(dg.multiprocess_executor))
def waiting_job() -> None:
    waiting()
    waiting_too()


@dg.job(executor_def=stoppable(dg.multiprocess_executor))
def one_of_each_job() -> None:
    told_to_end()
    dying()


@dg.graph
def working() -> None:
    at_work()


@dg.graph
def beginning() -> None:
    between_steps()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def _execute(
    instance: dg.DagsterInstance, graph: dg.GraphDefinition, tags: dict[str, str] | None = None
) -> tuple[dg.DagsterRunStatus, list[DagsterEvent]]:
    """Return how a run of the graph ends, and its events."""
    job = graph.to_job(executor_def=stoppable(dg.in_process_executor))
    run = instance.create_run_for_job(job, tags=tags)
    events = list(execute_run_iterator(InMemoryJob(job), run, instance))
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    return ended.status, events


def _cancellation(events: list[DagsterEvent]) -> DagsterEvent:
    (event,) = (event for event in events if event.event_type == dg.DagsterEventType.RUN_CANCELED)
    return event


def test_run_whose_steps_wait_for_a_place_keeps_no_core_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[float] = []
    next_steps = ActiveExecution.get_steps_to_execute

    def counted(self: ActiveExecution, *arguments: Any, **options: Any) -> list[ExecutionStep]:
        rounds.append(time.monotonic())
        if rounds[-1] - rounds[0] > 1:
            raise KeyboardInterrupt
        return next_steps(self, *arguments, **options)

    monkeypatch.setattr(ActiveExecution, "get_steps_to_execute", counted)
    pools = {"concurrency": {"pools": {"default_limit": 0, "granularity": "op"}}}
    with dg.instance_for_test(overrides=pools) as instance:
        instance.event_log_storage.set_concurrency_slots("closed", 0)
        with dg.execute_job(dg.reconstructable(waiting_job), instance) as result:
            assert result.dagster_run.status == CANCELED
    assert 2 < len(rounds) < 100  # thousands without a pause


def test_run_whose_step_is_killed_says_so_in_plain_words_and_so_does_status() -> None:
    job, tags = dg.reconstructable(dying_job), {EXPERIMENT_TAG: "tiny"}
    with dg.instance_for_test() as instance, dg.execute_job(job, instance, tags=tags) as result:
        (event,) = (event for event in result.all_events if event.is_step_failure)
        failure = last_failure(Project.here(), "tiny")
    assert failure_text(event) == f"dying: {CRASHED}"
    assert failure is not None
    assert failure.text == failure_text(event)


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes there")
def test_run_of_whose_steps_one_is_told_to_end_and_another_crashes_has_failed() -> None:
    job, tags = dg.reconstructable(one_of_each_job), {EXPERIMENT_TAG: "tiny"}
    with dg.instance_for_test() as instance, dg.execute_job(job, instance, tags=tags) as result:
        failure = last_failure(Project.here(), "tiny")
    assert not result.success
    assert not [event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_CANCELED]
    assert failure is not None
    assert failure.text == f"dying: {CRASHED}"


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes there")
def test_run_whose_step_is_told_to_end_before_it_heeds_signals_is_canceled() -> None:
    job = dg.reconstructable(told_to_end_job)
    with dg.instance_for_test() as instance, dg.execute_job(job, instance) as result:
        error = _cancellation(list(result.all_events)).job_canceled_data.error
    assert error is not None
    assert error.message == STOPPED


def test_run_stopped_within_a_step_is_canceled_and_says_what_is_saved_without_a_traceback(
    instance: dg.DagsterInstance,
) -> None:
    status, events = _execute(instance, working)
    assert status == CANCELED
    (failure,) = (event.step_failure_data.error for event in events if event.is_step_failure)
    error = _cancellation(events).job_canceled_data.error
    for shown in (failure, error):
        assert shown is not None
        assert (shown.message, list(shown.stack), shown.cause, shown.context) == (SAVED, [], None, None)


@pytest.mark.parametrize("graph", [working, beginning])
def test_stopped_run_is_the_last_one_so_that_an_earlier_failure_is_shown_no_more(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: dg.GraphDefinition
) -> None:
    monkeypatch.chdir(tmp_path)
    project = Project.here()
    project.history.mkdir()
    note_failure(project, "tiny", job=graph.name, text="the disk is full")
    note_failure(project, "other", job=graph.name, text="the disk is full")
    assert _execute(instance, graph, {EXPERIMENT_TAG: "tiny"})[0] == CANCELED
    assert (last_failure(project, "tiny"), last_failure(project, "other") is None) == (None, False)


def test_run_stopped_outside_our_code_is_canceled_too(instance: dg.DagsterInstance) -> None:
    status, events = _execute(instance, beginning)
    assert status == CANCELED
    error = _cancellation(events).job_canceled_data.error
    assert error is not None
    assert (error.message, list(error.stack)) == (STOPPED, [])
    assert str(_problem(events)) == STOPPED  # what the command says, and not the name of Dagster's exception


def test_run_that_dagster_retries_still_fails_at_a_signal_unless_it_is_never_to_be_retried() -> None:
    retried = {"run_retries": {"enabled": True, "max_retries": 2}}
    with dg.DagsterInstance.ephemeral(settings=retried) as instance:
        assert _execute(instance, working)[0] == FAILED
        assert _execute(instance, working, {MAX_RETRIES_TAG: NEVER})[0] == CANCELED


def test_run_of_an_experiment_is_seen_while_it_is_executed(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project, seen = Project(root=tmp_path, experiments=tmp_path), []

    @dg.op
    def look() -> None:
        seen.extend(runs_at_work(project, "tiny"))

    @dg.graph
    def looking() -> None:
        look()

    _execute(instance, looking, {EXPERIMENT_TAG: "tiny"})
    assert [run.job for run in seen] == ["looking"]
    assert runs_at_work(project, "tiny") == []


def test_run_of_assets_picked_by_hand_is_seen_and_makes_up_for_a_failure_of_their_experiments(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project, seen = Project(root=tmp_path, experiments=tmp_path), []
    project.history.mkdir()
    for name in ("one", "two"):
        note_failure(project, name, job=f"run_{name}", text="the disk is full")

    @dg.asset(key=["one", "training"])
    def training() -> None:
        seen.extend([*runs_at_work(project, "one"), *runs_at_work(project, "two")])

    @dg.asset(key=["two", "evaluation"])
    def evaluation() -> None:
        pass

    definitions = dg.Definitions([training, evaluation], executor=stoppable(dg.in_process_executor))
    job = definitions.resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, asset_selection=frozenset([training.key, evaluation.key]))
    list(execute_run_iterator(InMemoryJob(job), run, instance))
    assert [run.job for run in seen] == ["run_one", "evaluate_two"]
    assert last_failure(project, "one") is None
    assert last_failure(project, "two") is not None


def test_explained_says_that_what_is_finished_is_kept_where_nothing_better_is_known() -> None:
    with pytest.raises(dg.DagsterExecutionInterruptedError, match=STOPPED), explained():
        raise KeyboardInterrupt


def _started(instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> dg.DagsterRun:
    return instance.create_run_for_job(working.to_job(), status=STARTED, tags=tags)


def test_command_is_interrupted_once_its_run_is_to_be_terminated(instance: dg.DagsterInstance) -> None:
    run = _started(instance)
    instance.report_run_canceling(run)  # not in the block: an interrupt inside of SQLAlchemy may be swallowed there

    def work() -> None:
        with heed_termination(instance, run.run_id, every=0.01):
            time.sleep(0.2)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as Dagster's handlers come and go
            while True:
                time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a command that a shell started in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


def test_command_goes_on_while_its_run_is_to_go_on_and_leaves_no_thread(instance: dg.DagsterInstance) -> None:
    before = threading.active_count()
    with heed_termination(instance, _started(instance).run_id, every=0.01):
        time.sleep(0.05)
    assert threading.active_count() == before


def test_terminate_on_the_pages_reaches_the_run_of_a_command(instance: dg.DagsterInstance) -> None:
    class Launcher(dg.DefaultRunLauncher):
        def terminate(self, run_id: str) -> bool:
            return False

    instance._run_launcher = launcher = Launcher()  # type: ignore[assignment]
    reach_commands(instance)
    process = json.dumps({"host": "here", "pid": 1})
    of_a_command = _started(instance, {PROCESS_TAG: process})
    launched = _started(instance, {PROCESS_TAG: process, GRPC_INFO_TAG: "{}"})
    assert launcher.terminate(of_a_command.run_id)
    assert not launcher.terminate(launched.run_id)
    states = [instance.get_run_by_id(run.run_id) for run in (of_a_command, launched)]
    assert [run.status for run in states if run] == [CANCELING, STARTED]

"""Executors whose runs end as canceled, with one line, when the user stops them.

Dagster itself calls a run canceled only if its pages were asked to terminate it; after Ctrl+C it shows a failure.
Either way it records the tracebacks of its own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import dagster as dg
from dagster._core.errors import DagsterSubprocessError
from dagster._core.events import DagsterEvent
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster._core.storage.tags import MAX_RETRIES_TAG

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import at_work
from gpt_pipeline.orchestration.failures import (
    STOPPED,
    StoppedRunError,
    crash_by_a_stop,
    failure_text,
    is_crash,
    is_stop,
    stop_text,
)
from gpt_pipeline.orchestration.pool_wait import pause_between_rounds
from gpt_pipeline.progress.at_work import show_run
from gpt_pipeline.progress.failures import forget_failure, note_failure
from gpt_pipeline.project import Project

NEVER = "0"
"""For `dagster/max_retries`: Dagster never starts the run again."""


def stoppable(definition: dg.ExecutorDefinition, experiments: Sequence[Experiment] = ()) -> dg.ExecutorDefinition:
    """Return the executor with the same name and configuration whose runs are stopped as described above.

    Its runs of `experiments` show that their process is alive; those of a command show it themselves.
    """
    pause_between_rounds()
    create = definition.executor_creation_fn
    assert create is not None

    def create_stoppable(context: InitExecutorContext) -> Executor:
        return _Stoppable(create(context), experiments)

    return dg.ExecutorDefinition(
        name=definition.name,
        config_schema=definition.config_schema,  # type: ignore[arg-type] # taken as it is
        requirements=definition.get_requirements,
        executor_creation_fn=create_stoppable,
        description=definition.description,
    )


class _Stoppable(Executor):
    def __init__(self, inner: Executor, experiments: Sequence[Experiment]) -> None:
        self._inner = inner
        self._experiments = experiments

    @property
    def retries(self) -> RetryMode:
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._inner.step_dependency_config

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        """Execute the steps as the inner executor does; the run's tag and `status` tell that this process does it."""
        run, warn = plan_context.dagster_run, plan_context.log.warning
        with ExitStack() as shown:
            shown.enter_context(at_work(plan_context.instance, run, self._experiments, warn=warn))
            for name, job in keys.jobs_of(run).items():
                shown.enter_context(show_run(Project.here(), run=run.run_id, job=job, experiment=name))
            yield from self._execute(plan_context, execution_plan)

    def _execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        texts: list[str] = []
        failures: list[str] = []
        asked_to_stop: set[str | None] = set()  # steps whose process ended by that
        try:
            for event in self._inner.execute(plan_context, execution_plan):
                if (by_a_stop := crash_by_a_stop(event)) is not None:
                    (asked_to_stop.add if by_a_stop else asked_to_stop.discard)(event.step_key)
                if event.is_step_failure:
                    error = event.step_failure_data.error
                    if error is not None and is_stop(error):
                        texts.append(stop_text(error))
                    elif error is None or not is_crash(error) or event.step_key not in asked_to_stop:
                        failures.append(failure_text(event))
                yield event
            _note_end(plan_context.dagster_run, failures)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as stop:
            text = str(stop) if isinstance(stop, StoppedRunError) else texts[0] if texts else STOPPED
        except DagsterSubprocessError as ended:
            infos = ended.subprocess_error_infos
            if failures or not all(is_stop(info) or is_crash(info) for info in infos):
                _note_end(plan_context.dagster_run, failures or [info.message.strip() for info in infos])
                raise
            text = texts[0] if texts else STOPPED
        else:
            return
        if not failures:
            _note_end(plan_context.dagster_run, [])  # the last run is this one, and it did not fail
        _report_stop(plan_context.instance, plan_context.run_id)
        raise StoppedRunError(text)


def _note_end(run: dg.DagsterRun, failures: Sequence[str]) -> None:
    """Note for `gpt-pipeline status` what the run of an experiment failed of, or that such a run did not fail."""
    project = Project.here()
    if not failures:
        for name, jobs in keys.ended_well(run).items():
            forget_failure(project, name, jobs=jobs)
        return
    for name, job in keys.jobs_of(run).items():
        note_failure(project, name, job=job, text="\n".join(failures))


def _report_stop(instance: dg.DagsterInstance, run_id: str) -> None:
    """Tell Dagster that the run was stopped on request, unless it knows, or is to start the run again."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
        return
    again = instance.run_will_resume(run_id) or instance.run_retries_enabled
    if not again or run.tags.get(MAX_RETRIES_TAG) == NEVER:
        instance.report_run_canceling(run, message="Asked to stop by a signal, such as Ctrl+C sends.")

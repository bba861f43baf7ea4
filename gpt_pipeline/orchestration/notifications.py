"""Sensors that tell the project's addresses how a run ended, once a run; none where there are no addresses.

A run of a command tells of itself, unless it was killed.
"""

import os
from collections.abc import Mapping, Sequence

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.notify.addresses import VARIABLE, find_addresses
from gpt_pipeline.notify.message import Ending, Message, message_of
from gpt_pipeline.notify.send import tell
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import DEAD_TAG
from gpt_pipeline.orchestration.failures import failure_text
from gpt_pipeline.project import NOTIFY_CONFIG, Project

_ENDINGS: Mapping[dg.DagsterRunStatus, Ending] = {
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "stopped",
    dg.DagsterRunStatus.SUCCESS: "finished",
}


def notification_sensors(project: Project, experiments: Sequence[Experiment]) -> list[dg.SensorDefinition]:
    """Return a sensor for each way in which a run ends; none where the project has no addresses.

    An address that cannot be used fails the sensor's ticks, whose error says why, and not the definitions.
    """
    if VARIABLE not in os.environ and not (project.root / NOTIFY_CONFIG).is_file():
        return []
    return [_sensor(project, experiments, status) for status in _ENDINGS]


def _sensor(project: Project, experiments: Sequence[Experiment], status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    ending = _ENDINGS[status]

    @dg.run_status_sensor(
        run_status=status,
        name=f"notify_{ending}",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells the addresses in {NOTIFY_CONFIG} of each run that has {ending}.",
    )
    def notify(context: dg.RunStatusSensorContext) -> dg.SkipReason | None:
        find_addresses(project)  # raises, so that the tick shows what is wrong with them
        message = run_message(context.instance, context.dagster_run, experiments, ending)
        if message is None:
            return dg.SkipReason("This run is not one to tell of.")
        tell(project, message, say=context.log.warning)
        return None

    return notify


def run_message(
    instance: dg.DagsterInstance, run: dg.DagsterRun, experiments: Sequence[Experiment], ending: Ending
) -> Message | None:
    """Return what is told of the run; None for one of no experiment, and where a command tells of it itself.

    Of those that ended well, only what was asked for: evaluations and reports come by themselves.
    """
    experiment = _experiment_of(run, experiments, ending)
    # A run that is repeated on the pages bears the tags of the first.
    tells_itself = keys.COMMAND_TAG in run.tags and DEAD_TAG not in run.tags and run.parent_run_id is None
    if experiment is None or tells_itself:
        return None
    record = instance.get_run_record_by_id(run.run_id)
    times = (record.start_time, record.end_time) if record is not None else (None, None)
    seconds = times[1] - times[0] if times[0] is not None and times[1] is not None else None
    problem = _problem(instance, run) if ending == "failed" else ""
    return message_of(experiment, ending, seconds=seconds, problem=problem, what=f"Dagster run {run.run_id[:8]}")


def _experiment_of(run: dg.DagsterRun, experiments: Sequence[Experiment], ending: Ending) -> Experiment | None:
    """Return the first experiment to tell of, of the run's job or of the assets that it was asked for."""
    names = {run.tags.get(keys.EXPERIMENT_TAG), *(key.path[0] for key in run.asset_selection or ())}
    jobs = keys.jobs_of(run)

    def follows(each: Experiment) -> bool:
        return jobs.get(each.name) in (keys.evaluate_job(each), keys.report_job(each))

    concerned = [each for each in experiments if each.name in names]
    return next((each for each in concerned if ending != "finished" or not follows(each)), None)


def _problem(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return what the failed steps say; where none did, what ended the run."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    found = [entry.dagster_event for entry in instance.all_logs(run.run_id, of_type=kinds)]
    events = [event for event in found if event is not None]
    steps = [failure_text(event) for event in events if event.is_step_failure]
    return "\n".join(steps or [event.message or "" for event in events])

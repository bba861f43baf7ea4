"""What acts by itself: a sensor for checkpoints without an evaluation, a schedule for outdated evaluations.

Both read the folders anew each time and keep no cursor, so a restarted daemon does not matter, nor a changed clock once
Dagster asks them again (`dagster_server` sees to that); what is requested twice is still evaluated once. They read the
experiment file anew too, which may have changed since the definitions were loaded, as the command line and each run do:
else a checkpoint would be evaluated by the old settings and by the new ones, and be requested again and again.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.dead_runs import close_dead_runs, requester_tag
from gpt_pipeline.orchestration.history import UNFINISHED, is_under_way
from gpt_pipeline.orchestration.pool_wait import assign_free_places
from gpt_pipeline.orchestration.training_log import MlflowUpkeep
from gpt_pipeline.progress.evaluations import WantedEvaluation, pending_evaluations
from gpt_pipeline.progress.report import report_fingerprint, report_is_outdated
from gpt_pipeline.project import Project
from gpt_pipeline.shown import in_markdown

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_logger = logging.getLogger(__name__)

_SENSOR_SECONDS = 15
_MAX_ATTEMPTS = 3
_ATTEMPTS_WITHIN = timedelta(hours=6)  # what failed too often is tried again after so long


def new_checkpoints_sensor(
    loaded: Experiment,
    *,
    evaluate: "UnresolvedAssetJobDefinition",
    report: "UnresolvedAssetJobDefinition",
    tracking_uri: str,
) -> dg.SensorDefinition:
    """Return the sensor that requests the evaluation of each new checkpoint and, when all are done, a new report.

    It also takes care of runs whose process died, of those that wait for a place that is free, and of what MLflow did
    not receive, or lost.
    """

    mlflow = MlflowUpkeep(loaded)

    @dg.sensor(
        name=f"new_checkpoints_{loaded.name}",
        jobs=[evaluate, report],
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=_SENSOR_SECONDS,
        description=f"{in_markdown(loaded.display_name)}: evaluates each new checkpoint in the folder, wherever "
        "it came from.",
    )
    def new_checkpoints(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            experiment = load_experiment(loaded.file)  # as the runs will
        except UserError as error:
            return dg.SkipReason(str(error))
        if not experiment.folder.root.is_dir():
            return dg.SkipReason("Training has not started.")
        for run_id in close_dead_runs(context.instance, [experiment]):
            context.log.warning(f"Run {run_id} is marked as failed: its process is gone.")
        assign_free_places(context.instance, Project.of_experiments(loaded.file.parent), keys.POOLS)
        mlflow.look(tracking_uri, say=_logger.warning)
        announce_evaluator(experiment.folder.root)
        pending = pending_evaluations(experiment)
        new = [evaluation for evaluation in pending if evaluation.state == "missing"]
        requests = list(_evaluation_requests(context.instance, experiment, new))
        if not requests and _wants_report(context.instance, experiment, pending):
            requests.extend(_report_request(context.instance, experiment))
        if not requests:
            return dg.SkipReason(f"No new checkpoint; {len(new)} under evaluation or given up.")
        return _with_partitions(experiment, new, requests)

    return new_checkpoints


def reevaluation_schedule(loaded: Experiment, *, evaluate: "UnresolvedAssetJobDefinition") -> dg.ScheduleDefinition:
    """Return the nightly schedule that evaluates again where questions, settings or code of the evaluation changed."""

    @dg.schedule(
        name=f"reevaluate_{loaded.name}",
        cron_schedule="0 3 * * *",
        job=evaluate,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{in_markdown(loaded.display_name)}: evaluates checkpoints again whose evaluation is out of date.",
    )
    def reevaluate(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        try:
            experiment = load_experiment(loaded.file)  # as the runs will
        except UserError as error:
            return dg.SkipReason(str(error))
        outdated = [evaluation for evaluation in pending_evaluations(experiment) if evaluation.state == "outdated"]
        partitions = [evaluation.partition for evaluation in outdated]
        keys.add_checkpoint_partitions(context.instance, experiment, partitions)
        tick = context.scheduled_execution_time.isoformat()
        requests = list(_evaluation_requests(context.instance, experiment, outdated, tick=tick))
        return requests or dg.SkipReason("Every evaluation is up to date.")

    return reevaluate


def _evaluation_requests(
    instance: dg.DagsterInstance,
    experiment: Experiment,
    pending: Iterable[WantedEvaluation],
    *,
    tick: str | None = None,
) -> Iterable[dg.RunRequest]:
    """Yield a request for each evaluation that is neither under way nor has failed too often.

    A schedule gives its `tick`: Dagster wants a key of each of several runs, and launches a key once.
    """
    for evaluation in pending:
        job, tags = keys.evaluate_job(experiment), {keys.EVALUATION_TAG: evaluation.fingerprint}
        if _may_be_requested(instance, job, tags):
            yield dg.RunRequest(
                run_key=f"{evaluation.fingerprint}@{tick}" if tick else None,
                job_name=job,
                partition_key=evaluation.partition,
                tags={**tags, **requester_tag()},
            )


def _report_request(instance: dg.DagsterInstance, experiment: Experiment) -> Iterable[dg.RunRequest]:
    """Yield the request for the report of what there is to show now, unless that one has failed too often."""
    job, tags = keys.report_job(experiment), {keys.REPORT_TAG: report_fingerprint(experiment)}
    if _may_be_requested(instance, job, tags):
        yield dg.RunRequest(job_name=job, tags={**tags, **requester_tag()})


def _may_be_requested(instance: dg.DagsterInstance, job: str, tags: Mapping[str, str]) -> bool:
    """Whether no run of the job with the tags is under way, and none too many have failed.

    Another experiment may have the same weights, and so the same fingerprints.
    """
    since = datetime.now(UTC) - _ATTEMPTS_WITHIN
    under_way = instance.get_runs_count(dg.RunsFilter(job_name=job, tags=tags, statuses=list(UNFINISHED)))
    failed = dg.RunsFilter(job_name=job, tags=tags, statuses=[dg.DagsterRunStatus.FAILURE], created_after=since)
    return not under_way and instance.get_runs_count(failed) < _MAX_ATTEMPTS


def _wants_report(instance: dg.DagsterInstance, experiment: Experiment, pending: list[WantedEvaluation]) -> bool:
    """Whether the report is to be written now, when nothing is requested: all is evaluated, or was given up.

    An outdated evaluation is not given up: it is made again tonight, and the report follows.
    """
    given_up = all(evaluation.state == "missing" for evaluation in pending)
    busy = any(is_under_way(instance, job(experiment)) for job in (keys.evaluate_job, keys.report_job))
    return given_up and not busy and report_is_outdated(experiment) and _has_data(experiment)


def _has_data(experiment: Experiment) -> bool:
    """Whether the data is made that the file describes now: a report says something of no other."""
    from gpt_pipeline.data.tokens.choose import known_shards  # numpy

    return known_shards(experiment.data, experiment.data_folder) is not None


def _with_partitions(
    experiment: Experiment, pending: Iterable[WantedEvaluation], requests: list[dg.RunRequest]
) -> dg.SensorResult:
    """Return the requests with the partitions they need; existing ones stay as they are."""
    partitions = [evaluation.partition for evaluation in pending]
    add = keys.checkpoint_partitions(experiment).build_add_request(partitions)
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=[add])

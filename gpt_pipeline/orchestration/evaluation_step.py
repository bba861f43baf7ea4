"""One materialization of `evaluation`: evaluate one checkpoint and log it to MLflow once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, checkpoint_step, find_checkpoint
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.evaluate import CheckpointGoneError, EvaluatedPart, EvaluationTask, evaluate_checkpoint
from gpt_pipeline.evaluation.result import BEST_ALIAS, EvaluationResult, alias_of, best_weights
from gpt_pipeline.evaluation.shares import right_by_kind, share_of
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import send_to_mirror
from gpt_pipeline.experiment.training import pretraining_of
from gpt_pipeline.mirror.order import is_sending
from gpt_pipeline.orchestration.dead_runs import REQUESTER_TAG
from gpt_pipeline.orchestration.history import UNFINISHED
from gpt_pipeline.orchestration.stages import finished_documents, finished_shards
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.orchestration.training_log import catch_up
from gpt_pipeline.progress.evaluations import mark_logged, prune_at_rest
from gpt_pipeline.progress.outcome import result_text
from gpt_pipeline.progress.tracking import forget_lost_runs
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.lock import remove_abandoned
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.storage.process import give_way
from gpt_pipeline.tracking.dataset import dataset_of
from gpt_pipeline.tracking.tables import answers_as_markdown, continuations_as_markdown, kinds_as_markdown
from gpt_pipeline.tracking.tags import experiment_tags
from gpt_pipeline.training.heartbeat import trainer_state

if TYPE_CHECKING:
    from gpt_pipeline.tracking.store import LoggedRun

_TEXTS_SHOWN = 3  # Dagster shows them in a window no higher than the page


def evaluate_partition(
    context: dg.AssetExecutionContext,
    experiment: Experiment,
    mlflow: MlflowTracking,
    *,
    settings: EvaluationConfig,
    force: bool,
) -> Iterator[dg.MaterializeResult]:
    """Evaluate the partition's checkpoint, or find that done; if it is gone, yield nothing and log the reason."""
    if multiprocessing.parent_process() is not None:  # a step with its own process gives way to a training
        give_way()
    try:
        checkpoint = _find_checkpoint(experiment, context.partition_key)
        task = EvaluationTask(
            checkpoint=checkpoint,
            shards=finished_shards(experiment),
            parts=evaluated_parts(experiment),
            config=settings,
            max_length=experiment.config.data.max_length,
            device=experiment.config.hardware.device_here,
            folder=experiment.folder.evaluations,
            base=_other_shards(experiment),
        )
        for folder in (experiment.folder.evaluations, experiment.folder.logged_evaluations):
            remove_abandoned(folder)
        result = evaluate_checkpoint(task, force=force)
    except CheckpointGoneError as gone:
        context.log.warning(f"Skipped: {gone}")
        return
    if result.reused:
        context.log.info(f"Nothing to do: {checkpoint.path.name} is already evaluated with the same settings.")
    else:
        context.log.info(f"{checkpoint.path.name}: {result_text(result)}")
    run = log_result(context, experiment, mlflow.tracking_uri, result)
    if _is_daemons_alone(context) and not is_sending(experiment.folder):  # what is being copied stays until then
        prune_at_rest(experiment, say=context.log.info)
    send_to_mirror(experiment)
    yield dg.MaterializeResult(
        metadata={
            **_findings(result, alias=alias_of(result, best_checkpoint(experiment.folder.checkpoints))),
            **mlflow.links(experiment_id=run.experiment_id, run_id=run.run_id),
            "result": dg.MetadataValue.path(str(result.path)),
            "already_finished": result.reused,
        },
        data_version=dg.DataVersion(result.fingerprint),
    )


def _is_daemons_alone(context: dg.AssetExecutionContext) -> bool:
    """Whether the sensor or the schedule requested this evaluation, and each other one that is not over.

    A person may have more checkpoints evaluated than those that need it, one after the other.
    """
    runs = context.instance.get_runs(dg.RunsFilter(statuses=list(UNFINISHED)))
    evaluations = [context.run, *(run for run in runs if PARTITION_NAME_TAG in run.tags)]
    return all(REQUESTER_TAG in run.tags for run in evaluations)


def evaluated_parts(experiment: Experiment) -> tuple[EvaluatedPart, ...]:
    """Return the finished data that an evaluation measures by itself.

    Raises:
        DataError: some of it is not finished.
    """
    return tuple(
        EvaluatedPart(
            name=name,
            share=experiment.config.data.shares[name],
            shards=finished_shards(part),
            documents=finished_documents(part),
            data=part.data,
        )
        for name, part in sorted(experiment.parts.items())
    )


def pretraining_shards(experiment: Experiment) -> StageResult | None:
    """Return the shards of the pretraining that a post-training goes on from; None where they are not here."""
    from gpt_pipeline.data.tokens.choose import find_shards

    pretraining = pretraining_of(experiment)
    if pretraining is None or pretraining.file == experiment.file:
        return None
    return find_shards(pretraining.data, pretraining.data_folder)


def _other_shards(experiment: Experiment) -> StageResult | None:
    """Return the same; None where its own shards are those."""
    shards = pretraining_shards(experiment)
    return None if shards is None or shards.fingerprint == finished_shards(experiment).fingerprint else shards


def _find_checkpoint(experiment: Experiment, partition: str) -> CheckpointInfo:
    folder = experiment.folder.checkpoints
    checkpoint = find_checkpoint(folder, checkpoint_step(partition))
    if checkpoint is None:
        raise CheckpointGoneError(
            f"there is no checkpoint of {partition} in {folder}; only the last checkpoints are kept"
        )
    return checkpoint


def log_result(
    context: dg.AssetExecutionContext, experiment: Experiment, tracking_uri: str, result: EvaluationResult
) -> LoggedRun:
    """Log the result to MLflow and note that it is there; make pending what MLflow lacks otherwise.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    from gpt_pipeline.tracking.mlflow_tracker import log_evaluation

    weights, training = (str(result.checkpoint[name]) for name in ("weights_sha256", "training_fingerprint"))
    best = best_weights(best_checkpoint(experiment.folder.checkpoints), training_fingerprint=training)

    def look_for_lost_runs() -> None:
        if lost := forget_lost_runs(experiment, tracking_uri):
            context.log.warning(f"MLflow has lost {counted(lost, 'evaluation')}, to be logged again next.")

    run = log_evaluation(
        result,
        tracking_uri=tracking_uri,
        experiment_name=experiment.display_name,
        parameters=experiment.config.as_values(),
        tags=experiment_tags(experiment),
        run_tags={"dagster_run_id": context.op_execution_context.run_id},
        dataset=dataset_of(experiment, finished_shards(experiment)),
        best_weights=best,
        if_unknown=look_for_lost_runs,  # single runs that somebody deleted are left to the sensor and the next command
    )
    mark_logged(experiment.folder, result, run_id=run.run_id, alias=BEST_ALIAS if best == weights else None)
    context.log.debug(f"{result.key}: MLflow run {run.run_id}" + ("" if run.new else ", logged before"))
    # MLflow works now: send what it lacks of a training that is over.
    if trainer_state(experiment.folder.root) != "running":
        catch_up(experiment, tracking_uri, say=context.log.warning)
    return run


def _findings(result: EvaluationResult, *, alias: str | None) -> dict[str, Any]:
    """Return step and metrics as numbers, which the UI plots, and some answers or continuations to read."""
    overall = {name: round(value, 4) for name, value in result.metrics.items() if "/" not in name}
    metadata: dict[str, Any] = {"step": result.step, **({} if alias is None else {"alias": alias})}
    if (right := share_of(result.answers, "correct")) is not None:
        metadata["right_answers"] = f"{right.successes} of {right.total}: {right}, a 95 % interval"
    metadata |= overall
    if result.answers:
        shown = result.answers[:_TEXTS_SHOWN]
        title = f"{len(shown)} of {counted(len(result.answers), 'answer')} at step {result.step:,}"
        metadata["answers"] = dg.MetadataValue.md(answers_as_markdown(shown, title=title))
    if result.continuations:
        shown = result.continuations[:_TEXTS_SHOWN]
        title = f"{len(shown)} of {counted(len(result.continuations), 'continuation')} at step {result.step:,}"
        metadata["continuations"] = dg.MetadataValue.md(continuations_as_markdown(shown, title=title))
    if (table := kinds_as_markdown(result.metrics, right_by_kind(result))) is not None:
        metadata["by_kind"] = dg.MetadataValue.md(table)
    return {**metadata, "seconds": result.seconds}

"""One materialization of `evaluation`: judge one checkpoint and log it to MLflow once."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_step, find_checkpoint
from gpt_pipeline.evaluation.alias import BEST_ALIAS, alias_of, best_weights
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.evaluate import CheckpointGoneError, evaluate_checkpoint
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.dead_runs import note_process
from gpt_pipeline.orchestration.pending import forget_lost_runs, mark_logged
from gpt_pipeline.orchestration.stages import finished_english, finished_shards
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.orchestration.training_log import catch_up
from gpt_pipeline.storage.process import give_way
from gpt_pipeline.tracking.tables import answers_as_markdown
from gpt_pipeline.training.heartbeat import trainer_state

if TYPE_CHECKING:
    from gpt_pipeline.tracking.mlflow_tracker import LoggedRun

_ANSWERS_SHOWN = 5


def evaluate_partition(
    context: dg.AssetExecutionContext,
    experiment: Experiment,
    mlflow: MlflowTracking,
    *,
    settings: EvaluationConfig,
    force: bool,
) -> Iterator[dg.MaterializeResult]:
    """Evaluate the partition's checkpoint, or find that done; yields nothing, with the reason said, if it is gone."""
    if multiprocessing.parent_process() is not None:  # a step with a process of its own: a training comes first
        give_way()
    note_process(context.instance, context.run)
    try:
        checkpoint = _find_checkpoint(experiment, context.partition_key)
        result = evaluate_checkpoint(
            checkpoint.path,
            shards=finished_shards(experiment),
            english=finished_english(experiment),
            data=experiment.data,
            config=settings,
            max_length=experiment.config.data.max_length,
            device=experiment.config.hardware.device,
            folder=experiment.folder.evaluations,
            force=force,
        )
    except CheckpointGoneError as gone:
        context.log.warning(f"Skipped: {gone}")
        return
    if result.reused:
        context.log.info(f"Nothing to do: {checkpoint.path.name} was evaluated before with the same questions.")
    run = _log(context, experiment, mlflow.tracking_uri, result)
    yield dg.MaterializeResult(
        metadata={
            **_links(run, mlflow.tracking_uri, result),
            **_findings(result),
            "alias": alias_of(result, experiment.folder.checkpoints) or "",
        },
        data_version=dg.DataVersion(result.fingerprint),
    )


def _find_checkpoint(experiment: Experiment, partition: str) -> CheckpointInfo:
    folder = experiment.folder.checkpoints
    checkpoint = find_checkpoint(folder, checkpoint_step(partition))
    if checkpoint is None:
        raise CheckpointGoneError(f"there is no checkpoint of {partition} in {folder}; only the last ones are kept")
    return checkpoint


def _log(
    context: dg.AssetExecutionContext, experiment: Experiment, tracking_uri: str, result: EvaluationResult
) -> LoggedRun:
    from gpt_pipeline.tracking.mlflow_tracker import log_evaluation

    weights, training = (str(result.checkpoint[name]) for name in ("weights_sha256", "training_fingerprint"))
    best = best_weights(experiment.folder.checkpoints, training_fingerprint=training)
    run = log_evaluation(
        result,
        tracking_uri=tracking_uri,
        experiment_name=experiment.display_name,
        parameters=dataclasses.asdict(experiment.config),
        tags={"dagster_run_id": context.run_id, "experiment_file": experiment.file.name},
        best_weights=best,
    )
    mark_logged(experiment.folder, result, run_id=run.run_id, alias=BEST_ALIAS if best == weights else None)
    context.log.info(f"{result.key}: MLflow run {run.run_id}" + ("" if run.new else ", logged before"))
    # MLflow works: a good moment to see whether it lost others, and for what it may lack of a training that is over.
    if run.new and (lost := forget_lost_runs(experiment, tracking_uri)):
        context.log.warning(f"{lost} evaluations are not in MLflow any more; they are logged again next.")
    if trainer_state(experiment.folder.root) != "running":
        catch_up(experiment, tracking_uri, say=context.log.warning)
    return run


def _links(run: LoggedRun, tracking_uri: str, result: EvaluationResult) -> dict[str, Any]:
    # A database has no pages; `mlflow ui` serves it here unless told otherwise.
    server = tracking_uri.rstrip("/") if tracking_uri.startswith("http") else "http://127.0.0.1:5000"
    return {
        "mlflow_run": dg.MetadataValue.url(f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}"),
        "result": dg.MetadataValue.path(str(result.path)),
        "already_finished": result.reused,
    }


def _findings(result: EvaluationResult) -> dict[str, Any]:
    """Return step and metrics as numbers, so that the UI plots them, and some answers to read."""
    metrics = {name: round(value, 4) for name, value in result.metrics.items()}
    metadata: dict[str, Any] = {"step": result.step, **metrics, "seconds": result.seconds}
    if result.answers:
        metadata["answers"] = dg.MetadataValue.md(
            answers_as_markdown(result.answers[:_ANSWERS_SHOWN], title=result.key)
        )
    return metadata

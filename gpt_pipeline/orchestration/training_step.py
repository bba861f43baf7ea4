"""One materialization of `training`: start or continue the trainer, show what it reports."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_key, list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.plan import training_job
from gpt_pipeline.experiment.problems import ExperimentFileError
from gpt_pipeline.experiment.runtime import runtime_values, write_runtime
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.partitions import add_checkpoint_partitions
from gpt_pipeline.orchestration.stages import finished_shards
from gpt_pipeline.orchestration.trainer_launch import PROGRESS_DESCRIPTOR, train_in_child
from gpt_pipeline.orchestration.training_log import LogSender, catch_up, send_log
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.demand import find_finished_work
from gpt_pipeline.training.finished import FinishedTraining, find_finished_training
from gpt_pipeline.training.job import SCRATCH, TrainingJob


def train_experiment(
    context: dg.AssetExecutionContext, experiment: Experiment, *, tracking_uri: str, force: bool
) -> dg.MaterializeResult:
    """Train to the last step, or find that done; return what the UI shows of it."""
    shards = finished_shards(experiment)
    job = training_job(experiment, shards)
    if force:
        # A retry of the run asks for the same once more, and goes on with what the first attempt began.
        job = dataclasses.replace(job, resume=SCRATCH, request=context.run.root_run_id or context.run_id)
    _write_runtime(context, experiment, shards)
    finished = find_finished_work(job)
    if finished is None:
        finished = _train(context, experiment, job, tracking_uri)
    else:
        catch_up(experiment, tracking_uri, say=context.log.warning)
        context.log.info(f"Nothing to do: the training in {job.folder.root} reached its last step, {finished.step}.")
    report_checkpoints(context, experiment)
    return dg.MaterializeResult(
        metadata=_training_metadata(experiment, finished), data_version=dg.DataVersion(finished.fingerprint)
    )


def _train(
    context: dg.AssetExecutionContext, experiment: Experiment, job: TrainingJob, tracking_uri: str
) -> FinishedTraining:
    folder = job.folder
    job.write(folder.job)
    reporter = TrainerReporter(context, experiment)
    with LogSender(lambda: send_log(experiment, tracking_uri), say=context.log.warning) as sender:

        def receive(message: Mapping[str, Any]) -> None:
            sender.tell()
            reporter.receive(message)

        train_in_child(
            context,
            folder.job,
            folder.root / "trainer.log",
            processes=job.hardware.num_gpus,
            receive=receive,
        )
    finished = find_finished_training(folder, job.fingerprint)
    if finished is None:
        raise dg.Failure(
            description="The trainer was stopped before its last step and has saved a checkpoint; "
            "materialize training again to continue from it.",
            allow_retries=False,
        )
    return finished


def _write_runtime(context: dg.AssetExecutionContext, experiment: Experiment, shards: StageResult) -> None:
    try:
        write_runtime(experiment.file, runtime_values(experiment.config, shards.manifest.facts))
    except ExperimentFileError:
        raise
    except UserError as error:  # a read-only file, say: its block is for reading, the training does without
        context.log.warning(str(error))


class TrainerReporter:
    """Passes the trainer's messages on to Dagster: lines to the log, checkpoints as materializations."""

    def __init__(self, context: dg.AssetExecutionContext, experiment: Experiment) -> None:
        self._context = context
        self._experiment = experiment
        # The trainer's progress bar says the same on the terminal already.
        self._log = context.log.debug if PROGRESS_DESCRIPTOR in os.environ else context.log.info

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take one message of the trainer."""
        match message["kind"]:
            case "checkpoint":
                report_checkpoint(self._context, self._experiment, CheckpointInfo.from_json(message["checkpoint"]))
            case "message":
                self._log(message["text"])


def report_checkpoints(context: dg.AssetExecutionContext, experiment: Experiment) -> None:
    """Report those checkpoints on disk that Dagster's history does not know, as after it was deleted."""
    for checkpoint in list_checkpoints(experiment.folder.checkpoints):
        if not _is_known(context.instance, experiment, checkpoint):
            report_checkpoint(context, experiment, checkpoint)


def report_checkpoint(context: dg.AssetExecutionContext, experiment: Experiment, checkpoint: CheckpointInfo) -> None:
    """Make a partition of the checkpoint and materialize it, with the weights' hash as its data version."""
    key = checkpoint_key(checkpoint.step)
    add_checkpoint_partitions(context.instance, experiment, [key])
    context.log_event(
        dg.AssetMaterialization(
            asset_key=keys.asset_key(experiment, "checkpoint"),
            partition=key,
            description=f"{checkpoint.path.name} at step {checkpoint.step}",
            metadata={
                "step": checkpoint.step,
                "path": dg.MetadataValue.path(str(checkpoint.path)),
                "megabytes": round(checkpoint.size / 1e6, 3),
                "weights_sha256": checkpoint.weights_sha256,
                **{name: round(value, 4) for name, value in checkpoint.metrics.items() if value is not None},
            },
            tags={"dagster/data_version": checkpoint.weights_sha256},
        )
    )


def _is_known(instance: dg.DagsterInstance, experiment: Experiment, checkpoint: CheckpointInfo) -> bool:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=keys.asset_key(experiment, "checkpoint"), asset_partitions=[checkpoint_key(checkpoint.step)]
        ),
        limit=1,
    ).records
    if not records or records[0].asset_materialization is None:
        return False
    tags = records[0].asset_materialization.tags or {}
    return tags.get("dagster/data_version") == checkpoint.weights_sha256


def _training_metadata(experiment: Experiment, finished: FinishedTraining) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "folder": dg.MetadataValue.path(str(experiment.folder.root)),
        "fingerprint": finished.fingerprint,
        "step": finished.step,
        "final_val_loss": finished.val_loss,
        "uniform_loss": round(math.log(experiment.config.model.vocab_size), 4),
    }
    return metadata

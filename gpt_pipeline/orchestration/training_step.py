"""One materialization of `training`: start or continue the trainer, show what it reports."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_key, list_checkpoints
from gpt_pipeline.data.config import GPT2
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.launching import launcher_of, launcher_of_note
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.mirroring import mirror_order, send_to_mirror
from gpt_pipeline.experiment.problems import ExperimentFileError
from gpt_pipeline.experiment.runtime import runtime_values, write_runtime
from gpt_pipeline.experiment.sizes import size_on
from gpt_pipeline.experiment.start_from import StartNotReadyError
from gpt_pipeline.experiment.training import base_experiment, find_start, start_in_words, training_job
from gpt_pipeline.launchers.submission import require_no_job
from gpt_pipeline.mirror.order import state_for
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.failures import StoppedRunError
from gpt_pipeline.orchestration.metadata import picture_markdown
from gpt_pipeline.orchestration.remote_training import train_remotely
from gpt_pipeline.orchestration.stages import finished_shards
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.orchestration.trainer_launch import PROGRESS_DESCRIPTOR, train_in_child
from gpt_pipeline.orchestration.training_log import LogSender, catch_up, send_log
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.tracking.addresses import runs_page
from gpt_pipeline.tracking.training_run import logged_run, mlflow_experiment_id
from gpt_pipeline.training.decision import find_finished_work
from gpt_pipeline.training.finished import FinishedTraining, find_finished_training
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics


def train_experiment(
    context: dg.AssetExecutionContext, experiment: Experiment, mlflow: MlflowTracking, *, force: bool
) -> dg.MaterializeResult:
    """Train to the last step, or find that done; return what the UI shows of it."""
    from gpt_pipeline.progress.data_users import note_users  # numpy and pyarrow

    note_users([experiment], say=context.log.warning)
    experiment = with_its_start(experiment, say=context.log.info)
    shards = finished_shards(experiment)
    job = training_job(experiment, shards)
    job = dataclasses.replace(job, mirror=mirror_order(experiment, job.fingerprint))
    if force:
        # A retry of the run asks for the same once more, and goes on with what the first attempt began.
        job = dataclasses.replace(job, request=context.run.root_run_id or context.run.run_id)
    _write_runtime(context, experiment, shards)
    finished = find_finished_work(job)
    reused = finished is not None
    if finished is None:
        size = size_on(shards.folder, shards.manifest, experiment.config)
        finished = _train(context, experiment, job, mlflow, max_steps=size.layout.max_steps)
    else:
        catch_up(experiment, mlflow.tracking_uri, say=context.log.warning)
        send_to_mirror(experiment)
        context.log.info(f"Nothing to do: the training in {job.folder.root} reached its last step, {finished.step}.")
    report_checkpoints(context, experiment)
    return dg.MaterializeResult(
        metadata={
            **_results(experiment, finished),
            **_places(experiment, finished, mlflow),
            "already_finished": reused,
        },
        data_version=dg.DataVersion(finished.fingerprint),
    )


def _train(
    context: dg.AssetExecutionContext,
    experiment: Experiment,
    job: TrainingJob,
    mlflow: MlflowTracking,
    *,
    max_steps: int,
) -> FinishedTraining:
    folder = job.folder
    launcher = launcher_of(job.hardware)
    if launcher is None:
        require_no_job(folder, lambda note: launcher_of_note(job.hardware, note))
    else:
        report_checkpoints(context, experiment)  # of a job that went on while nobody followed it
    reporter = TrainerReporter(context, experiment)
    link = MlflowLink(folder, mlflow, say=context.log.info)
    link.tell()
    with LogSender(lambda: send_log(experiment, mlflow.tracking_uri), say=context.log.warning) as sender:

        def receive(message: Mapping[str, Any]) -> None:
            sender.tell()
            link.tell()
            reporter.receive(message)

        try:
            if launcher is None:
                job.write(folder.job)
                train_in_child(
                    context,
                    folder.job,
                    folder.root / "trainer.log",
                    processes=job.hardware.num_gpus,
                    receive=receive,
                )
            else:
                train_remotely(
                    job,
                    launcher,
                    run_id=context.run.run_id,
                    max_steps=max_steps,
                    receive=receive,
                    say=context.log.info,
                    tell_job=lambda text: context.instance.add_run_tags(context.run.run_id, {keys.JOB_TAG: text}),
                )
        except dg.DagsterExecutionInterruptedError:
            raise StoppedRunError(_what_is_saved(job)) from None
    finished = find_finished_training(folder, job.fingerprint)
    if finished is None:
        raise dg.Failure(
            description="The trainer was stopped before its last step and has saved a checkpoint; "
            "materialize training again to continue from it.",
            allow_retries=False,
        )
    return finished


def _what_is_saved(job: TrainingJob) -> str:
    """Return what a training that was stopped leaves, and what the next run makes of it."""
    saved = [each for each in list_checkpoints(job.folder.checkpoints) if each.fingerprint == job.fingerprint]
    if not saved:
        return "Stopped before the first step was done; nothing is saved, and the next run starts the training anew."
    return f"Stopped; {saved[-1].path.name} is saved, and the next run continues from it."


def with_its_start(experiment: Experiment, *, say: Say) -> Experiment:
    """Return the experiment read anew once weights and tokenizer are there that give the model's shape.

    Raises:
        UserError: another experiment has to be trained first.
    """
    if experiment.config.start_from is None:
        return experiment if experiment.data.tokenizer == GPT2 else load_experiment(experiment.file)
    if base_experiment(experiment) is None:
        from gpt_pipeline.exchange.import_model import convert_start  # torch

        convert_start(experiment, say=say)
    try:
        find_start(experiment)
    except StartNotReadyError as error:
        raise UserError(f"{error}; materialize its training first, or run: gpt-pipeline run") from error
    return load_experiment(experiment.file)


def _write_runtime(context: dg.AssetExecutionContext, experiment: Experiment, shards: StageResult) -> None:
    try:
        size = size_on(shards.folder, shards.manifest, experiment.config)
        write_runtime(experiment.file, runtime_values(experiment.config, shards.manifest.facts, size))
    except ExperimentFileError:
        raise
    except UserError as error:  # a read-only file, say: its block is for reading, the training does without
        context.log.warning(str(error))


class MlflowLink:
    """Says once where MLflow shows the training while it runs: as soon as MLflow has given it a number."""

    def __init__(self, folder: ExperimentFolder, mlflow: MlflowTracking, *, say: Say) -> None:
        self._folder = folder
        self._mlflow = mlflow
        self._say = say
        self._told = False

    def tell(self) -> None:
        """Say it, if it was not said and the number is known."""
        if not self._told and (number := mlflow_experiment_id(self._folder)) is not None:
            when = "" if self._mlflow.served else ", once `gpt-pipeline ui` is started"
            self._say(f"Its losses, live in MLflow{when}: {runs_page(self._mlflow.pages, [number])}")
            self._told = True


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
                report_checkpoint(
                    self._context,
                    self._experiment,
                    CheckpointInfo.from_json(message["checkpoint"]),
                    tokens_per_second=message["tokens_per_second"],
                )
            case "message":
                self._log(message["text"])


def report_checkpoints(context: dg.AssetExecutionContext, experiment: Experiment) -> None:
    """Report those checkpoints on disk that Dagster's history does not know, as after it was deleted."""
    for checkpoint in list_checkpoints(experiment.folder.checkpoints):
        if not _is_known(context.instance, experiment, checkpoint):
            report_checkpoint(context, experiment, checkpoint)


def report_checkpoint(
    context: dg.AssetExecutionContext,
    experiment: Experiment,
    checkpoint: CheckpointInfo,
    *,
    tokens_per_second: float | None = None,
) -> None:
    """Make a partition of the checkpoint and materialize it, with the weights' hash as its data version.

    `tokens_per_second` is the training's speed at it, where the trainer itself reports it.
    """
    key = checkpoint_key(checkpoint.step)
    measured = {**checkpoint.metrics, "tokens_per_second": tokens_per_second}
    keys.add_checkpoint_partitions(context.instance, experiment, [key])
    context.log_event(
        dg.AssetMaterialization(
            asset_key=keys.asset_key(experiment, "checkpoint"),
            partition=key,
            description=f"{checkpoint.path.name} at step {checkpoint.step:,}",
            metadata={
                "step": checkpoint.step,
                **{name: round(value, 4) for name, value in measured.items() if value is not None},
                "tokens_seen": checkpoint.tokens_seen,
                "megabytes": round(checkpoint.size / 1e6, 3),
                "path": dg.MetadataValue.path(str(checkpoint.path)),
                "weights_sha256": checkpoint.weights_sha256,
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


def mirror_metadata(experiment: Experiment) -> dict[str, Any]:
    """Return what of the experiment is in its mirror; nothing if it has none."""
    url = experiment.config.storage.mirror
    if url is None:
        return {}
    state = state_for(experiment.folder, url)
    return {"mirror": url, "mirror_state": "not begun" if state is None else state.in_words}


def _results(experiment: Experiment, finished: FinishedTraining) -> dict[str, Any]:
    """Return what the training came to: the curve, then numbers, which the UI plots from training to training."""
    from gpt_pipeline.report.charts import loss_curve_svg

    curve = loss_curve_svg(read_metrics(experiment.folder.metrics), vocab_size=experiment.config.model.vocab_size)
    return {
        "loss_curve": dg.MetadataValue.md(picture_markdown("loss against step", curve)),
        "step": finished.step,
        "final_val_loss": round(finished.val_loss, 4),
        # Under its old name where it is that, so that the plot of earlier trainings goes on.
        f"best_{experiment.config.deciding_loss}": round(finished.best_val_loss, 4),
        "best_step": finished.best_step,
        "final_train_loss": round(finished.train_loss, 4),
        "uniform_loss": round(math.log(experiment.config.model.vocab_size), 4),
        "tokens_seen": finished.tokens_seen,
        "hours": round(finished.seconds / 3600, 4),
        "tokens_per_second": round(finished.tokens_seen / max(finished.seconds, 1e-9), 1),
        "parameters": finished.parameters,
        **({} if experiment.config.start_from is None else {"starts_from": start_in_words(experiment).text}),
    }


def _places(experiment: Experiment, finished: FinishedTraining, mlflow: MlflowTracking) -> dict[str, Any]:
    """Return where to find what the training left."""
    folder = experiment.folder
    run = logged_run(folder, finished.fingerprint)
    return {
        "folder": dg.MetadataValue.path(str(folder.root)),
        "last_checkpoint": dg.MetadataValue.path(str(folder.checkpoints / finished.checkpoint)),
        "report": dg.MetadataValue.path(str(folder.report)),
        **({} if run is None else mlflow.links(experiment_id=run.experiment_id, run_id=run.run_id)),
        "fingerprint": finished.fingerprint,
        **mirror_metadata(experiment),
    }

"""The assets of one experiment: training, its checkpoints, their evaluations, the report."""

from collections.abc import Iterator, Sequence

import dagster as dg

from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.evaluation_step import evaluate_partition
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.report_step import write_report
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.orchestration.training_step import train_experiment


class TrainingOptions(dg.Config):
    """What a person may choose for one training."""

    force: bool = False
    """Train again from the first step; what is there is moved aside, not overwritten."""


class EvaluationOptions(dg.Config):
    """What a person may choose for one evaluation."""

    force: bool = False
    """Evaluate again even if the result is there."""

    num_questions: int | None = None
    """Questions to ask; null: as many as the experiment file says."""


class ReportOptions(dg.Config):
    """What a person may choose for one report."""

    force: bool = False
    """Write the report again even if nothing changed."""


def experiment_assets(experiment: Experiment, group: str) -> Sequence[dg.AssetsDefinition | dg.AssetSpec]:
    """Return the assets that belong to `experiment` alone; `group` holds the data they read."""
    shards = dg.AssetKey([group, "token_shards"])
    partitions = keys.checkpoint_partitions(experiment)
    name = experiment.display_name

    @dg.asset(
        key=keys.asset_key(experiment, "training"),
        group_name=experiment.name,
        deps=[shards],
        kinds={"pytorch"},
        pool=keys.TRAINING_POOL,
        code_version=experiment.identity,
        description=f"{name}: the model, trained to its last step by a process of its own that can stop and resume.",
    )
    def training(
        context: dg.AssetExecutionContext, config: TrainingOptions, mlflow: MlflowTracking
    ) -> dg.MaterializeResult:
        with explained():
            return train_experiment(context, experiment, tracking_uri=mlflow.tracking_uri, force=config.force)

    checkpoint = dg.AssetSpec(
        key=keys.asset_key(experiment, "checkpoint"),
        group_name=experiment.name,
        deps=[training],
        partitions_def=partitions,
        kinds={"pytorch"},
        description=f"{name}: one partition per checkpoint, reported by the trainer while it runs.",
    )

    @dg.asset(
        key=keys.asset_key(experiment, "evaluation"),
        group_name=experiment.name,
        deps=[checkpoint, shards],
        partitions_def=partitions,
        kinds={"mlflow"},
        pool=keys.EVALUATION_POOL,
        output_required=False,
        description=f"{name}: loss on held-out documents, answers to held-out questions; one MLflow run a checkpoint.",
    )
    def evaluation(
        context: dg.AssetExecutionContext, config: EvaluationOptions, mlflow: MlflowTracking
    ) -> Iterator[dg.MaterializeResult]:
        # Yielded, not returned: to Dagster a returned None is an evaluation too.
        with explained():
            yield from evaluate_partition(
                context, experiment, mlflow, force=config.force, settings=_settings(experiment, config)
            )

    @dg.asset(
        key=keys.asset_key(experiment, "report"),
        group_name=experiment.name,
        deps=[training, evaluation],
        kinds={"html"},
        description=f"{name}: one self-contained page with curves, checkpoints and answers.",
    )
    def report(context: dg.AssetExecutionContext, config: ReportOptions) -> dg.MaterializeResult:
        with explained():
            return write_report(context, experiment, force=config.force)

    return [training, checkpoint, evaluation, report]


def _settings(experiment: Experiment, options: EvaluationOptions) -> EvaluationConfig:
    from dataclasses import replace

    settings = experiment.config.evaluation
    if options.num_questions is None:
        return settings
    return replace(settings, num_questions=options.num_questions)

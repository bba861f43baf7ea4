"""The assets of one experiment: training, its checkpoints, their evaluations, the report.

What a step does is imported when it runs: loading the definitions takes no longer for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import dagster as dg

from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.attributes import OWNERS, experiment_metadata, stage_tags, training_settings
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.run_config import number, switch
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.shown import in_markdown


def experiment_assets(
    experiment: Experiment, shards: dg.AssetKey, base: Experiment | None
) -> Sequence[dg.AssetsDefinition | dg.AssetSpec]:
    """Return the assets that belong to `experiment` alone; `shards` is the data they read.

    `base` is the experiment of the project that it starts from.
    """
    upstream = [shards, *([] if base is None else [keys.asset_key(base, "training")])]
    prompts = [_rl_prompts(experiment, upstream)] if experiment.config.has_rollouts else []
    training = _training(experiment, [*upstream, *prompts])
    checkpoint = dg.AssetSpec(
        key=keys.asset_key(experiment, "checkpoint"),
        group_name=experiment.name,
        deps=[training],
        partitions_def=keys.checkpoint_partitions(experiment),
        kinds={"pytorch"},
        owners=OWNERS,
        tags=stage_tags("checkpoint", experiment),
        metadata=experiment_metadata("checkpoint", experiment),
        description=f"{_name(experiment)}: one partition per checkpoint, reported by the trainer while it "
        "runs. Not made by hand: materialize *training*. Only the last ones and the best stay on the disk.",
    )
    evaluation = _evaluation(experiment, shards, checkpoint)
    return [*prompts, training, checkpoint, evaluation, _report(experiment, training, evaluation)]


def _name(experiment: Experiment) -> str:
    return f"**{in_markdown(experiment.display_name)}**"


def _rl_prompts(experiment: Experiment, upstream: Sequence[dg.AssetKey]) -> dg.AssetsDefinition:
    @dg.asset(
        key=keys.asset_key(experiment, "rl_prompts"),
        group_name=experiment.name,
        deps=upstream,
        kinds={"json"},
        owners=OWNERS,
        tags=stage_tags("rl_prompts", experiment),
        metadata=experiment_metadata("rl_prompts", experiment),
        pool=keys.TRAINING_POOL,
        code_version=experiment.identity,
        config_schema={"force": switch("Have the start weights answer the questions again even if that is done.")},
        description=f"{_name(experiment)}: the training-side questions that the start weights answer sometimes right "
        "and sometimes wrong, which are those that training on rewards can learn from.",
    )
    def rl_prompts(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from gpt_pipeline.orchestration.prompts_step import measure_prompts

        stopped = "Stopped; what was answered is kept, and the next run goes on behind it."
        with explained(stopped=stopped):
            return measure_prompts(context, experiment, force=context.op_execution_context.op_config["force"])

    return rl_prompts


def _training(experiment: Experiment, upstream: Sequence[dg.AssetKey | dg.AssetsDefinition]) -> dg.AssetsDefinition:
    @dg.asset(
        key=keys.asset_key(experiment, "training"),
        group_name=experiment.name,
        deps=upstream,
        kinds={"pytorch"},
        owners=OWNERS,
        tags=stage_tags("training", experiment),
        metadata={**experiment_metadata("training", experiment), **training_settings(experiment)},
        pool=None if experiment.config.hardware.is_remote else keys.TRAINING_POOL,  # the pool is this machine
        code_version=experiment.identity,
        config_schema={
            "force": switch(
                "Train again from the first step. What is there is moved aside, not overwritten. "
                "Left at false, a training that was stopped continues, and a finished one is left as it is."
            )
        },
        description=f"{_name(experiment)}: the model, trained to its last step by a process of its own. "
        f"To make it with all that it needs, press *Materialize all* of the job `{keys.run_job(experiment)}`: of this "
        "group or of the whole graph, that button would also ask for checkpoints and evaluations, which follow by "
        "themselves. *Terminate* its run to stop: a checkpoint is saved; materialize again to continue from it.",
    )
    def training(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[MlflowTracking]) -> dg.MaterializeResult:
        from gpt_pipeline.orchestration.training_step import train_experiment

        with explained():
            force = context.op_execution_context.op_config["force"]
            return train_experiment(context, experiment, mlflow, force=force)

    return training


def _evaluation(experiment: Experiment, shards: dg.AssetKey, checkpoint: dg.AssetSpec) -> dg.AssetsDefinition:
    asks = has_questions(experiment.data)
    written = "answers to held-out questions" if asks else "continuations of their beginnings"
    questions = number(
        f"Held-out {'questions to ask' if asks else 'documents to continue'}, 0 or more; at first what the experiment "
        "file says. Another number is another evaluation, kept beside the first.",
        default=experiment.config.evaluation.num_questions,
    )

    @dg.asset(
        key=keys.asset_key(experiment, "evaluation"),
        group_name=experiment.name,
        deps=[checkpoint, shards],
        partitions_def=keys.checkpoint_partitions(experiment),
        kinds={"mlflow"},
        owners=OWNERS,
        tags=stage_tags("evaluation", experiment),
        metadata=experiment_metadata("evaluation", experiment),
        pool=keys.EVALUATION_POOL,
        output_required=False,
        config_schema={"force": switch("Evaluate again even if the result is there."), "num_questions": questions},
        description=f"{_name(experiment)}: loss on held-out documents and {written}, "
        "one partition and one MLflow run per checkpoint. Its sensor makes them while the training runs; "
        "*Plots* shows each number from checkpoint to checkpoint.",
    )
    def evaluation(
        context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[MlflowTracking]
    ) -> Iterator[dg.MaterializeResult]:
        from gpt_pipeline.orchestration.evaluation_step import evaluate_partition

        # Yielded, not returned: to Dagster a returned None is an evaluation too.
        stopped = "Stopped; this evaluation is not finished, and the next run makes it."
        with explained(stopped=stopped):
            options = context.op_execution_context.op_config
            settings = replace(experiment.config.evaluation, num_questions=options["num_questions"])
            yield from evaluate_partition(context, experiment, mlflow, force=options["force"], settings=settings)

    return evaluation


def _report(
    experiment: Experiment, training: dg.AssetsDefinition, evaluation: dg.AssetsDefinition
) -> dg.AssetsDefinition:
    @dg.asset(
        key=keys.asset_key(experiment, "report"),
        group_name=experiment.name,
        deps=[training, evaluation],
        kinds={"html"},
        owners=OWNERS,
        tags=stage_tags("report", experiment),
        metadata=experiment_metadata("report", experiment),
        config_schema={"force": switch("Write the report again even if nothing changed.")},
        description=f"{_name(experiment)}: one self-contained page with curves, checkpoints and answers. "
        "Written again by the sensor when there is something new.",
    )
    def report(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[MlflowTracking]) -> dg.MaterializeResult:
        from gpt_pipeline.orchestration.report_step import write_report

        with explained():
            force = context.op_execution_context.op_config["force"]
            return write_report(context, experiment, tracking_uri=mlflow.tracking_uri, force=force)

    return report

"""One materialization of `rl_prompts`: have the start weights answer the candidates, or find that done."""

from __future__ import annotations

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import bring_data
from gpt_pipeline.experiment.training import find_start, prompts_stage
from gpt_pipeline.orchestration.metadata import stage_metadata
from gpt_pipeline.orchestration.stages import finished_documents, finished_shards
from gpt_pipeline.orchestration.training_step import with_its_start


def measure_prompts(context: dg.AssetExecutionContext, experiment: Experiment, *, force: bool) -> dg.MaterializeResult:
    """Return the questions whose answers the training samples, measured if they are not; what the UI shows of them."""
    from gpt_pipeline.rl.measure import prepare_prompts  # torch

    experiment = with_its_start(experiment, say=context.log.info)
    shards, start, stage = finished_shards(experiment), find_start(experiment), prompts_stage(experiment)
    assert start is not None
    assert stage is not None
    if not force:
        bring_data(experiment, stage, say=context.log.info)
    result = prepare_prompts(
        stage,
        [(finished_documents(part), part.data) for _, part in sorted(experiment.parts.items())],
        shards,
        start.checkpoint.path,
        device=experiment.config.hardware.device_here,
        batch_size=experiment.config.training.given_micro_batch_size,
        force=force,
        say=context.log.info,
    )
    return dg.MaterializeResult(
        metadata={**stage_metadata(result), "already_finished": result.reused},
        data_version=dg.DataVersion(result.fingerprint),
    )

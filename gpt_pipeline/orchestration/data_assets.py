"""The assets of the data stages, shared by every experiment with the same documents."""

from collections.abc import Sequence

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.metadata import stage_metadata
from gpt_pipeline.orchestration.stages import finished_english, finished_raw
from gpt_pipeline.storage.manifest import StageResult


class StageOptions(dg.Config):
    """What a person may choose for one materialization of a data stage."""

    force: bool = False
    """Make the stage again even if it is finished."""


def data_assets(group: str, experiment: Experiment) -> Sequence[dg.AssetsDefinition]:
    """Return raw_synth, english_parquet and token_shards for the documents that `experiment` names."""
    data = experiment.data
    origin = data.local_dataset_path or data.source

    @dg.asset(
        key=[group, "raw_synth"],
        group_name=group,
        kinds={"parquet"},
        code_version=group,
        description=f"The parquet files of {origin} that hold the first {data.num_samples:,} English samples.",
    )
    def raw_synth(context: dg.AssetExecutionContext, config: StageOptions) -> dg.MaterializeResult:
        from gpt_pipeline.data.raw import prepare_raw

        with explained():
            stage = prepare_raw(data, experiment.data_folder, force=config.force, say=context.log.info)
        return _materialized(stage)

    @dg.asset(
        key=[group, "english_parquet"],
        group_name=group,
        deps=[raw_synth],
        kinds={"parquet"},
        code_version=group,
        description=f"{data.num_samples:,} English documents with a query and an answer, one text each.",
    )
    def english_parquet(context: dg.AssetExecutionContext, config: StageOptions) -> dg.MaterializeResult:
        from gpt_pipeline.data.english import prepare_english

        with explained():
            raw = finished_raw(experiment)
            stage = prepare_english(data, raw, experiment.data_folder, force=config.force, say=context.log.info)
        return _materialized(stage)

    @dg.asset(
        key=[group, "token_shards"],
        group_name=group,
        deps=[english_parquet],
        kinds={"numpy"},
        code_version=group,
        description="The documents' GPT-2 tokens as uint16 shards, split into training and validation by article.",
    )
    def token_shards(context: dg.AssetExecutionContext, config: StageOptions) -> dg.MaterializeResult:
        from gpt_pipeline.data.shards import prepare_shards

        with explained():
            documents = finished_english(experiment)
            stage = prepare_shards(data, documents, experiment.data_folder, force=config.force, say=context.log.info)
        return _materialized(stage)

    return [raw_synth, english_parquet, token_shards]


def _materialized(stage: StageResult) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata=stage_metadata(stage), data_version=dg.DataVersion(stage.fingerprint))

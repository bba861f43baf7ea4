"""The assets of the data stages, shared by every experiment with the same documents."""

from collections.abc import Sequence

import dagster as dg

from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.attributes import code_references
from gpt_pipeline.orchestration.parted_asset import parted_asset


def data_assets(group: str, experiment: Experiment) -> Sequence[dg.AssetsDefinition]:
    """Return raw_synth, english_parquet and token_shards for the documents that `experiment` names."""
    data, folder = experiment.data, experiment.data_folder
    raw_key, english_key, shards_key = (
        dg.AssetKey([group, name]) for name in ("raw_synth", "english_parquet", "token_shards")
    )

    def raw() -> PartedStage:
        from gpt_pipeline.data.documents.raw import RawStage
        from gpt_pipeline.data.documents.stage import find_documents

        return RawStage(config=data, data_folder=folder, is_needed=lambda: find_documents(data, folder) is None)

    def english() -> PartedStage:
        from gpt_pipeline.data.documents.stage import DocumentsStage

        return DocumentsStage(config=data, data_folder=folder)

    def shards() -> PartedStage:
        from gpt_pipeline.data.tokens.shards import ShardsStage

        return ShardsStage(config=data, data_folder=folder)

    origin = data.local_dataset_path or data.source
    return [
        parted_asset(
            raw,
            key=raw_key,
            group=group,
            upstream=None,
            part="check_file",
            kinds={"parquet"},
            metadata=code_references("raw_synth"),
            description=f"The parquet files of {origin} that hold the first {data.num_samples:,} English samples.",
        ),
        parted_asset(
            english,
            key=english_key,
            group=group,
            upstream=raw_key,
            part="filter_file",
            kinds={"parquet"},
            metadata=code_references("english_parquet"),
            description=f"{data.num_samples:,} different English documents with a query and an answer, one text each.",
        ),
        parted_asset(
            shards,
            key=shards_key,
            group=group,
            upstream=english_key,
            part="tokenize_file",
            kinds={"numpy"},
            metadata=code_references("token_shards"),
            description="The documents' GPT-2 tokens as uint16 shards, split into training and validation by article.",
        ),
    ]

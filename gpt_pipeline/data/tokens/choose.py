"""The stage of the shards that a training reads: `token_shards`, or `mixed_shards` for a mix."""

from __future__ import annotations

from pathlib import Path

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.tokens.mixed import MixedShardsStage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.storage.manifest import StageResult


def find_shards(config: DataConfig, data_folder: Path) -> StageResult | None:
    """Return the finished stage, or None; does no work."""
    return shards_stage(config, data_folder).find()


def known_shards(config: DataConfig, data_folder: Path) -> StageResult | None:
    """Return the stage if it was finished once, whatever has become of its files: what was made of them stands."""
    return shards_stage(config, data_folder).known()


def shards_stage(config: DataConfig, data_folder: Path) -> ShardsStage | MixedShardsStage:
    """Return the stage, finished or not."""
    if config.mix is None:
        return ShardsStage(config=config, data_folder=data_folder)
    return MixedShardsStage(config=config, data_folder=data_folder)

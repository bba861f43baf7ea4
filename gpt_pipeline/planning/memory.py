"""What a training holds in memory, from its experiment file."""

from __future__ import annotations

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.model.costs import MemoryNeed, Precision, memory_need


def training_need(
    config: ExperimentConfig, *, micro_batch_size: int, precision: Precision, recompute: bool | None = None
) -> MemoryNeed:
    """Return what one process of the training holds with micro-batches of this size.

    `recompute`: whether the blocks are computed again in the backward pass; None: as the file says.
    """
    training = config.training
    return memory_need(
        config.model,
        optimizer=training.optimizer,
        micro_batch_size=micro_batch_size,
        max_length=config.data.max_length,
        precision=precision,
        recompute=training.gradient_checkpointing if recompute is None else recompute,
        averaged=training.average_weights.is_wanted,
    )

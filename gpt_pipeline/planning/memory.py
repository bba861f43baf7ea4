"""What a training holds in memory, from its experiment file."""

from __future__ import annotations

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.model.costs import MemoryNeed, Precision, memory_need
from gpt_pipeline.training.config import StepLayout, cpu_micro_batch_size

FULL = 0.95  # of a GPU's memory: the estimate is not exact to the last percent


def expected_micro_batch(
    config: ExperimentConfig, layout: StepLayout, *, precision: Precision, memory: int | None
) -> int:
    """Return the sequences in a forward pass, for `micro_batch_size: auto` those that the trainer may find to fit.

    `memory`: free bytes of the GPU; None: not known, and the whole update is assumed.
    """
    if config.training.micro_batch_size != "auto" or (precision.cuda and memory is None):
        return layout.micro_batch_size
    if not precision.cuda:
        return cpu_micro_batch_size(layout.share, max_length=layout.max_length)
    assert memory is not None
    sizes = (size for size in range(layout.share, 0, -1) if layout.share % size == 0)
    fit = (size for size in sizes if _fits(config, size, precision=precision, memory=memory))
    return next(fit, 1)


def _fits(config: ExperimentConfig, size: int, *, precision: Precision, memory: int) -> bool:
    return training_need(config, micro_batch_size=size, precision=precision).device <= FULL * memory


def training_need(
    config: ExperimentConfig, *, micro_batch_size: int, precision: Precision, recompute: bool | None = None
) -> MemoryNeed:
    """Return what one process of the training holds with micro-batches of this size.

    `recompute`: whether the blocks are computed again in the backward pass; None: as the file says.
    """
    training = config.training
    return memory_need(
        config.trained_model,
        optimizer=training.optimizer,
        micro_batch_size=micro_batch_size,
        max_length=config.data.max_length,
        precision=precision,
        recompute=training.gradient_checkpointing if recompute is None else recompute,
        averaged=training.average_weights.is_wanted,
        asked_tokens=config.rl.asked_tokens(config.data.max_length) if config.has_rollouts else 0,
        sampled=micro_batch_size if config.has_rollouts else 0,
    )

"""The learning rate of each update. Imports no torch."""

from __future__ import annotations

import math

from gpt_pipeline.training.config import TrainingConfig

_DECAY_SHARE = 0.2  # of the training, in which `wsd` decays (Hägele et al. 2024, "Scaling laws beyond fixed durations")


def learning_rate_at(step: int, config: TrainingConfig, *, max_steps: int) -> float:
    """Return the learning rate of the update after `step` updates, for `step` in 0..max_steps-1.

    It rises linearly from 0, is at its peak after `warmup_steps`, and at the end of its decay with the last update.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return config.learning_rate
    if config.lr_schedule == "cosine":
        remaining = (1 + math.cos(math.pi * _progress(step, config.warmup_steps, max_steps))) / 2
    else:
        start = max(config.warmup_steps, max_steps - math.ceil(_DECAY_SHARE * max_steps))
        remaining = 1 - _progress(step, start, max_steps)
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * remaining


def _progress(step: int, start: int, max_steps: int) -> float:
    """Return how far `step` is from `start` (0) to the last update (1)."""
    return min(1.0, max(0.0, (step - start) / max(1, max_steps - 1 - start)))

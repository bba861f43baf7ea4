"""How many updates, how many sequences in each, and how a process works through its share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require
from gpt_pipeline.training.config import TrainingConfig


def sequences_per_step(config: TrainingConfig, *, max_length: int) -> int:
    """Return the sequences in one optimizer update, all processes together.

    Raises:
        ConfigError: `tokens_per_step` is not made of whole sequences.
    """
    tokens = config.tokens_per_step
    if tokens is None:
        return config.batch_size
    _require_multiple("tokens_per_step", tokens, of=max_length, unit=f"data.max_length={max_length}")
    return tokens // max_length


def total_steps(config: TrainingConfig, *, steps_per_epoch: int) -> int:
    """Return the optimizer updates of the whole training."""
    return config.max_steps if config.max_steps is not None else config.num_epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimizer update, shared by `world_size` processes that each accumulate gradients over micro-batches."""

    batch_size: int
    """Sequences in one update, all processes together."""

    micro_batch_size: int
    """Sequences in one forward pass of one process."""

    max_length: int
    """T, tokens in a sequence."""

    world_size: int
    max_steps: int
    """Updates of the whole training."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update, all processes and micro-batches together."""
        return self.batch_size * self.max_length

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one process in one update."""
        return self.batch_size // (self.world_size * self.micro_batch_size)

    @property
    def log_every(self) -> int:
        """Updates in one line of metrics: each of a short training, ten of a long one."""
        return max(1, min(10, self.max_steps // 1000))


def plan_steps(config: TrainingConfig, *, max_length: int, steps_per_epoch: int, world_size: int) -> StepPlan:
    """Return the plan of the training.

    Raises:
        ConfigError: the update does not divide evenly among processes or into micro-batches.
    """
    batch_size = sequences_per_step(config, max_length=max_length)
    key = "batch_size" if config.tokens_per_step is None else "tokens_per_step"
    size, unit = (batch_size, 1) if config.tokens_per_step is None else (config.tokens_per_step, max_length)
    _require_multiple(key, size, of=world_size * unit, unit=f"the {world_size} processes that share it")
    share = batch_size // world_size
    micro = share if config.micro_batch_size is None else min(config.micro_batch_size, share)
    _require_multiple(key, size, of=world_size * unit * micro, unit=f"micro_batch_size={micro} in each process")
    return StepPlan(
        batch_size=batch_size,
        micro_batch_size=micro,
        max_length=max_length,
        world_size=world_size,
        max_steps=total_steps(config, steps_per_epoch=steps_per_epoch),
    )


def _require_multiple(key: str, value: int, *, of: int, unit: str) -> None:
    below = value // of * of
    use = f"{below} or {below + of}" if below else f"{of}"
    require(value % of == 0, f"training.{key}", found=value, need=f"a multiple of {of} ({unit})", remedy=f"use {use}")

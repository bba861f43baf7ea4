"""One optimizer update.

Shapes: B sequences of this process, T tokens.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt_pipeline.errors import UserError
from gpt_pipeline.model.gpt import GPT
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.optimizer import Optimizer
from gpt_pipeline.training.plan import StepPlan
from gpt_pipeline.training.randomness import seed_step
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.schedule import learning_rate_at


class NotFiniteError(UserError):
    """The loss or the gradient is NaN or infinite; the weights have not been touched."""


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What one update came to."""

    train_loss: float
    """Mean nats per token over the update's tokens, of all processes together, before the update."""

    gradient_norm: float
    """Global norm before clipping."""

    learning_rate: float


class Updater:
    """Makes updates: forward, backward, clip, step. Owns what is wrapped around the model for speed."""

    def __init__(self, model: GPT, config: TrainingConfig, *, plan: StepPlan, compute: Compute, ranks: Ranks) -> None:
        self.model = model
        """The model itself, with GPT-2's names."""
        self.optimizer = Optimizer(model, config)
        self.evaluator: nn.Module = torch.compile(model) if compute.compile else model
        """The same model, compiled or itself, to be called without gradients."""
        self._runner = _spread(self.evaluator, compute=compute, ranks=ranks)
        self._config = config
        self._plan = plan
        self._compute = compute
        self._ranks = ranks

    def update(self, step: int, batch: Batch) -> UpdateResult:
        """Make the update after `step` updates from this process's share of its batch.

        Raises:
            NotFiniteError: NaN or infinity, before the weights are touched.
        """
        seed_step(self._config.seed, step, self._ranks.rank)
        learning_rate = learning_rate_at(step, self._config, max_steps=self._plan.max_steps)
        self._runner.train()
        nats = self._accumulate(batch)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._config.gradient_clip)
        # One transfer from the device in an update; the check must come before the optimizer's step.
        total, gradient_norm = torch.stack([self._ranks.sum(nats), norm.to(nats.dtype)]).tolist()
        loss = total / self._plan.tokens_per_step
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise NotFiniteError(_not_finite(step, loss, gradient_norm, learning_rate))
        self.optimizer.step(learning_rate)
        return UpdateResult(train_loss=loss, gradient_norm=gradient_norm, learning_rate=learning_rate)

    def _accumulate(self, batch: Batch) -> Tensor:
        """Add up the gradients of the mean loss over the global batch; return this process's summed loss, in nats."""
        micro = self._plan.micro_batch_size
        pairs = list(zip(batch[0].split(micro), batch[1].split(micro), strict=True))
        nats = torch.zeros((), device=batch[0].device)
        # DDP averages gradients over processes; what is wanted is their sum over the global count.
        scale = self._ranks.world_size / self._plan.tokens_per_step
        for number, (inputs, targets) in enumerate(pairs, start=1):
            with self._sync_gradients(last=number == len(pairs)):
                with self._compute.autocast():
                    loss = self._runner(inputs, targets)
                (loss * scale).backward()
            nats += loss.detach()
        return nats

    def _sync_gradients(self, *, last: bool) -> AbstractContextManager[object]:
        if last or not isinstance(self._runner, DistributedDataParallel):
            return nullcontext()
        return self._runner.no_sync()  # type: ignore[no-any-return]


def _spread(model: nn.Module, *, compute: Compute, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return model
    devices = [compute.device] if compute.is_cuda else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def _not_finite(step: int, loss: float, gradient_norm: float, learning_rate: float) -> str:
    return (
        f"training stopped before update {step + 1}: found loss {loss:g} and gradient norm {gradient_norm:g} at "
        f"learning rate {learning_rate:g}, need finite numbers; the weights were not touched and the last checkpoint "
        "stands. Lower training.learning_rate or raise training.warmup_steps, and start again"
    )

"""One optimizer update.

Shapes: B sequences of this process, T tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt_pipeline.errors import UserError
from gpt_pipeline.model.gpt import GPT
from gpt_pipeline.training.compiled import CompiledModel
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.optimizer import Optimizer
from gpt_pipeline.training.plan import StepPlan
from gpt_pipeline.training.randomness import seed_step
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.schedule import learning_rate_at

_logger = logging.getLogger(__name__)
_CLIP_EPS = 1e-6  # torch's


class NotFiniteError(UserError):
    """The loss or the gradient is NaN or infinite; the weights have not been touched."""


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What one update came to."""

    step: int
    """Updates done, this one included."""

    train_loss: float
    """Mean nats per token over the update's tokens, of all processes together, before the update."""

    gradient_norm: float
    """Global norm before clipping."""

    learning_rate: float


class PendingUpdate:
    """An update that the device may still be computing."""

    def __init__(self, numbers: Tensor, *, step: int, learning_rate: float, tokens: int) -> None:
        """`numbers`: the loss in nats, summed over `tokens`, and the gradient norm, float32 [2]."""
        self.step = step
        """Updates done before this one."""
        self._learning_rate = learning_rate
        self._tokens = tokens
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(2, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> UpdateResult:
        """Wait for the update; return what it came to.

        Raises:
            NotFiniteError: NaN or infinity; neither this update nor any after it changed the weights.
        """
        if self._event is not None:
            self._event.synchronize()
        total, gradient_norm = self._numbers.tolist()
        loss = total / self._tokens
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise NotFiniteError(_not_finite(self.step, loss, gradient_norm, self._learning_rate))
        return UpdateResult(
            step=self.step + 1, train_loss=loss, gradient_norm=gradient_norm, learning_rate=self._learning_rate
        )


class Updater:
    """Makes updates: forward, backward, clip, step. Owns what is wrapped around the model for speed."""

    def __init__(
        self,
        model: GPT,
        config: TrainingConfig,
        *,
        plan: StepPlan,
        compute: Compute,
        ranks: Ranks,
        say: Callable[[str], None] = _logger.warning,
    ) -> None:
        self.model = model
        """The model itself, with GPT-2's names."""
        model.loss_piece = compute.loss_piece
        self.optimizer = Optimizer(model, config)
        self.evaluator: nn.Module = CompiledModel(model, say=say) if compute.compile else model
        """The same model, compiled or itself, to be called without gradients."""
        self._runner = _spread(self.evaluator, compute=compute, ranks=ranks)
        self._failed = torch.zeros((), device=compute.device)
        """1 after a loss or gradient that was not finite: nothing is updated any more."""
        self._config = config
        self._plan = plan
        self._compute = compute
        self._ranks = ranks

    def update(self, step: int, batch: Batch) -> PendingUpdate:
        """Begin the update after `step` updates from this process's share of its batch.

        On a GPU this does not wait for it: whether its numbers are finite, and so whether the weights may change, is
        decided there, for this update and all after it. The host learns of it from the result.
        """
        seed_step(self._config.seed, step, self._ranks.rank)
        learning_rate = learning_rate_at(step, self._config, max_steps=self._plan.max_steps)
        self._runner.train()
        nats = self._accumulate_compiled_or_not(step, batch)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        numbers = torch.stack([self._ranks.sum(nats), norm.to(nats.dtype)])
        torch.maximum(self._failed, (~numbers.isfinite().all()).float(), out=self._failed)
        # As torch's clip_grad_norm_ computes it; dividing is left to the optimizer, which reads the gradients anyway.
        divisor = ((norm + _CLIP_EPS) / self._config.gradient_clip).clamp_min(1.0).float()
        self.optimizer.step(learning_rate, divisor=divisor, skip=self._failed)
        return PendingUpdate(numbers, step=step, learning_rate=learning_rate, tokens=self._plan.tokens_per_step)

    def _accumulate_compiled_or_not(self, step: int, batch: Batch) -> Tensor:
        """As `_accumulate`; once more, not compiled, if the backward pass turns out not to compile."""
        if not isinstance(self.evaluator, CompiledModel):
            return self._accumulate(batch)
        try:
            return self._accumulate(batch)
        except CompiledModel.errors() as error:
            self.evaluator.give_up(error)
        self.model.zero_grad(set_to_none=True)
        seed_step(self._config.seed, step, self._ranks.rank)
        return self._accumulate(batch)

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

"""One optimizer update.

Shapes: B sequences of this process, T tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.shown import Say
from gpt_pipeline.training.average import WeightAverage
from gpt_pipeline.training.config import StepLayout, TrainingConfig
from gpt_pipeline.training.device import CompiledModel, Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.loss_scale import LossScale, is_overflow
from gpt_pipeline.training.optimizer import Optimizer, learning_rate_at
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.seeds import seed_step
from gpt_pipeline.training.stopping import OTHERS_SECONDS, GoesOn, unheeded

_logger = logging.getLogger(__name__)
_CLIP_EPS = 1e-6  # torch's
_UNEVEN = 2  # first updates of a process: of these, on a GPU, the second begins before the first is looked at
_BEYOND_FP16 = "; or train with training.precision: bf16 or fp32, since fp16 ends at 65,504"


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
    """Global norm before clipping; infinite or NaN where the update was skipped."""

    learning_rate: float
    tokens: int
    """In the update, all processes together."""

    figures: Mapping[str, float]
    """Of sampled answers; else none."""

    loss_scale: float | None
    """What the loss was multiplied by, in fp16; else None."""

    skipped: bool
    """Whether its gradient was beyond fp16 at this scale, so that it changed no weight."""


class PendingUpdate:
    """An update that the device may still be computing."""

    def __init__(
        self,
        numbers: Tensor,
        *,
        step: int,
        learning_rate: float,
        counted: int | None,
        tokens: int,
        figures: Mapping[str, float],
    ) -> None:
        """`numbers`: the summed loss in nats, the gradient norm and the sum of the targets' weights, float32 [3].

        `counted` stands for the last where that is known beforehand. In fp16 a fourth number is the loss scale.
        """
        self.step = step
        """Updates done before this one."""
        self.tokens = tokens
        """In the update, all processes together."""
        self._figures = figures
        self._learning_rate = learning_rate
        self._counted = counted
        self._event: Any = None
        self._numbers = numbers
        if devices.runs_ahead(numbers.device):
            self._numbers = torch.empty(len(numbers), dtype=numbers.dtype, pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            self._event = torch.get_device_module(numbers.device).Event()
            self._event.record()

    def result(self) -> UpdateResult:
        """Wait for the update; return what it came to.

        Raises:
            NotFiniteError: NaN or infinity; neither this update nor any after it changed the weights.
        """
        if self._event is not None:
            self._event.synchronize()
        numbers = self._numbers
        total, gradient_norm, weight, *scale = numbers.tolist()
        skipped = bool(scale and is_overflow(numbers[0], numbers[1], numbers[3]))
        loss = total / (weight if self._counted is None else self._counted)
        if not (skipped or (math.isfinite(loss) and math.isfinite(gradient_norm))):
            message = _not_finite(self.step, loss, gradient_norm, self._learning_rate)
            raise NotFiniteError(f"{message}{_BEYOND_FP16 if scale else ''}")
        return UpdateResult(
            step=self.step + 1,
            train_loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=self._learning_rate,
            tokens=self.tokens,
            figures=self._figures,
            loss_scale=scale[0] if scale else None,
            skipped=skipped,
        )


class Updater:
    """Makes updates: forward, backward, clip, step. Owns what is wrapped around the model for speed."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        *,
        layout: StepLayout,
        compute: Compute,
        ranks: Ranks,
        say: Say = _logger.warning,
        goes_on: GoesOn = unheeded,
    ) -> None:
        """`goes_on` is called after each micro-batch, which the device may still be computing."""
        self.model = model
        """The model itself, with its own names of parameters."""
        model.loss_piece = compute.loss_piece
        model.recompute_blocks(config.gradient_checkpointing)
        self.optimizer = Optimizer(model, config)
        self.average = WeightAverage(model, config.average_weights, max_steps=layout.max_steps)
        of_answers = config.objective == "rl"  # as long as they are sampled, while documents have one shape
        eager_piece = dataclasses.replace(compute, compile=False).loss_piece
        self.evaluator: nn.Module = (
            CompiledModel(model, say=say, any_shape=of_answers, eager_piece=eager_piece, goes_on=goes_on)
            if compute.compile
            else model
        )
        """The same model, compiled or itself, to be called without gradients."""
        self._runner = _spread(self.evaluator, compute=compute, ranks=ranks)
        self.loss_scale = LossScale(compute.device) if compute.precision == "fp16" else None
        """None unless the products are in fp16."""
        self._failed = torch.zeros((), device=compute.device)
        """1 after a loss or gradient that was not finite: nothing is updated any more."""
        self._config = config
        self.layout = layout
        """May be given another `micro_batch_size` between updates."""
        self._compute = compute
        self._ranks = ranks
        self._goes_on = goes_on
        self._uneven = 0 if ranks.world_size == 1 else _UNEVEN
        """Updates to come in which one process may compile, or read, much longer than those that wait for it."""

    def update(self, step: int, batch: Batch) -> PendingUpdate:
        """Begin the update after `step` updates from this process's share of its batch.

        On a GPU this does not wait for it: whether its numbers are finite, and so whether the weights may change, is
        decided there, for this update and all after it. The host learns of it from the result.
        """
        seed_step(self._config.seed, step, self._ranks.rank)
        learning_rate = learning_rate_at(step, self._config, max_steps=self.layout.max_steps)
        self._runner.train()
        counted, idle = self._count(batch)
        nats = self._accumulate_compiled_or_not(step, batch, counted)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        weight = nats.new_full((), counted) if isinstance(counted, int) else counted
        norm = norm if self.loss_scale is None else norm / self.loss_scale.value
        numbers = torch.stack([self._ranks.sum(nats), norm.to(nats.dtype), weight.to(nats.dtype)])
        # As torch's clip_grad_norm_ computes it; dividing is left to the optimizer, which reads the gradients anyway.
        divisor = ((norm + _CLIP_EPS) / self._config.gradient_clip).clamp_min(1.0).float()
        if self.loss_scale is None:
            torch.maximum(self._failed, (~numbers.isfinite().all()).float(), out=self._failed)
            skip = self._failed
        else:
            numbers, divisor, skip = self._unscale(self.loss_scale, numbers, divisor)
        # Where nothing counts there is no gradient: momentum and decay are not to act alone.
        skip = skip if idle is None else skip.masked_fill(idle, 1.0)
        self.optimizer.step(step, learning_rate, divisor=divisor, skip=skip)
        self.average.update(step + 1, skip=self._failed)
        known, rollout = counted if isinstance(counted, int) else None, batch.rollout
        return PendingUpdate(
            numbers,
            step=step,
            learning_rate=learning_rate,
            counted=known,
            tokens=self.layout.tokens_per_step if rollout is None else rollout.tokens,
            figures={} if rollout is None else rollout.figures,
        )

    def rehearse(self, batch: Batch) -> None:
        """Compute all that takes memory in training and in estimates on the micro-batch `batch`; change nothing.

        What an update leaves (the optimizer's state, a mean of the weights) is there beside its second half, and so
        are the gradients of a micro-batch before. What is compiled is what the training runs, of several processes in
        the pieces between which they exchange gradients. Here they exchange nothing: one whose memory is full does not
        leave the others waiting. What their reducer holds is there already.

        Raises:
            RuntimeError: memory is full (`devices.is_out_of_memory`); call `Optimizer.forget` then too.
        """
        mean = [torch.empty_like(p) for p in self.model.parameters()] if self.average.is_to_come else []
        try:
            self._rehearse_updates(batch)
        except Exception as error:
            if not (isinstance(self.evaluator, CompiledModel) and isinstance(error, CompiledModel.errors())):
                raise
            self.evaluator.give_up(error)
            self.model.zero_grad(set_to_none=True)
            self._rehearse_updates(batch)
        self.model.eval()
        starts = torch.zeros_like(batch.inputs)  # estimates are on packed documents too
        weights = torch.ones((1 + self._config.answers_only, *starts.shape), device=starts.device)
        with torch.no_grad(), self._compute.autocast():
            self.evaluator(batch.inputs, batch.targets, weights, starts)
        del mean

    def _rehearse_updates(self, batch: Batch) -> None:
        self._runner.train()
        for _ in range(2):
            for _ in range(min(2, self.layout.grad_accum_steps)):
                with self._sync_gradients(last=False):
                    with self._compute.autocast():
                        loss = self._runner(*batch.tensors)
                    loss.backward()
                del loss
                self._goes_on()
            self.optimizer.rehearse()
            self._goes_on()

    def _unscale(self, scale: LossScale, numbers: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `numbers` with the loss scale behind them, and the divisor and skip of gradients that bear it.

        Takes note of what is not finite: an overflow changes the scale and skips this update alone.
        """
        overflow = is_overflow(numbers[0], numbers[1], scale.value)
        failed = ~(numbers.isfinite().all() | overflow)
        torch.maximum(self._failed, failed.float(), out=self._failed)
        numbers, divisor = torch.cat([numbers, scale.value[None]]), divisor * scale.value
        scale.update(overflow)
        return numbers, divisor, torch.maximum(self._failed, overflow.float())

    def _count(self, batch: Batch) -> tuple[int | Tensor, Tensor | None]:
        """Return the summed weight of the update's targets, in all processes together, and whether none counts.

        The weight is 1 where none counts. Of sampled answers, whose weights are advantages and add up to 0, it is the
        number of the tokens that have one. Whether none counts is a bool []; None where all of them do.
        """
        if batch.rollout is not None:
            trained = batch.rollout.trained_tokens
            return max(1, trained), torch.full((), trained == 0, device=batch.inputs.device)
        if batch.weights is None:
            return self.layout.tokens_per_step, None
        weight = self._ranks.sum(batch.weights.sum())
        return torch.where(weight > 0, weight, torch.ones_like(weight)), weight <= 0

    def _accumulate_compiled_or_not(self, step: int, batch: Batch, counted: int | Tensor) -> Tensor:
        """As `_accumulate`; once more, not compiled, if the backward pass turns out not to compile."""
        if not isinstance(self.evaluator, CompiledModel):
            return self._accumulate(batch, counted)
        try:
            return self._accumulate(batch, counted)
        except CompiledModel.errors() as error:
            self.evaluator.give_up(error)
        self.model.zero_grad(set_to_none=True)
        seed_step(self._config.seed, step, self._ranks.rank)
        return self._accumulate(batch, counted)

    def _accumulate(self, batch: Batch, counted: int | Tensor) -> Tensor:
        """Add up the gradients of the mean loss over the global batch; return this process's summed loss, in nats."""
        parts = list(batch.split(self.layout.micro_batch_size))
        nats = torch.zeros((), device=batch.inputs.device)
        # DDP averages gradients over processes; what is wanted is their sum over the global count.
        scale = self._ranks.world_size / counted
        if self.loss_scale is not None:
            scale = scale * self.loss_scale.value
        allowed, self._uneven = OTHERS_SECONDS if self._uneven else 0.0, max(0, self._uneven - 1)
        self._goes_on(allowed)
        for number, part in enumerate(parts, start=1):
            with self._sync_gradients(last=number == len(parts)):
                with self._compute.autocast():
                    loss = self._runner(*part.tensors)
                (loss * scale).backward()
            nats += loss.detach()
            self._goes_on(allowed)
        return nats

    def _sync_gradients(self, *, last: bool) -> AbstractContextManager[object]:
        if last or not isinstance(self._runner, DistributedDataParallel):
            return nullcontext()
        return self._runner.no_sync()  # type: ignore[no-any-return]


def _spread(model: nn.Module, *, compute: Compute, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return model
    devices = [compute.device] if compute.on_gpu else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def _not_finite(step: int, loss: float, gradient_norm: float, learning_rate: float) -> str:
    return (
        f"training stopped before update {step + 1}: found loss {loss:g} and gradient norm {gradient_norm:g} at "
        f"learning rate {learning_rate:g}, need finite numbers; the weights were not touched and the last checkpoint "
        "stands. Lower training.learning_rate or raise training.warmup_steps, and start again"
    )

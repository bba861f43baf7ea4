"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the matrices of the blocks.

The state and the arithmetic are those of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`. What differs is the
work: matrices of one shape are made orthogonal together, and the device decides whether the update counts, so that the
host does not wait for it.

Shapes: B matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gpt_pipeline.hardware import devices
from gpt_pipeline.training.config import MuonConfig
from gpt_pipeline.training.grouped import GroupedOptimizer

_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5  # Newton-Schulz iterations, as torch.optim.Muon has them
_ADAMW_RMS = 0.2  # of an update's elements; Liu et al. 2025, "Muon is scalable for LLM training"
_EPS = 1e-7  # torch.optim.Muon's
_FIRST_MOMENTUM = 0.85  # of the warm-up


def momentum_at(step: int, config: MuonConfig) -> float:
    """Return the momentum of the update after `step` updates."""
    if step >= config.momentum_warmup_steps:
        return config.momentum
    return _FIRST_MOMENTUM + (config.momentum - _FIRST_MOMENTUM) * step / config.momentum_warmup_steps


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly, in bfloat16 (see `products_dtype`): [B, R, C] each."""
    dtype = devices.products_dtype(matrices.device)
    if dtype == torch.float16:  # which has nothing below 6e-8
        matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(_EPS)
    x = matrices.to(dtype)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(GroupedOptimizer):
    """Updates matrices; each has the state that it has in `torch.optim.Muon`."""

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, int]],
        config: MuonConfig,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """`matrices` are parameters, each with the number of matrices that it holds on top of each other."""
        self._config = config
        self._by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        parameters = []
        for parameter, count in matrices:
            parameters.append(parameter)
            self._by_shape.setdefault((parameter.size(0) // count, parameter.size(1)), []).append(parameter)
        super().__init__([{"params": parameters, "lr": learning_rate, "weight_decay": weight_decay}])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed by the type checker
    def step(self, *, momentum: float, divisor: Tensor, skip: Tensor) -> None:
        """Update the parameters from their gradients, divided by `divisor`; where `skip` is 1, nothing changes."""
        skip, scale = skip.bool(), divisor.reciprocal()
        for shape, parameters in self._by_shape.items():
            self._step_together(shape, parameters, momentum=momentum, scale=scale, skip=skip)

    def _step_together(
        self,
        shape: tuple[int, int],
        parameters: Sequence[nn.Parameter],
        *,
        momentum: float,
        scale: Tensor,
        skip: Tensor,
    ) -> None:
        gradients = torch.cat([parameter.grad.reshape(-1, *shape) for parameter in parameters])
        gradients.mul_(scale).masked_fill_(skip, 0.0)  # masked: what is skipped may be NaN
        self._average(parameters, gradients, momentum=momentum, skip=skip)
        self._apply(parameters, orthogonalized(gradients).masked_fill_(skip, 0.0), skip=skip)

    def _average(self, parameters: Sequence[nn.Parameter], gradients: Tensor, *, momentum: float, skip: Tensor) -> None:
        """Blend `gradients` [B, R, C] into their running means and then these into them: Nesterov's momentum."""
        _, R, C = gradients.shape
        means = [self._mean_of(parameter).view(-1, R, C) for parameter in parameters]
        blend = _unless(skip, 1 - momentum)
        for mean, gradient in zip(means, _split_like(gradients, means), strict=True):
            mean.lerp_(gradient, blend)
            gradient.lerp_(mean, momentum)

    def _apply(self, parameters: Sequence[nn.Parameter], updates: Tensor, *, skip: Tensor) -> None:
        """Decay the weights, and add `updates` [B, R, C] to them at the size that AdamW's would have."""
        _, R, C = updates.shape
        [group] = self.param_groups
        kept = _unless(skip, 1 - group["lr"] * group["weight_decay"], otherwise=1.0)
        weights = [parameter.view(-1, R, C) for parameter in parameters]
        for weight, update in zip(weights, _split_like(updates, weights), strict=True):
            weight.mul_(kept)
            weight.add_(update, alpha=-group["lr"] * _ADAMW_RMS * math.sqrt(max(R, C)))

    def _mean_of(self, parameter: nn.Parameter) -> Tensor:
        """Return the running mean of a parameter's gradients, zeros at first."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum_buffer"]
        return mean


def _split_like(stack: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the views of `stack` that belong to `parts`, one behind the other."""
    views: Sequence[Tensor] = stack.split([len(part) for part in parts])
    return views


def _unless(skip: Tensor, value: float, *, otherwise: float = 0.0) -> Tensor:
    """Return `value`, or `otherwise` where `skip` is true, on the device and without a wait for it."""
    return torch.full((), value, device=skip.device).masked_fill_(skip, otherwise)

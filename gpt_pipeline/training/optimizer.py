"""The optimizers: AdamW, or Muon for the blocks' matrices with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.model.language_model import LanguageModel
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


_BETAS = (0.9, 0.95)  # GPT-3 (Brown et al. 2020), appendix B
_EPS = 1e-8


class Optimizer:
    """One or two torch optimizers that step together at one learning rate."""

    def __init__(self, model: LanguageModel, config: TrainingConfig) -> None:
        """Sort the parameters of `model`, which must be on its device already, into groups."""
        self.name = config.optimizer
        hidden, matrices, others = _sort_parameters(model, muon=config.optimizer == "muon")
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=_BETAS, eps=_EPS, fused=True)
        self._optimizers = [adamw, *([_muon(hidden, config)] if hidden else [])]

    @property
    def parameters(self) -> list[list[Tensor]]:
        """The parameters of each torch optimizer, in the order in which its state numbers them."""
        return [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self._optimizers]

    def step(self, learning_rate: float, *, divisor: Tensor | None = None, skip: Tensor | None = None) -> None:
        """Update the parameters from their gradients, divided by `divisor`, and forget the gradients.

        Where `skip` is 1 nothing is updated, parameters and state alike. AdamW decides that on the device, with the
        arguments that gradient scalers give its fused kernel, and divides in the same pass over memory. Muon has no
        such arguments: with it the host waits for the decision.
        """
        adamw, *others = self._optimizers
        adamw.grad_scale, adamw.found_inf = divisor, skip
        skipped = bool(others) and skip is not None and bool(skip)
        if others and divisor is not None and not skipped:
            gradients = [p.grad for other in others for group in other.param_groups for p in group["params"]]
            torch._foreach_mul_(gradients, divisor.reciprocal())
        for optimizer in [] if skipped else self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {"name": self.name, "states": [optimizer.state_dict() for optimizer in self._optimizers]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the hyperparameters stay those of the present configuration.

        Raises:
            UserError: the state is that of another optimizer.
        """
        if state["name"] != self.name:
            raise UserError(
                f"training.optimizer: found {self.name} and a checkpoint made with {state['name']}; "
                "set it to that, or start with checkpoint_to_resume: scratch"
            )
        for optimizer, saved in zip(self._optimizers, state["states"], strict=True):
            groups = [
                {**present, "params": group["params"]}
                for present, group in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
            ]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _sort_parameters(model: LanguageModel, *, muon: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the matrices for Muon, the other matrices (decayed), and vectors (never decayed)."""
    hidden, matrices, others = [], [], []
    for _, parameter, role in model.roles():
        if role == "vector":
            others.append(parameter)
        elif muon and role == "matrix":
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    return hidden, matrices, others


def _muon(hidden: list[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            "training.optimizer",
            found="muon",
            need=f"torch 2.9 or newer (here: {torch.__version__})",
            remedy="update torch, or use adamw",
        )
    # "match_rms_adamw" (Liu et al. 2025, "Muon is scalable for LLM training") scales updates to the size of AdamW's,
    # so that both parts share one learning rate and one decay.
    return torch.optim.Muon(
        hidden, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )

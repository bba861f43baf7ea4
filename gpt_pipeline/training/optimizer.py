"""The optimizers: AdamW, or Muon for the blocks' matrices with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.adamw import AdamW
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.grouped import GroupedOptimizer
from gpt_pipeline.training.muon import Muon, momentum_at


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
        start = max(config.warmup_steps, max_steps - math.ceil(config.decay_share * max_steps))
        remaining = 1 - _progress(step, start, max_steps)
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * remaining


def _progress(step: int, start: int, max_steps: int) -> float:
    """Return how far `step` is from `start` (0) to the last update (1)."""
    return min(1.0, max(0.0, (step - start) / max(1, max_steps - 1 - start)))


class Optimizer:
    """AdamW, and Muon where it is wanted, which step together."""

    def __init__(self, model: LanguageModel, config: TrainingConfig) -> None:
        """Sort the parameters of `model`, which must be on its device already, into groups."""
        self.name = config.optimizer
        self._config = config
        hidden = _hidden_matrices(model) if config.optimizer == "muon" else {}
        self._adamw = AdamW(_adamw_groups(model, config, but=hidden), learning_rate=config.learning_rate)
        self._muon = _make_muon(model, hidden, config) if hidden else None

    @property
    def _optimizers(self) -> list[GroupedOptimizer]:
        return [self._adamw] if self._muon is None else [self._adamw, self._muon]

    @property
    def parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each optimizer, in the order in which its state numbers them."""
        return [optimizer.parameters for optimizer in self._optimizers]

    def step(self, done: int, learning_rate: float, *, divisor: Tensor, skip: Tensor) -> None:
        """Make the update after `done` updates from the gradients, divided by `divisor`, and forget them.

        Where `skip` is 1 nothing is updated, parameters and state alike. That is decided on the device: by AdamW's
        fused kernel with the arguments that gradient scalers give it, which divides in the same pass over memory. Where
        the kernel reads no such arguments, the host decides.
        """
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate_factor"]
        self._step_adamw(divisor, skip)
        if self._muon is not None:
            self._muon.step(momentum=momentum_at(done, self._config.muon), divisor=divisor, skip=skip)
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def rehearse(self) -> None:
        """Make an update that changes nothing, for the memory that it takes; forget the gradients."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        one = torch.ones((), device=self.parameters[0][0].device)
        if self.is_fresh and not devices.scales_in_optimizer(one.device):
            self._make_adamw_state(one)
        self.step(0, 0.0, divisor=one, skip=one)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def forget(self) -> None:
        """Forget what updates have left, and the gradients, as if none had been made."""
        for optimizer in self._optimizers:
            optimizer.state.clear()
            optimizer.zero_grad()

    @property
    def is_fresh(self) -> bool:
        """Whether no update has left anything yet."""
        return not any(optimizer.state for optimizer in self._optimizers)

    def _step_adamw(self, divisor: Tensor, skip: Tensor) -> None:
        if devices.scales_in_optimizer(divisor.device):
            self._adamw.step(divisor=divisor, skip=skip)
        elif not bool(skip):
            torch._foreach_mul_([p.grad for p in self.parameters[0] if p.grad is not None], divisor.reciprocal())
            self._adamw.step()

    def _make_adamw_state(self, one: Tensor) -> None:
        """Make the state by an update of zeros at a rate of 0, which moves no weight: a skipped one makes none."""
        for group in self._adamw.param_groups:
            group["lr"] = 0.0
        torch._foreach_zero_([p.grad for p in self.parameters[0] if p.grad is not None])
        self._step_adamw(one, torch.zeros_like(one))

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
            # How the parameters are grouped follows from the configuration; their numbers are always the same.
            optimizer.load_state(saved["state"])


def _hidden_matrices(model: LanguageModel) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter, role in model.roles() if role == "matrix"}


def _adamw_groups(model: LanguageModel, config: TrainingConfig, *, but: Container[str]) -> list[dict[str, Any]]:
    """Return the groups of the parameters whose name is not in `but`; those alike in decay and rate are one group."""
    factors = config.learning_rate_factors
    rates = {
        "embedding": factors.embedding,
        "matrix": factors.matrices,
        "head": factors.head,
        "vector": factors.vectors,
    }
    groups: list[dict[str, Any]] = []
    # In this order, since checkpoints number the parameters: all that decay as the model has them, then vectors.
    for role, rate in rates.items():
        how = {"weight_decay": 0.0 if role == "vector" else config.weight_decay, "rate_factor": rate}
        parameters = [parameter for name, parameter, its in model.roles() if its == role and name not in but]
        if groups and all(groups[-1][key] == value for key, value in how.items()):
            groups[-1]["params"] += parameters
        elif parameters:
            groups.append({"params": parameters, **how})
    return groups


def _make_muon(model: LanguageModel, hidden: Mapping[str, nn.Parameter], config: TrainingConfig) -> Muon:
    held = model.several_in_one if config.muon.split_qkv else {}
    counted = [
        (parameter, next((count for end, count in held.items() if name.endswith(end)), 1))
        for name, parameter in hidden.items()
    ]
    muon = Muon(counted, config.muon, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    muon.param_groups[0]["rate_factor"] = config.learning_rate_factors.matrices
    return muon

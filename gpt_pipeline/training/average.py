"""The running mean of the weights over the updates, beside the weights that are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.config import AverageConfig


def newest_share(done: int, config: AverageConfig, *, max_steps: int) -> float | None:
    """Return the share of the mean that the weights after `done` updates take, 1 at first; None: they take no part.

    With `decay` it is the exponential mean without the bias of its beginning, as Adam's moments are corrected.
    """
    if config.decay is not None:
        return float((1 - config.decay) / (1 - config.decay**done))
    if config.last is None:
        return None
    number = done - (max_steps - math.ceil(config.last * max_steps))
    return 1 / number if number > 0 else None


class WeightAverage:
    """The mean of each parameter, in float32 and on its device."""

    def __init__(self, model: LanguageModel, config: AverageConfig, *, max_steps: int) -> None:
        self._model = model
        self._config = config
        self._max_steps = max_steps
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, done: int, *, skip: Tensor) -> None:
        """Take in the weights after `done` updates; where `skip` is 1, the mean stays, which the device decides."""
        share = newest_share(done, self._config, max_steps=self._max_steps)
        if share is None:
            return
        if not self._means:
            self._means = {name: weight.detach().float().clone() for name, weight in self._model.named_parameters()}
        blend = share * (1 - skip)
        for name, weight in self._model.named_parameters():
            self._means[name].lerp_(weight, blend)

    @property
    def is_to_come(self) -> bool:
        """Whether a mean will be kept, and takes no memory yet."""
        return self._config.is_wanted and not self._means

    def state(self) -> dict[str, Tensor] | None:
        """Return the means by the parameters' names, the living tensors; None before the first."""
        return self._means or None

    def restore(self, state: Mapping[str, Tensor] | None, *, done: int) -> None:
        """Take over what `state` returned after `done` updates; without it the mean begins with the next weights.

        A mean of another configuration is dropped where this one has none yet: nothing would bring it up to date.
        """
        if state and newest_share(done, self._config, max_steps=self._max_steps) is None:
            state = None
        weights = dict(self._model.named_parameters())
        self._means = {name: mean.to(weights[name].device, copy=True) for name, mean in (state or {}).items()}

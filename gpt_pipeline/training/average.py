"""The running mean of the weights over the updates, beside the weights that are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt_pipeline.checkpoints.snapshot import Snapshot
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.config import AverageConfig

_DECAY = "training.average_weights.decay"


def begins_after(config: AverageConfig, *, max_steps: int) -> int | None:
    """Return after how many updates the mean begins, with the weights of the next; None: there is none."""
    if config.last is not None:
        return max_steps - math.ceil(config.last * max_steps)
    return None if config.decay is None else 0


def newest_share(number: int, config: AverageConfig) -> float:
    """Return the share of the mean that its newest weights take, the `number`th that it takes in; 1 at first.

    With `decay` it is the exponential mean without the bias of its beginning, as Adam's moments are corrected.
    """
    if config.decay is not None:
        return float((1 - config.decay) / (1 - config.decay**number))
    return 1 / number


class WeightAverage:
    """The mean of each parameter, in float32 and on its device."""

    def __init__(self, model: LanguageModel, config: AverageConfig, *, max_steps: int) -> None:
        self._model = model
        self._config = config
        self._begins_after = begins_after(config, max_steps=max_steps)
        self._since = 0
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, done: int, *, skip: Tensor) -> None:
        """Take in the weights after `done` updates; where `skip` is 1, the mean stays, which the device decides."""
        if not self._is_under_way(done):
            return
        if not self._means:
            self._since = done - 1  # later than it should have begun where a resumed training was given the key
            self._means = {name: weight.detach().float().clone() for name, weight in self._model.named_parameters()}
        blend = newest_share(done - self._since, self._config) * (1 - skip)
        for name, weight in self._model.named_parameters():
            self._means[name].lerp_(weight, blend)

    @property
    def is_to_come(self) -> bool:
        """Whether a mean will be kept, and takes no memory yet."""
        return self._config.is_wanted and not self._means

    def state(self) -> dict[str, Tensor] | None:
        """Return the means by the parameters' names, the living tensors; None before the first."""
        return self._means or None

    @property
    def since(self) -> int | None:
        """How many updates came before the first whose weights are in the means; None before the first."""
        return self._since if self._means else None

    def restore(self, snapshot: Snapshot) -> None:
        """Take over the mean of a checkpoint; without one it begins with the next weights.

        A mean of another configuration is dropped where this one has none yet: nothing would bring it up to date. So
        is an exponential one where a plain one is wanted. One of an earlier version, which did not note since when it
        is kept, counts as begun where the configuration says.
        """
        state, since = snapshot.average or {}, snapshot.average_since
        is_other = self._config.last is not None and snapshot.settings.get(_DECAY) is not None
        if is_other or not self._is_under_way(snapshot.step):
            state = {}
        weights = dict(self._model.named_parameters())
        self._means = {name: mean.to(weights[name].device, copy=True) for name, mean in state.items()}
        self._since = (self._begins_after or 0) if since is None else since

    def _is_under_way(self, done: int) -> bool:
        return self._begins_after is not None and done > self._begins_after

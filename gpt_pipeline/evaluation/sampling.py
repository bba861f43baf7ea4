"""Draws of tokens that are functions of a key and a position, not of a generator's state.

So a text depends on its own key alone: neither on the others of its batch nor on what was drawn before, and what a
killed program drew is drawn again.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_pipeline.errors import require


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """From which distribution tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; above 0."""

    top_k: int | None = None
    """Only this many of the likeliest tokens; None: all."""

    top_p: float | None = None
    """Only the likeliest tokens that together have this probability, in (0, 1), the last of them included (nucleus
    sampling, Holtzman et al. 2020); of the `top_k` where both are given. None: all."""

    def __post_init__(self) -> None:
        found = self.temperature
        require(0 < found < float("inf"), "temperature", found=found, need="a finite number above 0")
        require(self.top_k is None or self.top_k > 0, "top_k", found=self.top_k, need="a whole number above 0, or null")
        p = self.top_p
        require(p is None or 0 < p < 1, "top_p", found=p, need="a number between 0 and 1, or null")

    @property
    def is_plain(self) -> bool:
        """Whether it is the model's own distribution."""
        return self.temperature == 1 and self.top_k is None and self.top_p is None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability [B, V] of each token, given the model's `logits` [B, V]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            logits = _nucleus(logits, self.top_p)
        return logits.softmax(dim=-1)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return a token [B] for each row of `logits` [B, V], by `uniform` [B] in [0, 1)."""
        return chosen_by(self.probabilities(logits), uniform)


def chosen_by(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the tokens [B] where the distribution functions of `probabilities` [B, V] pass `uniform` [B] in [0, 1)."""
    passed = probabilities.cumsum(dim=-1)
    wanted = uniform.to(passed)[:, None] * passed[:, -1:]  # the sum is 1 but for rounding
    # Rounding may also set `wanted` to the whole sum, which no token would pass.
    wanted = torch.minimum(wanted, torch.nextafter(passed[:, -1:], torch.zeros_like(wanted)))
    return torch.searchsorted(passed, wanted, right=True)[:, 0]


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return `logits` [B, V] with -inf for all but the likeliest that together have the probability `top_p`."""
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    shares = ordered.softmax(dim=-1)
    # What is before a token decides, so that the one that passes `top_p`, and always the first, stays.
    beyond = shares.cumsum(dim=-1) - shares >= top_p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), -torch.inf)


class Draws:
    """The numbers by which the tokens behind some prompts are drawn."""

    def __init__(self, keys: Sequence[str], sampling: Sampling, *, length: int) -> None:
        """`keys` name the texts, one for each prompt; `length` is the most tokens of one."""
        self._uniform = np.stack([uniform(key, length) for key in keys]) if keys else np.empty((0, length))
        self.sampling = sampling

    def choose(self, logits: Tensor, prompts: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return a token [B] for each row of `logits` [B, V]: at `positions` in the texts behind `prompts`."""
        return self.draw(logits, prompts, positions)[0]

    def draw(self, logits: Tensor, prompts: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the same, and the probability [B] with which each token is drawn."""
        drawn = torch.from_numpy(self._uniform[list(prompts), list(positions)])
        device = logits.device
        if torch.are_deterministic_algorithms_enabled():
            logits = logits.cpu()  # no GPU adds up a row in a fixed order
        probabilities = self.sampling.probabilities(logits)
        chosen = chosen_by(probabilities, drawn.to(logits.device, torch.float32))
        return chosen.to(device), probabilities.gather(1, chosen[:, None])[:, 0].to(device)


def uniform(key: str, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) that `key` names: those of Philox (Salmon et al. 2011), a counter's function."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)

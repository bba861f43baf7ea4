"""Dynamic loss scaling for fp16 (Micikevicius et al. 2018, "Mixed precision training").

fp16 has no numbers between 0 and 6e-8, where many gradients lie. So the loss is multiplied by a scale before the
backward pass, and the gradients are divided by it in float32. A scale that is too large makes a gradient infinite: that
update is skipped, and the scale halved. After 2,000 updates in a row without one it is doubled. These are the rules of
`torch.amp.GradScaler`; what differs is that all of it is decided on the device, so that the host waits for no update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_FIRST = 2.0**16
_LEAST, _MOST = 1.0, 2.0**32
_GROWTH_INTERVAL = 2000  # updates


def is_overflow(loss: Tensor, gradient_norm: Tensor, scale: Tensor) -> Tensor:
    """Whether the gradient alone is not finite, and a smaller scale may mend it: bool []."""
    return loss.isfinite() & ~gradient_norm.isfinite() & (scale > _LEAST)


class LossScale:
    """The scale, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _FIRST, device=device)
        """What the loss is multiplied by, float32 []."""
        self._good_updates = torch.zeros((), device=device)
        """Without an overflow, since the scale last changed."""

    def update(self, overflow: Tensor) -> None:
        """Halve the scale after an `overflow` (bool []), double it after enough updates without one."""
        good = self._good_updates + 1
        grows = good >= _GROWTH_INTERVAL
        factor = torch.where(overflow, 0.5, torch.where(grows, 2.0, 1.0))
        self.value.mul_(factor).clamp_(_LEAST, _MOST)
        self._good_updates.copy_(good.masked_fill(overflow | grows, 0.0))

    def state(self) -> dict[str, Tensor]:
        """Return the state, the living tensors."""
        return {"value": self.value, "good_updates": self._good_updates}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.value.copy_(state["value"])
        self._good_updates.copy_(state["good_updates"])

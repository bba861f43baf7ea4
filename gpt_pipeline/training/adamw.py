"""AdamW (Loshchilov and Hutter 2019), by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gpt_pipeline.training.grouped import GroupedOptimizer

_BETAS = (0.9, 0.95)  # GPT-3 (Brown et al. 2020), appendix B
_EPS = 1e-8


class AdamW(GroupedOptimizer):
    """Updates parameters; each has the state that it has in `torch.optim.AdamW`."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, learning_rate: float) -> None:
        super().__init__([{"lr": learning_rate, "betas": _BETAS, "eps": _EPS, **group} for group in groups])

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed by the type checker
    def step(self, *, divisor: Tensor | None = None, skip: Tensor | None = None) -> None:
        """Update the parameters that have gradients, which the kernel divides by `divisor`; nothing where `skip` is 1.

        Both None: where the kernel reads no such arguments.
        """
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._state_of(parameter) for parameter in parameters]
            beta1, beta2 = group["betas"]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                grad_scale=divisor,
                found_inf=skip,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

"""What AdamW and Muon have in common: parameters in groups, and a state for each parameter.

The state of each parameter has the names that it has in `torch.optim`, so that checkpoints made with those optimizers
load. Groups hold only the settings that are used here: `torch.optim.Muon` needs more and fails with them.
`torch.optim.Optimizer` is not used because each of its methods imports torch's compiler, which takes as long as torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GroupedOptimizer:
    """Parameters in groups that share settings."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """`groups`: each the settings of its parameters by name, the learning rate as `lr`, and these as `params`."""
        self.param_groups = [dict(group) for group in groups]
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order in which the state numbers them."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups, with numbers for the parameters; its tensors are the living ones."""
        numbers = {parameter: number for number, parameter in enumerate(self.parameters)}
        return {
            "state": {numbers[parameter]: state for parameter, state in self.state.items()},
            "param_groups": [
                {**group, "params": [numbers[parameter] for parameter in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take over the states of the parameters, by their numbers, on the devices where these are."""
        parameters = self.parameters
        self.state.clear()
        for number, state in states.items():
            parameter = parameters[number]
            self.state[parameter] = {
                name: value.to(parameter.device, torch.float32 if name == "step" else parameter.dtype)
                for name, value in state.items()
            }

"""The model compiled, or as it is where compiling fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class CompiledModel(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Calls the compiled model. Compiling happens at the first call, and again for other shapes.

    Whether it can be done at all (a compiler that does not fit the headers, a driver too old for Triton) only that
    first call shows. When it fails the model runs as it is from then on, and `say` is told.
    """

    def __init__(self, model: nn.Module, *, say: Callable[[str], None]) -> None:
        super().__init__()
        self.model = model
        self._say = say
        # In a list, which torch does not search: the compiled model's parameters are those of `model`.
        self._compiled: list[nn.Module] = [torch.compile(model)]

    @staticmethod
    def errors() -> type[Exception]:
        """Return what failing to compile raises."""
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        error: type[Exception] = TorchDynamoException
        return error

    @property
    def is_compiled(self) -> bool:
        return bool(self._compiled)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return what the model returns."""
        if self._compiled:
            try:
                return self._compiled[0](ids, targets)
            except self.errors() as error:
                self.give_up(error)
        return self.model(ids, targets)

    def give_up(self, error: Exception) -> None:
        """Run the model as it is from now on, because of `error`; raise it if that is what failed."""
        if not self._compiled:
            raise error
        self._compiled.clear()
        cause = getattr(error, "inner_exception", error)  # what torch wraps says more
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        self._say(f"The model is not compiled, so training is slower: compiling it failed ({reason.strip()}).")

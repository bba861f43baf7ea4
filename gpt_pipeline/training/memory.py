"""How much memory a training takes, and what to do when the GPU's is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt_pipeline.errors import UserError
from gpt_pipeline.storage.resident import peak_resident_bytes
from gpt_pipeline.training.plan import StepPlan


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: tensors on a GPU, else the process's resident memory; None: unknown.

    The host keeps count of both, so asking waits for no device.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


@contextmanager
def explained_out_of_memory(plan: StepPlan) -> Iterator[None]:
    """Turn running out of GPU memory, wherever in the block, into a UserError that says what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory(plan)) from error


def out_of_memory(plan: StepPlan) -> str:
    """Return the advice: the next smaller micro-batch that divides the update as this one does."""
    micro = plan.micro_batch_size
    smaller = largest_proper_divisor(micro)
    advice = (
        "lower data.max_length or the model's size"
        if smaller is None
        else f"set training.micro_batch_size: {smaller} and start again"
    )
    return (
        f"the GPU's memory does not hold a forward and backward pass of {micro} sequences of {plan.max_length} tokens; "
        f"{advice} (an update keeps its {plan.batch_size} sequences, and the training continues from its checkpoint)"
    )


def largest_proper_divisor(number: int) -> int | None:
    """Return the largest divisor of `number` below it; None for 1."""
    return next((divisor for divisor in range(number // 2, 0, -1) if number % divisor == 0), None)

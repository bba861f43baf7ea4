"""How much memory a training takes, and what to do when the GPU's is full."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gpt_pipeline.errors import UserError
from gpt_pipeline.training.plan import StepPlan

_STATUS = Path("/proc/self/status")  # Linux


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: tensors on a GPU, else the process's resident memory; None: unknown.

    The host keeps count of both, so asking waits for no device.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return _peak_working_set()
    if _STATUS.is_file():
        return _peak_resident()
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS


def _peak_resident() -> int | None:
    """Return it as Linux counts it for this program; getrusage's figure begins with that of the process before exec."""
    with _STATUS.open(encoding="ascii", errors="replace") as status:
        line = next((line for line in status if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


if sys.platform == "win32":

    class _MemoryCounters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h."""

        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    def _peak_working_set() -> int | None:
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
        known = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
        return int(counters.peak_working_set) if known else None


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

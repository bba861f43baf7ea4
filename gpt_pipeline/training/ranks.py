"""The processes that train together: one alone, or several started by torchrun."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.shown import Say
from gpt_pipeline.training.launch import place_in
from gpt_pipeline.training.stopping import OTHERS_SECONDS, PATIENCE_SECONDS

_LET_GO_SECONDS = 0.1  # a thread takes microseconds


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on this machine, which is that of its GPU."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Ranks:
        """Return what torchrun says in the environment; one process alone where it did not start this one.

        Raises:
            UserError: as `launch.place_in`.
        """
        place = place_in(environment)
        return cls() if place is None else cls(**place._asdict())

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return `value` summed over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process. Waits for the other processes, not for the GPU."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def from_first(self, value: Any) -> Any:
        """Return the first process's `value`: plain values only."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def process_group(ranks: Ranks, say: Say, *, wait_seconds: float = 600.0) -> Iterator[None]:
    """Connect the processes for the length of the block; nothing to do for one alone.

    Tensors on GPUs go through NCCL (on Intel's, XCCL), those on the CPU (stop flags, paths) through gloo.

    Raises:
        UserError: the others did not come within `wait_seconds`, or this one cannot wait where it is told to.
    """
    if ranks.world_size == 1:
        yield
        return
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    began = time.monotonic()
    say(f"Waiting at {where} for the processes that train together, {ranks.world_size} in all.")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=wait_seconds)))
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(size)], timedelta(seconds=wait_seconds))
    except (dist.DistError, ValueError) as error:
        waited = time.monotonic() - began >= wait_seconds
        place, why = f"RANK={ranks.rank} of WORLD_SIZE={ranks.world_size}", str(error).partition("\n")[0]
        what = (
            f"did not meet at {where} within {wait_seconds:.0f} s ({why}); start them all"
            if waited
            else f"cannot meet at {where}: {why}; start them with torchrun, or set MASTER_ADDR to the machine of "
            "RANK=0 and MASTER_PORT to a free port there"
        )
        raise UserError(
            f"{place}: the processes that train together {what}, or unset RANK to train with one process"
        ) from error
    # Longer than the watchdog mostly allows for, which tells a process that waits from one that hangs: not where a
    # checkpoint takes more than an hour to write.
    timeout = timedelta(seconds=PATIENCE_SECONDS + 2 * OTHERS_SECONDS)
    dist.init_process_group(devices.collective_backends(), timeout=timeout, store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        leave_process_group()


def leave_process_group() -> None:
    """Close the connection of the processes.

    torch waits for gloo's threads meanwhile and holds the interpreter's lock, which one of them may still need to let
    go of the last exchange's tensors; both would wait for ever.
    """
    time.sleep(_LET_GO_SECONDS)
    dist.destroy_process_group()

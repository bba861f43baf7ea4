"""The processes that train together: one alone, or several started by torchrun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on this machine, which is that of its GPU."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Ranks:
        """Return what torchrun says in the environment; one process alone if it says nothing."""
        if "RANK" not in environment:
            return cls()
        return cls(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
        )

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
def process_group(ranks: Ranks) -> Iterator[None]:
    """Connect the processes for the length of the block; nothing to do for one alone.

    Tensors on GPUs go through NCCL where torch has it, those on the CPU (stop flags, paths) through gloo.
    """
    if ranks.world_size == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()

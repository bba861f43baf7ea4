"""What this machine would train on, and how, as the trainer will choose it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.costs import Precision
from gpt_pipeline.planning.host import host_memory
from gpt_pipeline.training.config import HardwareConfig, TrainingConfig
from gpt_pipeline.training.device import Compute, choose_compute
from gpt_pipeline.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device of one training process."""

    description: str
    precision: Precision
    memory_total: int | None
    """Bytes; None where unknown."""

    memory_free: int | None
    """Of these, what no other program uses now."""


def choose_device(hardware: HardwareConfig, training: TrainingConfig) -> Device:
    """Return what the trainer would choose here; on the CPU of another machine, whose memory is not known.

    Raises:
        ConfigError: the file asks for a GPU, more of them or a compiler that this machine lacks.
    """
    compute = choose_compute(hardware, training, ranks=Ranks(), say=lambda _: None)
    if compute.on_gpu and hardware.num_gpus > devices.count_gpus():
        raise ConfigError(
            "hardware.num_gpus",
            found=hardware.num_gpus,
            need=f"at most {devices.count_gpus()}, the GPUs of this machine",
            remedy="lower it, or run on a machine that has as many",
        )
    if hardware.is_remote:
        return Device(
            description=f"CPU, {hardware.place}", precision=_precision(compute), memory_total=None, memory_free=None
        )
    return _gpu(compute) if compute.on_gpu else _cpu(compute)


def absent_gpu(training: TrainingConfig) -> Precision:
    """Return how a GPU that this machine lacks would compute, with Triton, which torch for CUDA includes."""
    compute = Compute(
        device=torch.device("cuda"),
        precision="bf16" if training.precision == "auto" else training.precision,
        compile=training.compile is not False,
        peak_flops=None,
    )
    return _precision(compute)


def _gpu(compute: Compute) -> Device:
    free, total = devices.memory_of(compute.device)
    return Device(description=compute.describe(), precision=_precision(compute), memory_total=total, memory_free=free)


def _cpu(compute: Compute) -> Device:
    memory = host_memory()
    return Device(
        description=compute.describe(),
        precision=_precision(compute),
        memory_total=memory.total,
        memory_free=memory.available,
    )


def _precision(compute: Compute) -> Precision:
    return Precision(cuda=compute.on_gpu, bf16=compute.half, compiled=compute.compile, loss_piece=compute.loss_piece)

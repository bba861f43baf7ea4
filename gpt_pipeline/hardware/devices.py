"""The one place that knows which devices torch computes on, and in what they differ.

`cuda` is a GPU by NVIDIA, or one by AMD with torch's ROCm build, which goes by the same name; `mps` is Apple's, `xpu`
Intel's. Everything else asks here, never `torch.cuda` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gpt_pipeline.errors import ConfigError

GPUS = ("cuda", "mps", "xpu")

Half = Literal["bf16", "fp16"]
"""A number of 16 bits: bfloat16 with the range of float32, or float16 with three more bits of precision."""

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_OLDEST_NVIDIA_BF16, _OLDEST_NVIDIA_FP16 = (8, 0), (7, 0)  # compute capability: Ampere; Volta, the first tensor cores
# Turing without tensor cores (TU116, TU117), which has the compute capability of Turing with them: "NVIDIA Turing GPU
# Architecture" names the chips, the product pages what they are sold as.
_WITHOUT_TENSOR_CORES = re.compile(r"\b(GTX 16\d\d|MX[45]50|T(4|5|6|10|12|20)00|T550|CMP 30HX)\b")
# AMD's architectures whose matrix units take bfloat16 (ROCm, "Data types and precision support"): CDNA 1 to 4, RDNA 3
# and 4. LLVM's names of them begin so.
_AMD_BF16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
_OLDEST_MACOS_BF16 = (14, 0)


def find_gpu() -> str | None:
    """Return the kind of GPU that torch can use here; None: it can use none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in GPUS else None


def count_gpus() -> int:
    """Return how many GPUs torch can use here."""
    return 0 if find_gpu() is None else int(torch.accelerator.device_count())


def choose_kind(wanted: str) -> str:
    """Return `cuda`, `mps`, `xpu` or `cpu` for what `hardware.device` says; `auto`: the GPU if there is one.

    Raises:
        ConfigError: torch finds no such device here.
    """
    found = find_gpu()
    if wanted == "auto":
        return found or "cpu"
    if wanted in ("cpu", found):
        return wanted
    sees = "sees none" if found is None else f"sees {found}"
    raise ConfigError(
        "hardware.device",
        found=wanted,
        need=f"{'a GPU' if wanted == 'cuda' else 'a device'} that torch can use; torch {torch.__version__} {sees}",
        remedy="install the build of torch for it (https://pytorch.org/get-started/locally), or set hardware.device: "
        "auto or cpu",
    )


def on_gpu(tensor: Tensor) -> bool:
    """Whether `tensor` lies on a GPU of any kind."""
    return bool(tensor.device.type in GPUS)


def name_of(device: torch.device | str) -> str:
    """Return what the driver calls the GPU."""
    device = torch.device(device)
    if device.type == "mps":
        return str(torch.backends.mps.get_name())
    return str(torch.get_device_module(device).get_device_name(device))


def native_half(device: torch.device) -> Half | None:
    """Return the 16-bit precision in which the GPU itself multiplies matrices, bf16 before fp16; None: none is known.

    torch computes in bf16 on older chips too, by way of float32, which is slower than float32 alone.
    Apple's M1 has no bf16 and calculates as fast in float32 as in float16; nothing tells its successors' speeds.
    """
    if device.type == "cuda" and torch.version.hip is not None:
        architecture = str(torch.cuda.get_device_properties(device).gcnArchName)
        return "bf16" if architecture.startswith(_AMD_BF16) else None
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _OLDEST_NVIDIA_BF16:
            return "bf16"
        has_fp16 = capability >= _OLDEST_NVIDIA_FP16 and not _WITHOUT_TENSOR_CORES.search(name_of(device))
        return "fp16" if has_fp16 else None
    if device.type == "xpu":
        return "bf16" if torch.xpu.get_device_properties(device).has_bfloat16_conversions else None
    return None


def products_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of products that need no more than 8 bits of precision: bfloat16, unless a GPU emulates that."""
    half = native_half(device) if device.type in GPUS else "bf16"
    return torch.float32 if half is None else DTYPES[half]


def allows_bf16(device: torch.device) -> bool:
    """Whether bf16 may be asked for: where the chip has it, where macOS has it, and on any CPU."""
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(*_OLDEST_MACOS_BF16))
    return bool(device.type == "cpu" or native_half(device) == "bf16")


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64: no GPU by Apple does, and not all of Intel's."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return bool(device.type != "mps")


def runs_ahead(device: torch.device) -> bool:
    """Whether the host prepares the next update while the device computes: copies from pinned memory, and events.

    On Apple's GPUs, which share the host's memory, copies that are not waited for are not safe to read.
    """
    return bool(device.type in ("cuda", "xpu"))


def scales_in_optimizer(device: torch.device) -> bool:
    """Whether torch's fused AdamW heeds `grad_scale` and `found_inf`; its kernel for Apple's GPUs reads neither."""
    return bool(device.type != "mps")


def memory_of(device: torch.device) -> tuple[int, int]:
    """Return the bytes of the GPU's memory that are free, and all of them; of the host's memory, what macOS lends."""
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return max(0, total - int(torch.mps.driver_allocated_memory())), total
    free, total = torch.get_device_module(device).mem_get_info(device)
    return int(free), int(total)


def held_by_others(device: torch.device) -> int:
    """Return the bytes of the GPU's memory that are neither free nor torch's in this process."""
    free, total = memory_of(device)
    mps = device.type == "mps"
    own = torch.mps.driver_allocated_memory() if mps else torch.get_device_module(device).memory_reserved(device)
    return max(0, total - free - int(own))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors on the GPU have taken so far; the host keeps count.

    On Apple's GPUs, what is reserved for them now, which seldom shrinks.
    """
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(torch.get_device_module(device).max_memory_allocated(device))


def refuses_memory(device: torch.device) -> bool:
    """Whether what the device's memory does not hold raises an error; a CPU's system rather kills the process."""
    return bool(device.type in GPUS)


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps of the GPU's memory and nothing uses, and begin to count the peak again."""
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type in GPUS:
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's means that a device's memory is full; that of Apple's has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def synchronize() -> None:
    """Wait until the GPU, where there is one, has done what it was given."""
    if find_gpu() is not None:
        torch.accelerator.synchronize()


def generator_states() -> dict[str, list[Tensor]]:
    """Return the states of the GPUs' random generators, by their kind; an empty list for CUDA where there is none."""
    states: dict[str, list[Tensor]] = {"cuda": []}
    kind = find_gpu()
    if kind == "mps":
        states["mps"] = [torch.mps.get_rng_state()]
    elif kind is not None:
        states[kind] = torch.get_device_module(kind).get_rng_state_all()
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set the GPUs' random generators to what `generator_states` returned; GPUs that are not here are left out."""
    kind = find_gpu()
    kept: Sequence[Tensor] = states.get(kind, [])[: count_gpus()] if kind is not None else []
    for number, state in enumerate(kept):
        if kind == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.get_device_module(kind).set_rng_state(state, number)


def collective_backends() -> str:
    """Return what processes talk through: gloo between CPUs, and the library of the GPUs' maker between those."""
    kind = find_gpu()
    if kind is None:
        return "gloo"
    return f"cpu:gloo,{kind}:{torch.distributed.get_default_backend_for_device(kind)}"

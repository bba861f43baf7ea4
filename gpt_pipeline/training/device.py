"""How a step runs on the device that is there: where, in which precision, compiled or not, in how much memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.hardware.peaks import peak_flops
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.resident import peak_resident_bytes
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig, divisors
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.stopping import COMPILING_SECONDS, GoesOn, unheeded

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
_LARGEST_THRESHOLD = 32 << 20  # that glibc takes where addresses have 64 bits: mallopt(3)
_LOSS_PIECE_CPU = 1024  # 0.2 GB of logits
_LOSS_PIECE_GPU = 8192  # 1.6 GB of logits; small enough to fit, large enough for full-speed matrix products

_COMPILED_BY_TRITON = ("cuda", "xpu")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_MOST_GRAPHS = 32  # of shapes that have one each, torch compiles fewer
_NO_FIXED_ORDER = re.compile(r"(\S+) does not have a deterministic implementation")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How this process computes."""

    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products (autocast); weights and optimizer stay in float32."""

    compile: bool
    peak_flops: float | None
    """Of the device in this precision; None where unknown."""

    deterministic: bool = False
    """Whether a GPU is to add up in a fixed order."""

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU of any kind."""
        return self.device.type in devices.GPUS

    @property
    def half(self) -> bool:
        """Whether products read numbers of 16 bits."""
        return self.precision != "fp32"

    @property
    def updates_in_flight(self) -> int:
        """How many updates may be under way on the device while the host prepares the next."""
        return 1 if devices.runs_ahead(self.device) else 0

    @property
    def loss_piece(self) -> int | None:
        """Tokens whose logits are in memory together; None: all.

        On the CPU pieces bound the memory and cost about 2 % of time below some 1,000 tokens (docs/benchmarks.md). A
        compiler fuses the loss and never holds logits in float32; eager on a GPU they would be the largest thing in
        memory.
        """
        if not self.on_gpu:
            return _LOSS_PIECE_CPU
        return None if self.compile else _LOSS_PIECE_GPU

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the model runs forward."""
        if not self.half:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=devices.DTYPES[self.precision])  # type: ignore[no-any-return]

    def describe(self) -> str:
        """Return the choice in words."""
        name = devices.name_of(self.device) if self.on_gpu else f"CPU, {_threads(torch.get_num_threads())}"
        how = f"{name}, {self.precision}, {'compiled' if self.compile else 'eager'}"
        return f"{how}, deterministic" if self.deterministic and self.on_gpu else how


def _threads(count: int) -> str:
    return counted(count, "thread")


def prepare_process(compute: Compute, *, same_sizes: bool = True) -> None:
    """Set up this process for how it computes, before the first operation on the device.

    On the CPU of a machine with glibc, have it keep the memory that it frees: gradients and activations are allocated
    anew in each update. glibc gives large blocks back to the kernel at once, and having them zeroed and mapped again
    takes a tenth of the time of an update. Blocks whose size differs from update to update do not fit where earlier
    ones lay, so that the process would grow: without `same_sizes`, those of 32 MB or more go back to the kernel.
    On a GPU, fix the order of sums if that is asked for.
    """
    if compute.on_gpu:
        if compute.deterministic:
            _fix_order_of_sums()
        return
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(*((_M_MMAP_MAX, 0) if same_sizes else (_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)))
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def _fix_order_of_sums() -> None:
    """Have the libraries of GPUs use only kernels that add up in a fixed order, and torch refuse what has none.

    cuBLAS reads its variable with its first product (its manual, "Results Reproducibility"), NCCL with its first
    message: of its algorithms the ring adds up in the order of the ranks. torch then takes flash and memory-efficient
    attention with a backward pass in a fixed order and cuDNN's not at all, and its compiler chooses no kernel by a
    stopwatch. What is not written is never read, so new memory need not be filled.
    """
    os.environ.setdefault(_CUBLAS, ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True


def choose_compute(hardware: HardwareConfig, training: TrainingConfig, *, ranks: Ranks, say: Say) -> Compute:
    """Return how to compute what is asked for on what is there.

    Raises:
        ConfigError: the GPU that is asked for is not here, it has no bf16 and that is asked for, or compilation and
            nothing to compile with.
    """
    device = _choose_device(hardware, ranks)
    gpu = device.type in devices.GPUS
    if gpu:
        if device.index is not None:
            torch.accelerator.set_device_index(device.index)
        torch.set_float32_matmul_precision("high")  # TF32 where products remain in float32
    precision = _choose_precision(training, device, say)
    return Compute(
        device=device,
        precision=precision,
        compile=_choose_compile(training, device, say=say),
        peak_flops=peak_flops(devices.name_of(device)) if gpu and precision != "fp32" else None,
        deterministic=training.deterministic,
    )


def _choose_precision(training: TrainingConfig, device: torch.device, say: Say) -> Literal["fp32", "bf16", "fp16"]:
    wanted = training.precision
    if wanted == "auto" and device.type == "cpu":
        if cpu_has_bf16():
            say(
                "This processor has bf16 instructions: with training.precision: bf16 an update takes about two thirds "
                "of the time (docs/benchmarks.md). `auto` computes in fp32 on every processor."
            )
        return "fp32"
    if wanted == "auto":
        return devices.native_half(device) or "fp32"
    if wanted == "bf16" and not devices.allows_bf16(device):
        raise ConfigError(
            "training.precision",
            found="bf16",
            need=f"a precision that {devices.name_of(device)} multiplies in; it would emulate bf16, which is slower "
            "than fp32",
            remedy="use fp16 or fp32; what was trained so far continues with storage.checkpoint_to_resume",
        )
    if wanted == "fp16" and device.type == "cpu":
        say("CPUs compute in fp16 many times slower than in fp32: training.precision: auto is faster here.")
    return wanted


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16; others have to emulate it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _choose_device(hardware: HardwareConfig, ranks: Ranks) -> torch.device:
    kind = devices.choose_kind(hardware.device)
    if kind == "cpu":
        return torch.device("cpu")
    count = devices.count_gpus()
    if ranks.local_rank >= count:
        raise ConfigError("hardware.num_gpus", found=ranks.local_rank + 1, need=f"at most {count}, the GPUs here")
    return torch.device("mps") if kind == "mps" else torch.device(kind, ranks.local_rank)


def _choose_compile(training: TrainingConfig, device: torch.device, *, say: Say) -> bool:
    by_triton = device.type in _COMPILED_BY_TRITON
    if training.compile is False or (training.compile == "auto" and not by_triton):
        return False
    missing = _missing_for_compile(by_triton=by_triton)
    if missing is None:
        return True
    if training.compile is True:
        raise ConfigError("training.compile", found=True, need=f"{missing}, which is missing here", remedy="use auto")
    say(f"The model is not compiled, so training is slower: {missing} is missing here.")
    return False


def _missing_for_compile(*, by_triton: bool) -> str | None:
    if by_triton and importlib.util.find_spec("triton") is None:
        return "Triton"
    compilers = ("cc", "gcc", "clang", "cl")
    return None if any(shutil.which(name) for name in compilers) else "a C compiler"


class CompiledModel(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Calls the compiled model. Compiling happens at the first call, and again for other shapes.

    With `any_shape` the second shape is compiled for shapes of any size, which is slower, and each further one takes
    that; without, each shape has a graph of its own, and torch allows for a few. `goes_on` is told before a call that
    has to compile, and how long that may take.

    Whether it can be done at all (a compiler that does not fit the headers, a driver too old for Triton) only that
    first call shows. When it fails the model runs as it is from then on, with logits of `eager_piece` tokens in memory
    together (see `Compute.loss_piece`), and `say` is told.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        say: Say,
        any_shape: bool = False,
        eager_piece: int | None = None,
        goes_on: GoesOn = unheeded,
    ) -> None:
        super().__init__()
        self.model = model
        self._eager_piece = eager_piece
        self._say = say
        self._goes_on = goes_on
        self._called: set[tuple[object, ...]] = set()
        # In a list, which torch does not search: the compiled model's parameters are those of `model`.
        self._compiled: list[nn.Module] = [torch.compile(model, dynamic=None if any_shape else False)]

    @staticmethod
    def errors() -> type[Exception]:
        """Return what failing to compile raises."""
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        error: type[Exception] = TorchDynamoException
        return error

    @property
    def is_compiled(self) -> bool:
        return bool(self._compiled)

    def forward(
        self, ids: Tensor, targets: Tensor, weights: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Return what the model returns."""
        if self._compiled:
            self._tell_if_new(torch.is_grad_enabled(), ids.shape, weights is None, starts is None)
            try:
                return self._compiled[0](ids, targets, weights, starts)
            except self.errors() as error:
                self.give_up(error)
        return self.model(ids, targets, weights, starts)

    def _tell_if_new(self, *kind: object) -> None:
        """Say that this call may compile, if none of its kind came before; of many shapes, the first ones."""
        if kind not in self._called and len(self._called) < _MOST_GRAPHS:
            self._called.add(kind)
            self._goes_on(COMPILING_SECONDS)

    def give_up(self, error: Exception) -> None:
        """Run the model as it is from now on, because of `error`; raise it if that is what failed.

        Raises:
            RuntimeError: memory was full meanwhile (`devices.is_out_of_memory`): a smaller batch may compile.
        """
        if not self._compiled:
            raise error
        cause = getattr(error, "inner_exception", error)  # what torch wraps says more
        if isinstance(cause, RuntimeError) and devices.is_out_of_memory(cause):
            raise cause
        self._compiled.clear()
        self.model.loss_piece = self._eager_piece
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        self._say(f"The model is not compiled, so training is slower: compiling it failed ({reason.strip()}).")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: tensors on a GPU, else the process's resident memory; None: unknown.

    The host keeps count of both, so asking waits for no device.
    """
    return devices.peak_memory(device) if device.type in devices.GPUS else peak_resident_bytes()


@contextmanager
def explained_out_of_memory(layout: StepLayout, training: TrainingConfig) -> Iterator[None]:
    """Turn running out of GPU memory, wherever in the block, into a UserError that says what to try."""
    try:
        yield
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(layout, training)) from error


@contextmanager
def explained_order_of_sums() -> Iterator[None]:
    """Turn torch's refusal of what adds up in no fixed order into a UserError that names it."""
    try:
        yield
    except RuntimeError as error:
        refused = _NO_FIXED_ORDER.search(str(error))
        if refused is not None:
            found, remedy = f"{refused[1]}, which has no such kernel in torch {torch.__version__}", ""
        elif _CUBLAS in str(error):
            found = f"{_CUBLAS}={os.environ.get(_CUBLAS)}, with which cuBLAS has none"
            remedy = "unset that variable, or "
        else:
            raise
        raise UserError(
            f"training.deterministic: found {found}; need sums in a fixed order. {remedy.capitalize()}set "
            "training.deterministic: false and start again: the training continues from its checkpoint"
        ) from error


def out_of_memory(layout: StepLayout, training: TrainingConfig) -> str:
    """Return the advice: the next smaller micro-batch that divides the update as this one does, or recomputation."""
    micro = layout.micro_batch_size
    smaller = largest_proper_divisor(micro)
    if smaller is not None:
        advice = f"set training.micro_batch_size: {smaller} and start again"
    elif not training.gradient_checkpointing:
        advice = "set training.gradient_checkpointing: true and start again"
    else:
        advice = "lower data.max_length or the model's size"
    return (
        f"the GPU's memory does not hold a forward and backward pass of {counted(micro, 'sequence')} of "
        f"{layout.max_length} tokens; "
        f"{advice} (an update keeps its {counted(layout.batch_size, 'sequence')}, and the training continues from its "
        "checkpoint)"
    )


def largest_proper_divisor(number: int) -> int | None:
    """Return the largest divisor of `number` below it; None for 1."""
    return next(iter(divisors(number)[1:]), None)

"""How a step runs on the device that is there: where, in which precision, compiled or not, in how much memory."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.storage.resident import peak_resident_bytes
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig
from gpt_pipeline.training.ranks import Ranks

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_LOSS_PIECE_CPU = 1024  # 0.2 GB of logits
_LOSS_PIECE_CUDA = 8192  # 1.6 GB of logits; small enough to fit, large enough for full-speed matrix products

# Dense bf16 FLOP/s on tensor cores, without sparsity, from NVIDIA's data sheets.
_PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How this process computes."""

    device: torch.device
    bf16: bool
    """Whether matrix products run in bfloat16 (autocast); weights and optimizer stay in float32."""

    compile: bool
    peak_flops: float | None
    """Of the device in this precision; None where unknown."""

    @property
    def is_cuda(self) -> bool:
        return bool(self.device.type == "cuda")

    @property
    def updates_in_flight(self) -> int:
        """How many updates may be under way on the device while the host prepares the next."""
        return 1 if self.is_cuda else 0

    @property
    def loss_piece(self) -> int | None:
        """Tokens whose logits are in memory together; None: all.

        On the CPU pieces bound the memory and cost about 2 % of time below some 1,000 tokens (docs/benchmarks.md), so
        those are taken at once. A compiler fuses the loss and never holds logits in float32; eager on a GPU they would
        be the largest thing in memory.
        """
        if not self.is_cuda:
            return _LOSS_PIECE_CPU
        return None if self.compile else _LOSS_PIECE_CUDA

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the model runs forward."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)  # type: ignore[no-any-return]

    def describe(self) -> str:
        """Return the choice in words."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else f"CPU, {_threads(torch.get_num_threads())}"
        return f"{name}, {'bf16' if self.bf16 else 'fp32'}, {'compiled' if self.compile else 'eager'}"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def prepare_process(compute: Compute) -> None:
    """Have this process keep the memory that it frees, where it computes on the CPU of a machine with glibc.

    Gradients and activations are allocated anew in each update. glibc gives large blocks back to the kernel at once,
    and having them zeroed and mapped again takes a tenth of the time of an update.
    """
    if compute.is_cuda or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def choose_compute(
    hardware: HardwareConfig, training: TrainingConfig, *, ranks: Ranks, say: Callable[[str], None]
) -> Compute:
    """Return how to compute what is asked for on what is there.

    Raises:
        ConfigError: CUDA is asked for and torch has none, or compilation and nothing to compile with.
    """
    device = _choose_device(hardware, ranks)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 where products remain in float32
    bf16 = cuda if training.precision == "auto" else training.precision == "bf16"
    if training.precision == "auto" and not cuda and cpu_has_bf16():
        say(
            "This processor has bf16 instructions: with training.precision: bf16 an update takes about two thirds of "
            "the time (docs/benchmarks.md). `auto` computes in fp32 on every processor."
        )
    peak = _peak_flops(torch.cuda.get_device_name(device)) if cuda and bf16 else None
    return Compute(device=device, bf16=bf16, compile=_choose_compile(training, cuda=cuda, say=say), peak_flops=peak)


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16; others have to emulate it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _choose_device(hardware: HardwareConfig, ranks: Ranks) -> torch.device:
    available = torch.cuda.is_available()
    if hardware.device == "cuda" and not available:
        raise ConfigError(
            "hardware.device",
            found="cuda",
            need=f"a GPU that torch can use; torch {torch.__version__} sees none",
            remedy="install a CUDA build of torch (https://pytorch.org/get-started/locally), or set hardware.device: "
            "auto or cpu",
        )
    if hardware.device == "cpu" or not available:
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            "hardware.num_gpus", found=ranks.local_rank + 1, need=f"at most {torch.cuda.device_count()}, the GPUs here"
        )
    return torch.device("cuda", ranks.local_rank)


def _choose_compile(training: TrainingConfig, *, cuda: bool, say: Callable[[str], None]) -> bool:
    if training.compile is False or (training.compile == "auto" and not cuda):
        return False
    missing = _missing_for_compile(cuda=cuda)
    if missing is None:
        return True
    if training.compile is True:
        raise ConfigError("training.compile", found=True, need=f"{missing}, which is missing here", remedy="use auto")
    say(f"The model is not compiled, so training is slower: {missing} is missing here.")
    return False


def _missing_for_compile(*, cuda: bool) -> str | None:
    if cuda and importlib.util.find_spec("triton") is None:
        return "Triton"
    compilers = ("cc", "gcc", "clang", "cl")
    return None if any(shutil.which(name) for name in compilers) else "a C compiler"


def _peak_flops(name: str) -> float | None:
    return next((flops for part, flops in _PEAK_BF16_FLOPS.items() if part in name.replace("NVL", "")), None)


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

    def forward(
        self, ids: Tensor, targets: Tensor, weights: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Return what the model returns."""
        if self._compiled:
            try:
                return self._compiled[0](ids, targets, weights, starts)
            except self.errors() as error:
                self.give_up(error)
        return self.model(ids, targets, weights, starts)

    def give_up(self, error: Exception) -> None:
        """Run the model as it is from now on, because of `error`; raise it if that is what failed."""
        if not self._compiled:
            raise error
        self._compiled.clear()
        cause = getattr(error, "inner_exception", error)  # what torch wraps says more
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        self._say(f"The model is not compiled, so training is slower: compiling it failed ({reason.strip()}).")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: tensors on a GPU, else the process's resident memory; None: unknown.

    The host keeps count of both, so asking waits for no device.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


@contextmanager
def explained_out_of_memory(layout: StepLayout, training: TrainingConfig) -> Iterator[None]:
    """Turn running out of GPU memory, wherever in the block, into a UserError that says what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory(layout, training)) from error


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
        f"the GPU's memory does not hold a forward and backward pass of {micro} sequences of "
        f"{layout.max_length} tokens; "
        f"{advice} (an update keeps its {layout.batch_size} sequences, and the training continues from its checkpoint)"
    )


def largest_proper_divisor(number: int) -> int | None:
    """Return the largest divisor of `number` below it; None for 1."""
    return next((divisor for divisor in range(number // 2, 0, -1) if number % divisor == 0), None)

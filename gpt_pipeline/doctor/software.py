"""Python and the libraries; torch, the GPU and its driver, and what compiling a model needs."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from gpt_pipeline.findings import Finding, note, ok, problem
from gpt_pipeline.training.config import HardwareConfig

_logger = logging.getLogger(__name__)

DISTRIBUTION = "gpt-pipeline"
_OLDEST = (3, 11)
_NEWEST = (3, 14)  # that is tested
_LOCALLY = "https://pytorch.org/get-started/locally"
_WHEELS = "https://download.pytorch.org/whl"
_CUDA_OF_WHEELS = ((13, 0), (12, 8), (12, 6))  # that pytorch.org offers builds for, newest first
_SECONDS = 20.0
_OLDEST_FOR_TRITON = (7, 0)  # compute capability; older GPUs train without being compiled


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Iterator[Finding]:
    """Check the version of Python."""
    text = f"{platform.python_version()} ({sys.executable})"
    if version < _OLDEST:
        needed = f"{text}, need {_OLDEST[0]}.{_OLDEST[1]} or newer"
        yield problem("python", needed, "install a newer one, and make the virtual environment anew with it")
    elif sys.maxsize < 2**32:
        yield problem("python", f"{text} is a 32-bit build", "install a 64-bit one: torch has no other")
    elif version > _NEWEST:
        yield note("python", f"{text}; up to {_NEWEST[0]}.{_NEWEST[1]} is tested")
    else:
        yield ok("python", text)


def check_libraries(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """Check the installed versions of everything the package needs."""
    try:
        needed = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        yield note(
            "libraries", f"{distribution} itself is not installed here, so what it needs is not known", _install()
        )
        return
    wanted = [each for each in map(Requirement, needed) if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [text for each in wanted if (text := misfit(each)) is not None]
    if wrong:
        yield problem("libraries", "; ".join(wrong), _install())
    else:
        yield ok("libraries", f"{len(wanted)}, of the versions needed")


def misfit(requirement: Requirement) -> str | None:
    """Return in what the installed library differs from what is needed; None if it fits."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing, need {requirement.specifier or 'any version'}"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"found {requirement.name} {found}, need {requirement.specifier}"


def _install() -> str:
    return (
        f"in the project's clone: {sys.executable} -m pip install -c constraints.txt -e . (or install its wheel again)"
    )


@dataclass(frozen=True, kw_only=True)
class Nvidia:
    """An NVIDIA GPU's driver."""

    text: str
    cuda: tuple[int, int] | None
    """The newest CUDA that it can run; None where it does not tell."""


def check_torch(hardware: HardwareConfig | None) -> Iterator[Finding]:
    """Check torch, the GPU, and whether they fit; `hardware` is what an experiment asks for."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that it was built with is missing, or does not fit
        text = f"cannot be loaded: {str(error).strip().splitlines()[0]}"
        yield problem("torch", text, f"install it anew: {sys.executable} -m pip install --force-reinstall torch")
        return
    from gpt_pipeline.hardware import devices

    name, kind = f"{torch.__version__} ({_build()})", devices.find_gpu()
    if kind is not None:
        yield ok("torch", name)
        yield from _check_gpus(kind, hardware)
        return
    nvidia = find_nvidia()
    wants_gpu = hardware is not None and hardware.device not in ("auto", "cpu")
    if hardware is not None and hardware.device == "cpu":
        yield ok("torch", f"{name}; the experiment trains on the CPU")
    elif nvidia is not None and torch.version.cuda is None:
        yield problem("torch", f"{name}, but this machine has {nvidia.text}", cuda_build(torch.__version__, nvidia))
    elif nvidia is not None:
        yield problem("torch", f"{name} cannot use {nvidia.text}: {_why_not()}", _newer_driver(torch.version.cuda))
    elif wants_gpu:
        remedy = "set hardware.device: auto or cpu, or run where there is one"
        yield problem("torch", f"{name} finds no GPU, and the experiment asks for one", remedy)
    else:
        yield ok("torch", f"{name}; no GPU here, so training runs on the CPU")


def check_compiler() -> Iterator[Finding]:
    """Check what compiling a model for the GPU needs; nothing where there is no GPU."""
    try:
        import torch
    except (ImportError, OSError):  # which `check_torch` says
        return
    if not torch.cuda.is_available():  # Apple's GPUs need none of it, Intel's have it in their build of torch
        return
    missing = [text for text in (_triton(), _c_compiler(), _headers()) if text is not None]
    if missing:
        yield note("compiling", f"the model is not compiled, so training is slower: {'; '.join(missing)}")
    elif torch.cuda.get_device_capability() < _OLDEST_FOR_TRITON:
        yield note("compiling", "this GPU is older than Triton supports, so the model is not compiled")
    else:
        yield ok("compiling", "Triton, a C compiler and Python's headers are here")


def find_nvidia() -> Nvidia | None:
    """Return the driver of an NVIDIA GPU of this machine, or None if there is none."""
    lines = _nvidia_smi("-L").splitlines()
    gpus = [line.partition(":")[2].partition("(")[0].strip() for line in lines if "GPU" in line]
    if gpus and (shown := _nvidia_smi()):
        return Nvidia(text=", ".join(gpus), cuda=_cuda_version(shown))
    version = Path("/proc/driver/nvidia/version")
    if version.is_file():
        return Nvidia(text=version.read_text(encoding="ascii", errors="replace").splitlines()[0], cuda=None)
    library = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll"
    return Nvidia(text=f"NVIDIA's driver ({library})", cuda=None) if library.is_file() else None


def _nvidia_smi(*arguments: str) -> str:
    """Return what `nvidia-smi` prints; nothing where there is none, or it fails or hangs, which is logged."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        _logger.warning("nvidia-smi does not tell which GPU is here (%s); if the driver hangs, restart", error)
        return ""
    return done.stdout if done.returncode == 0 else ""


def cuda_build(version: str, nvidia: Nvidia) -> str:
    """Return how to install torch for the GPU: from the index that pytorch.org names for what its driver can run."""
    fitting = [cuda for cuda in _CUDA_OF_WHEELS if nvidia.cuda is None or cuda <= nvidia.cuda]
    if not fitting:
        return f"update the GPU's driver, and then install a CUDA build: {_LOCALLY}"
    index = f"{_WHEELS}/cu{fitting[0][0]}{fitting[0][1]}"
    release = version.partition("+")[0]
    return (
        f"{sys.executable} -m pip install --force-reinstall torch=={release} --index-url {index} "
        f"(if it has no such version, the index that {_LOCALLY} names)"
    )


def _cuda_version(text: str) -> tuple[int, int] | None:
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", text)
    return None if found is None else (int(found[1]), int(found[2]))


def _build() -> str:
    import torch

    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip} build"
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda} build"
    if torch.version.xpu is not None:
        return f"XPU {torch.version.xpu} build"
    return "build for Apple's GPUs" if torch.backends.mps.is_built() else "CPU build"


def _check_gpus(kind: str, hardware: HardwareConfig | None) -> Iterator[Finding]:
    import torch

    from gpt_pipeline.hardware import devices

    count = devices.count_gpus()
    for number in range(count):
        device = torch.device(f"{kind}:{number}")
        name = devices.name_of(device)
        free, total = devices.memory_of(device)
        yield ok("gpu", f"{number}: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if hardware is None or hardware.device == "cpu":
        return
    if hardware.device not in ("auto", kind):
        text = f"torch finds a GPU of kind {kind}, and the experiment asks for {hardware.device}"
        yield problem("gpu", text, f"set hardware.device: auto or {kind}, or run where there is such a one")
    elif hardware.num_gpus > count:
        text = f"the experiment asks for {hardware.num_gpus} GPUs, here are {count}"
        yield problem("gpu", text, f"set hardware.num_gpus: {count}, or run where there are as many")


def _why_not() -> str:
    """Return torch's own reason for not using the GPU."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "it finds no device"


def _newer_driver(cuda: str | None) -> str:
    return (
        f"update the GPU's driver to one for CUDA {cuda} (https://www.nvidia.com/drivers), or install a torch for an "
        f"older CUDA ({_LOCALLY}); inside a container, start it with the GPU (--gpus all)"
    )


def _triton() -> str | None:
    if importlib.util.find_spec("triton") is not None:
        return None
    return (
        "Triton is missing (pip install triton-windows)"
        if os.name == "nt"
        else "Triton is missing (pip install triton)"
    )


def _c_compiler() -> str | None:
    if any(shutil.which(name) for name in ("cc", "gcc", "clang", "cl")):
        return None
    return "no C compiler (install gcc; on Windows the Build Tools for Visual Studio)"


def _headers() -> str | None:
    """Python's own, which Triton compiles its launchers against."""
    if Path(sysconfig.get_path("include"), "Python.h").is_file():
        return None
    return "Python.h is missing (on Debian and Ubuntu: apt install python3-dev)"

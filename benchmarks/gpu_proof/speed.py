"""Part 2: a step against a plain loop and transformers, as a share of what the chip reaches, technique by technique."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial

import torch

from benchmarks import cuda_step
from benchmarks.contest import Contestant, compete
from benchmarks.gpu_proof.record import Row, Task
from benchmarks.gpu_proof.setup import Setup
from benchmarks.steps import StepSettings
from gpt_pipeline.hardware import devices
from gpt_pipeline.hardware.peaks import peak_flops
from gpt_pipeline.model.costs import flops_per_token

_TINY_TECHNIQUES = ("flash", "late look")
_WARM_UP, _MEASURED = 0.3, 1.5  # seconds: until the clock has come up from rest, and down for the heat


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield the chip's own speed, a contest with each rival, and each technique."""
    yield Task(part=2, name="large matrix products", seconds=20, run=partial(_chip, setup), first=True)
    for number, rival in enumerate(cuda_step.rivals(setup.step)):
        run = partial(_contest, setup, rival)
        yield Task(part=2, name=f"against {rival.name}", seconds=150, run=run, first=number == 0)
    for technique in _TINY_TECHNIQUES if setup.tiny else cuda_step.TECHNIQUES:
        yield Task(part=2, name=f"without {technique}", seconds=110, run=partial(_technique, setup, technique))


def _chip(setup: Setup) -> Sequence[Row]:
    reached, dtype = reachable_flops(setup.device, size=64 if setup.tiny else 8192)
    sheet = _data_sheet(setup)
    return [
        {
            "who": f"torch, {dtype}",
            "TFLOP/s": reached / 1e12,
            "of the data sheet": None if sheet is None else reached / sheet,
        }
    ]


@cache
def reachable_flops(device: str, *, size: int) -> tuple[float, str]:
    """Return the FLOP/s of products of two random matrices of `size` x `size`, in the chip's 16 bits, and its name."""
    where = torch.device(device)
    dtype = devices.DTYPES[devices.native_half(where) or "fp32"]
    one, other = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    _seconds_of(3, one, other)  # the first loads the library
    for whole in (_WARM_UP, _MEASURED):
        seconds = _seconds_of(math.ceil(whole / _seconds_of(3, one, other)), one, other)
    del one, other
    devices.release_memory(where)  # to the contestants' processes
    return 2 * size**3 / seconds, str(dtype).removeprefix("torch.")


def _seconds_of(products: int, one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the time of one of so many products of the two."""
    started = time.perf_counter()
    for _ in range(products):
        one @ other
    devices.synchronize()
    return (time.perf_counter() - started) / products


def _contest(setup: Setup, rival: Contestant) -> Sequence[Row]:
    setting, folder = setup.step, setup.folder("speed")
    cuda_step.write_tokens(folder, setting)
    times = compete([cuda_step.ours(setting, folder), rival], turns=setup.turns, steps=setup.steps)
    ours = times[cuda_step.OURS]
    return [
        {
            "who": name,
            **_shares(setup, setting.tokens / one.median),
            "least": setting.tokens / max(one.seconds),
            "most": setting.tokens / min(one.seconds),
            "peak GB": one.memory_bytes / 1e9,
            "first step, s": one.first_seconds,
            "time to ours": one.median / ours.median,
        }
        for name, one in times.items()
    ]


def _technique(setup: Setup, technique: str) -> Sequence[Row]:
    folder = setup.folder("speed")
    cuda_step.write_tokens(folder, setup.step)
    turns, steps = max(1, setup.turns // 2), max(1, setup.steps // 2)
    ratio, memory = cuda_step.contribution(technique, setup.step, folder, turns=turns, steps=steps)
    return [{"who": cuda_step.TECHNIQUES[technique], "time to ours": ratio, "peak GB": memory / 1e9}]


def compare(setup: Setup, one: StepSettings, other: StepSettings) -> tuple[float, float]:
    """Return the seconds of our step with either settings, taken in turns."""
    folder = setup.folder("speed")
    cuda_step.write_tokens(folder, setup.step)
    contestants = [cuda_step.ours(each, folder, name=name) for each, name in ((one, "one"), (other, "other"))]
    times = compete(contestants, turns=max(1, setup.turns // 2), steps=max(1, setup.steps // 2))
    return times["one"].median, times["other"].median


def _shares(setup: Setup, tokens_per_second: float) -> dict[str, float | None]:
    flops = tokens_per_second * flops_per_token(setup.step.model, max_length=setup.step.length)
    sheet = _data_sheet(setup)
    return {
        "tokens/s": tokens_per_second,
        "TFLOP/s": flops / 1e12,
        "of what products reach": flops / reachable_flops(setup.device, size=64 if setup.tiny else 8192)[0],
        "of the data sheet": None if sheet is None else flops / sheet,
    }


def _data_sheet(setup: Setup) -> float | None:
    return peak_flops(devices.name_of(setup.device)) if setup.device in devices.GPUS else None

"""Contestants in processes of their own that take turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from gpt_pipeline.storage.resident import peak_resident_bytes

Step = Callable[[], float]
"""Makes one update, which the device may still be at afterwards, and returns a loss in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is measured; `make` runs in the contestant's own process and must be a module's function."""

    name: str
    make: Callable[..., Step]
    settings: Any


@dataclass(kw_only=True)
class Times:
    """What was measured of one contestant."""

    seconds: list[float]
    """Of one step, once for each turn."""

    cpu_seconds: list[float]
    """Of processors used by one step: what other programs on the machine disturb least."""

    first_seconds: float
    """Of the first step, compiling included."""

    loss: float
    memory_bytes: int
    """Peak: of the GPU where there is one, of the process otherwise."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compete(contestants: Sequence[Contestant], *, turns: int, steps: int) -> dict[str, Times]:
    """Return the times of the contestants: `turns` turns of `steps` steps each, one process at a time."""
    with ExitStack() as stack:
        running, times = {}, {}
        for one in contestants:  # one after the other: compilers time kernels on a device that is theirs alone
            connection = running[one.name] = stack.enter_context(_process(one))
            first, loss = _answer(connection)
            times[one.name] = Times(seconds=[], cpu_seconds=[], first_seconds=first, loss=loss, memory_bytes=0)
            print(f"  {one.name}: ready, first step {first:.1f} s, loss {loss:.4f}", flush=True)
        for turn in range(turns):
            order = list(running.items())
            for name, connection in order if turn % 2 == 0 else reversed(order):
                connection.send(steps)
                seconds, cpu_seconds, times[name].memory_bytes = _answer(connection)
                times[name].seconds.append(seconds / steps)
                times[name].cpu_seconds.append(cpu_seconds / steps)
        return times


def print_table(times: dict[str, Times], *, tokens: int, ours: str) -> None:
    """Print the medians, and how many times faster `ours` is than each of the others."""
    width = max(len(name) for name in times)
    print(f"\n{'':{width}}  tokens/s     (least to most)   CPU s/step   peak GB   {ours} is x times as fast")
    for name, one in times.items():
        slowest, fastest = tokens / max(one.seconds), tokens / min(one.seconds)
        ratio = "" if name == ours else f"{one.median / times[ours].median:.2f}"
        print(
            f"{name:{width}}  {tokens / one.median:>8,.0f}  ({slowest:,.0f} to {fastest:,.0f})"
            f"   {statistics.median(one.cpu_seconds):>8.2f}   {one.memory_bytes / 1e9:>6.1f}   {ratio}"
        )


def describe_machine() -> str:
    """Return chip, driver, Python and torch in one line."""
    import torch

    from gpt_pipeline.hardware import devices

    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    gpu = devices.find_gpu()
    if gpu is None:
        return f"{_processor()}, {torch.get_num_threads()} threads, {versions}"
    runtime = f", driver {_driver()}, CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{devices.name_of(gpu)}{runtime}, {versions}"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


@contextmanager
def _process(contestant: Contestant) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, contestant), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()  # ends its loop
        process.join(timeout=10)
        process.kill()


def _answer(connection: Connection) -> Any:
    value = connection.recv()
    if isinstance(value, str):
        sys.exit(value)
    return value


def _serve(connection: Connection, contestant: Contestant) -> None:
    try:
        started = time.perf_counter()
        step = contestant.make(contestant.settings)
        loss = step()
        first = time.perf_counter() - started
        step()
        _wait_for_device()
        connection.send((first, loss))
        while True:
            steps = connection.recv()
            started, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                step()
            _wait_for_device()  # a step may have left work there
            connection.send((time.perf_counter() - started, time.process_time() - cpu, _peak_memory()))
    except EOFError:
        return
    except Exception as error:
        connection.send(f"{contestant.name}: {type(error).__name__}: {error}")


def _wait_for_device() -> None:
    if "torch" in sys.modules:  # a contestant that does without it is not to be charged with its memory
        from gpt_pipeline.hardware import devices

        devices.synchronize()


def _peak_memory() -> int:
    if "torch" in sys.modules:
        from gpt_pipeline.hardware import devices

        if gpu := devices.find_gpu():
            return devices.peak_memory(sys.modules["torch"].device(gpu))
    return peak_resident_bytes() or 0

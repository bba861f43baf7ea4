"""Part 1: what must hold on the GPU, one check after the other in a process of its own.

After an error other than a check that does not hold, the device may be in any state: the next check has a new process.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.gpu_proof.record import NotHereError, Row, Task
from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline_tests import gpu_checks

COLLECTIVES = "collectives of one process change nothing"  # belongs to part 6
_COMPILED, _IN_PROCESSES = "compiled step", "deterministic"  # begin the names of what takes longer
_FIRST = ("step is that of the CPU: gpt2, adamw", "compiled step is the eager one: gpt2")
_TINY = ("step is that of the CPU: gpt2, adamw", "micro_batch_size: auto", "rollouts")  # begin those of --tiny


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield a task for each check."""
    worker = Worker(setup)
    for name in gpu_checks.CHECKS:
        if name == COLLECTIVES or (setup.tiny and not name.startswith(_TINY)):
            continue
        seconds = 60 if name.startswith(_COMPILED) else 40 if name.startswith(_IN_PROCESSES) else 10
        yield Task(part=1, name=name, seconds=seconds, run=partial(worker.check, name), first=name in _FIRST)


class Worker:
    """A process that runs checks, started when it is needed."""

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device
        self._running: tuple[Connection, ExitStack] | None = None
        setup.stack.callback(self._end)

    def check(self, name: str) -> Sequence[Row]:
        """Run one check there.

        Raises:
            NotHereError: the device cannot do what it is about.
            AssertionError: it does not hold, or ended with another error.
        """
        try:
            connection = self._connection()
            connection.send(name)
            outcome, text = connection.recv()
        except EOFError:
            self._end()
            raise AssertionError("its process ended without a word") from None
        except BaseException:  # there is no more time
            self._end()
            raise
        if outcome == "absent":
            raise NotHereError(text)
        if outcome == "error":
            self._end()
        if outcome != "holds":
            raise AssertionError(text)
        return [{"found": text}]

    def _connection(self) -> Connection:
        if self._running is None:
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, self._device))
            process.start()
            there.close()
            stack = ExitStack()
            stack.callback(process.join, 10)
            stack.callback(process.kill)
            stack.callback(here.close)
            self._running = here, stack
        return self._running[0]

    def _end(self) -> None:
        if self._running is not None:
            self._running[1].close()
            self._running = None


def _serve(connection: Connection, device: str) -> None:
    """Run the checks that are asked for by name, until nobody asks any more."""
    while True:
        try:
            check = gpu_checks.CHECKS[connection.recv()]
        except EOFError:
            return
        with tempfile.TemporaryDirectory() as folder:
            connection.send(_outcome(check, device, Path(folder)))


def _outcome(check: gpu_checks.Check, device: str, folder: Path) -> tuple[str, str]:
    try:
        return "holds", check(device, folder)
    except gpu_checks.NotHereError as reason:
        return "absent", str(reason)
    except AssertionError as error:
        return "fails", str(error)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"

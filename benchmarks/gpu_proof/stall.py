"""Part 4: how long training waits for a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.checkpoint_stall import Stall
from benchmarks.gpu_proof.record import Row, Task
from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline_tests.gpu_checks import ROOT


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield the one measurement."""
    yield Task(part=4, name="checkpoint", seconds=120, run=partial(_stall, setup), first=True)


def _stall(setup: Setup) -> Sequence[Row]:
    step, options = setup.step, ["--device", setup.device, "--folder", str(setup.folder("stall")), "--json"]
    for name in ("sequences", "micro_batch_size", "length"):
        options += [f"--{name.replace('_', '-')}", str(getattr(step, name))]
    options += ["--layers", str(step.model.n_layer), "--width", str(step.model.n_embd), "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks.checkpoint_stall", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"checkpoint_stall ended with {done.returncode}: {done.stderr[-500:]}")
    found = Stall(**json.loads(done.stdout.splitlines()[-1]))
    return [
        {
            "GB": found.size / 1e9,
            "s an update": found.update,
            "waits, s": found.stall,
            "the first time": found.first_stall,
            "if it wrote itself": found.waited,
            "s to write": found.writing,
            "updates meanwhile, times": found.slower,
            "of the time, one in 1,000": found.share,
        }
    ]

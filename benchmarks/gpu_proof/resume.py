"""Part 3: killed by SIGKILL and resumed, against the same undisturbed; and what a fixed order of sums costs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.gpu_proof import trainer
from benchmarks.gpu_proof.record import Row, Task
from benchmarks.gpu_proof.setup import Setup
from benchmarks.gpu_proof.speed import compare
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline_tests.gpu_checks import RESUME_TOLERANCE, losses

_ORDERS = {False: "in any order", True: "in a fixed order"}


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield both orders of sums, and their cost."""
    for deterministic, name in _ORDERS.items():
        run = partial(_killed, setup, deterministic=deterministic)
        yield Task(part=3, name=f"sums {name}", seconds=160, run=run, first=not deterministic)
    yield Task(part=3, name="what a fixed order costs", seconds=120, run=partial(_cost, setup))


def _killed(setup: Setup, *, deterministic: bool) -> Sequence[Row]:
    """Train with dropout twice, once without and once with a kill; raises AssertionError where they differ."""
    folder = setup.folder("resume")
    shutil.rmtree(folder)
    updates, every = (120, 40) if setup.tiny else (40, 10)
    sequences, micro = (2, 1) if setup.tiny else (64, min(32, setup.step.micro_batch_size or 32))
    whole = trainer.make_job(
        setup,
        folder,
        save_every=every,
        batch_size=sequences,
        micro_batch_size=micro,
        max_steps=updates,
        deterministic=deterministic,
    )
    parts = dataclasses.replace(whole, experiment_folder=str(folder / "killed"))
    trainer.train(whole)
    step = trainer.kill_after_checkpoint(parts)
    trainer.train(parts)
    wanted, found = losses(whole), losses(parts)
    difference = max(abs(found[line] - loss) for line, loss in wanted.items())
    ends = [list_checkpoints(job.folder.checkpoints)[-1].weights_sha256 for job in (whole, parts)]
    shutil.rmtree(folder)
    row = {
        "updates": updates,
        "killed after": step,
        "losses differ by, nats": difference,
        "same bits": len({*ends}) == 1,
    }
    if difference > RESUME_TOLERANCE or (deterministic and not row["same bits"]):
        raise AssertionError(f"{row}; need a difference of at most {RESUME_TOLERANCE}, and the same bits if in order")
    return [row]


def _cost(setup: Setup) -> Sequence[Row]:
    free, ordered = compare(setup, setup.step, dataclasses.replace(setup.step, deterministic=True))
    return [{"s an update, any order": free, "fixed": ordered, "times as long": ordered / free}]

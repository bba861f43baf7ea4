"""Part 6: the same training by torchrun as without, and the library through which processes talk."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.gpu_proof import checks, trainer
from benchmarks.gpu_proof.record import Row, Task
from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline.hardware import devices
from gpt_pipeline_tests.gpu_checks import RESUME_TOLERANCE, losses


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield the collectives, one process, and as many as there are GPUs; two on a CPU."""
    worker = checks.Worker(setup)
    yield Task(part=6, name=checks.COLLECTIVES, seconds=15, run=partial(worker.check, checks.COLLECTIVES))
    most = 2 if setup.device == "cpu" else devices.count_gpus()
    for count in dict.fromkeys((1, most)):
        run = partial(_by_torchrun, setup, count)
        yield Task(part=6, name=f"torchrun, {count} of {count}", seconds=120, run=run)


def _by_torchrun(setup: Setup, count: int) -> Sequence[Row]:
    """Train without dropout, whose masks differ between processes; raises AssertionError where losses differ."""
    folder = setup.folder("processes")
    shutil.rmtree(folder)
    alone = trainer.make_job(
        setup,
        folder,
        save_every=10,
        model=dataclasses.replace(setup.step.model, dropout=0.0),
        batch_size=4 * count,
        micro_batch_size=2,
        max_steps=20,
    )
    together = dataclasses.replace(alone, experiment_folder=str(folder / "together"))
    trainer.train(alone)
    trainer.train(together, launcher=("--standalone", f"--nproc-per-node={count}"))
    wanted, found = losses(alone), losses(together)
    difference = max(abs(found[line] - loss) for line, loss in wanted.items())
    shutil.rmtree(folder)
    if difference > RESUME_TOLERANCE:
        raise AssertionError(f"losses differ by {difference:.1e} nats, need at most {RESUME_TOLERANCE}")
    backend = devices.collective_backends() if count > 1 else "none: one process exchanges nothing"
    return [{"found": f"losses differ by at most {difference:.1e} nats", "processes": count, "through": backend}]

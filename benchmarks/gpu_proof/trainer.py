"""The trainer as a process, as people run it, on shards of random tokens."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.gpu_checks import ROOT
from gpt_pipeline_tests.training_jobs import SHARDS_FINGERPRINT, trainer_command, write_shards

_TOKENS = 20_000_000  # of a training split; more updates than this go through it again
_POLL_SECONDS = 0.01


def make_job(
    setup: Setup, folder: Path, *, save_every: int, model: ModelConfig | None = None, **training: Any
) -> TrainingJob:
    """Return a training of the setup's model on random tokens in `folder`; `save_every` is its whole cadence."""
    shards, length = folder / "shards", setup.step.length
    if not shards.is_dir():
        tokens = 100_000 if setup.tiny else _TOKENS
        vocabulary = setup.step.model.vocab_size
        write_shards(shards, train_tokens=tokens, validation_tokens=8 * length + 1, vocab_size=vocabulary)
    return TrainingJob(
        experiment_name="gpu_proof",
        fingerprint="a" * 64,
        shards_folder=str(shards),
        shards_fingerprint=SHARDS_FINGERPRINT,
        experiment_folder=str(folder / "experiment"),
        model=model or setup.step.model,
        training=TrainingConfig(**{"learning_rate": 6e-4, "warmup_steps": 10, **training}),
        max_length=length,
        cadence=CadenceConfig(eval_freq=save_every, eval_iters=1, save_every_n_iterations=save_every, keep_last=3),
        hardware=HardwareConfig(device=setup.device),  # type: ignore[arg-type]
    )


@contextmanager
def started(job: TrainingJob, *, launcher: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Start the trainer on the job, by torchrun's arguments `launcher` if there are any; it ends with the block."""
    python, *arguments = trainer_command(job)
    command = [python, *(["-m", "torch.distributed.run", *launcher] if launcher else ()), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (job.folder.root / "printed.txt").open("w", encoding="utf-8") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun passes it on; the trainer saves
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def train(job: TrainingJob, *, launcher: Sequence[str] = ()) -> None:
    """Train the job to its end; raises AssertionError with what the trainer said last."""
    with started(job, launcher=launcher) as process:
        process.wait()
    if process.returncode:
        raise AssertionError(f"the trainer ended with {process.returncode}: {last_words(job)}")


def last_words(job: TrainingJob) -> str:
    """Return the last lines that the trainer printed."""
    text = (job.folder.root / "printed.txt").read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-4:])


def kill_after_checkpoint(job: TrainingJob) -> int:
    """Start the training, and kill it with SIGKILL once it has saved; return the step of the newest checkpoint.

    Raises:
        AssertionError: it ended before.
    """
    with started(job) as process:
        while not list_checkpoints(job.folder.checkpoints):
            if process.poll() is not None:
                raise AssertionError(f"the trainer ended before it was killed: {last_words(job)}")
            time.sleep(_POLL_SECONDS)
        process.kill()
        process.wait()
    return list_checkpoints(job.folder.checkpoints)[-1].step

"""Small trainings for tests: shards of a learnable pattern, and jobs on them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.tokens.stream import EOT_TOKEN, new_shard, spans_name, starts_name
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.manifest import Manifest, record_file
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig
from gpt_pipeline.training.job import TrainingJob

T = 16
BATCH = 4
SHARDS_FINGERPRINT = "5" * 64


def write_shards(
    folder: Path,
    *,
    train_tokens: int = 16 * 4 * 5 + 1,
    validation_tokens: int = 70,
    document_length: int | None = None,
    question_length: int = 0,
) -> Path:
    """Write a finished token_shards stage; with the default sizes an epoch has five updates of four sequences.

    Documents have `document_length` tokens, the last one maybe fewer; None: each split is one document. What follows
    the `<|endoftext|>` and `question_length` tokens is their answer.
    """
    random = np.random.default_rng(0)
    counts = {"train": train_tokens, "validation": validation_tokens}
    files = {}
    for split, count in counts.items():
        name = f"{split}_000001.bin"
        starts = np.arange(0, count, document_length or count)
        ends = np.append(starts[1:], count)
        tokens = random.integers(0, 50257, count).astype(np.uint16)
        if question_length:
            tokens[starts] = EOT_TOKEN
        with new_shard(folder / name) as shard:
            shard.append(tokens)
        np.save(folder / starts_name(name), starts)
        np.save(folder / spans_name(name), np.stack([np.minimum(starts + 1 + question_length, ends), ends], axis=1))
        files |= {file: record_file(folder / file) for file in (name, starts_name(name), spans_name(name))}
    facts = {f"{split}_tokens": count for split, count in counts.items()}
    Manifest(stage="token_shards", fingerprint=SHARDS_FINGERPRINT, config={}, files=files, facts=facts).write(folder)
    return folder


def make_job(folder: Path, *, training: dict | None = None, cadence: dict | None = None, **changes) -> TrainingJob:
    """Return a job of 12 updates with dropout, accumulation over two micro-batches, in `folder`/experiment."""
    shards = folder / "shards"
    if not shards.is_dir():
        write_shards(shards)
    job = TrainingJob(
        experiment_name="test",
        fingerprint="a" * 64,
        shards_folder=str(shards),
        shards_fingerprint=SHARDS_FINGERPRINT,
        experiment_folder=str(folder / "experiment"),
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=T, dropout=0.2),
        training=TrainingConfig(
            **{
                "batch_size": BATCH,
                "micro_batch_size": 2,
                "max_steps": 12,
                "learning_rate": 1e-2,
                "warmup_steps": 2,
                **(training or {}),
            }
        ),
        max_length=T,
        cadence=CadenceConfig(
            **{"eval_freq": 3, "eval_iters": 1, "save_every_n_iterations": 4, "keep_last": 3, **(cadence or {})}
        ),
        hardware=HardwareConfig(device="cpu"),
    )
    return dataclasses.replace(job, **changes)


class Listener:
    """An observer that remembers, and calls `on_step` with the step of each line of training."""

    def __init__(self, on_step=lambda step: None) -> None:
        self.records: list[dict] = []
        self.checkpoints: list[CheckpointInfo] = []
        self.messages: list[str] = []
        self.validated: tuple[int, int] | None = None
        self._on_step = on_step

    def progress(self, record) -> None:
        self.records.append(dict(record))
        if record["kind"] == "train":
            self._on_step(record["step"])

    def validating(self, done: int, total: int) -> None:
        self.validated = (done, total)

    def checkpoint(self, info: CheckpointInfo) -> None:
        self.checkpoints.append(info)

    def message(self, text: str) -> None:
        self.messages.append(text)


def trainer_command(job: TrainingJob) -> list[str]:
    """Write the job into its folder and return the command that runs it."""
    job.write(job.folder.job)
    return [sys.executable, "-m", "gpt_pipeline.training", str(job.folder.job)]

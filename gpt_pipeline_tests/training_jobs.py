"""Small trainings for tests: shards of a learnable pattern, and jobs on them."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.data.tokens.stream import EOT_TOKEN, new_shard, open_shards, spans_name, starts_name
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.manifest import Manifest, record_file
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig, step_layout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import batch_of
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline.training.update import Updater, UpdateResult

T = 16
BATCH = 4
VOCABULARY = 500
"""Of the shards and models here: with GPT-2's, trainings this small would do little else than logits."""

SHARDS_FINGERPRINT = "5" * 64
CPU = Compute(device=torch.device("cpu"), compile=False, peak_flops=None)


def write_shards(
    folder: Path,
    *,
    train_tokens: int = 16 * 4 * 5 + 1,
    validation_tokens: int = 70,
    document_length: int | None = None,
    question_length: int = 0,
    vocab_size: int = VOCABULARY,
    fingerprint: str = SHARDS_FINGERPRINT,
) -> Path:
    """Write a finished token_shards stage; with the default sizes an epoch has five updates of four sequences.

    Documents have `document_length` tokens, the last one maybe fewer; None: each split is one document. What follows
    the `<|endoftext|>` and `question_length` tokens is their answer. Tokens are below `vocab_size`.
    """
    random = np.random.default_rng(0)
    counts = {"train": train_tokens, "validation": validation_tokens}
    files, eot_token = {}, min(EOT_TOKEN, vocab_size - 1)
    for split, count in counts.items():
        name = f"{split}_000001.bin"
        starts = np.arange(0, count, document_length or count)
        ends = np.append(starts[1:], count)
        tokens = random.integers(0, vocab_size, count).astype(np.uint16)
        if question_length:
            tokens[starts] = eot_token
        with new_shard(folder / name) as shard:
            shard.append(tokens)
        np.save(folder / starts_name(name), starts)
        np.save(folder / spans_name(name), np.stack([np.minimum(starts + 1 + question_length, ends), ends], axis=1))
        files |= {file: record_file(folder / file) for file in (name, starts_name(name), spans_name(name))}
    facts = {f"{split}_tokens": count for split, count in counts.items()}
    facts |= {} if eot_token == EOT_TOKEN else {"eot_token": eot_token}
    Manifest(stage="token_shards", fingerprint=fingerprint, config={}, files=files, facts=facts).write(folder)
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
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=T, vocab_size=VOCABULARY, dropout=0.2),
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


def run(job: TrainingJob, *, stop_at: int | None = None) -> Listener:
    """Run the job in this process, to its end or until it is told to stop after a step."""
    stop = StopFlag()
    listener = Listener(lambda step: stop.request(signal.SIGTERM) if step == stop_at else None)
    assert run_job(job, listener, stop=stop).finished == (stop_at is None)
    return listener


def first_update(job: TrainingJob, *, micro_batch_size: int) -> UpdateResult:
    """Return what the first update of the job, on whole documents and without dropout, comes to."""
    training = dataclasses.replace(job.training, micro_batch_size=micro_batch_size)
    torch.manual_seed(0)
    model = make_model(dataclasses.replace(job.model, dropout=0.0))
    layout = step_layout(training, max_length=T, steps_per_epoch=5, world_size=1)
    updater = Updater(model, training, layout=layout, compute=CPU, ranks=Ranks())
    stream, answers_only = open_shards(Path(job.shards_folder)).train, training.answers_only
    sampler = DocumentSampler(stream=stream, sequence_length=T, batch_size=BATCH, seed=0, answers_only=answers_only)
    return updater.update(0, batch_of(sampler.rows_at(0), CPU.device)).result()


def trainer_command(job: TrainingJob) -> list[str]:
    """Write the job into its folder and return the command that runs it."""
    job.write(job.folder.job)
    return [sys.executable, "-m", "gpt_pipeline.training", str(job.folder.job)]

"""Small trainings whose losses `test_golden_losses.py` holds to what an earlier version computed.

    python -m gpt_pipeline_tests.golden_trainings

prints the sha256 of the weights that each ends with: on one machine, two versions that train alike print the same bits.
Run it in the checkouts of both.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the order of additions is part of the bits; set before torch

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.training_jobs import Listener, T, make_job, write_shards


@dataclass(frozen=True, kw_only=True)
class GoldenTraining:
    """What a training of twelve updates computed."""

    train_losses: list[float]
    """Of each update."""

    val_losses: list[float]
    """The estimates before the first update and after every third."""

    weights_sha256: str
    """Of the weights at the end."""


def adamw_with_dropout(folder: Path) -> TrainingJob:
    """AdamW on two blocks with dropout, an update in two micro-batches, cosine decay."""
    model = ModelConfig(n_layer=2, n_head=2, n_embd=8, context_length=T, dropout=0.2)
    return _job(folder, model)


def muon_without_dropout(folder: Path) -> TrainingJob:
    """Muon on two blocks with QKV bias and a head of its own, an update at once, the schedule `wsd`."""
    model = ModelConfig(n_layer=2, n_head=2, n_embd=8, context_length=T, dropout=0.0, qkv_bias=True, tie_weights=False)
    return _job(folder, model, optimizer="muon", micro_batch_size=None, lr_schedule="wsd", seed=3)


def _job(folder: Path, model: ModelConfig, **training: Any) -> TrainingJob:
    write_shards(folder / "shards", vocab_size=model.vocab_size)
    return make_job(folder, training={"precision": "fp32", **training}, model=model)


TRAININGS = (adamw_with_dropout, muon_without_dropout)


def train(job: TrainingJob) -> GoldenTraining:
    """Run the job to its end and return what it computed."""
    listener = Listener()
    outcome = run_job(job, listener)
    assert outcome.finished
    assert outcome.checkpoint is not None
    return GoldenTraining(
        train_losses=[line["train_loss"] for line in listener.records if line["kind"] == "train"],
        val_losses=[line["val_loss"] for line in listener.records if line["kind"] == "validation"],
        weights_sha256=outcome.checkpoint.weights_sha256,
    )


def main() -> None:
    for make in TRAININGS:
        with tempfile.TemporaryDirectory() as folder:
            found = train(make(Path(folder)))
        print(f"{make.__name__:<22} {found.weights_sha256}")
        if "--losses" in sys.argv:
            print(f"    train_losses={found.train_losses},\n    val_losses={found.val_losses},")


if __name__ == "__main__":
    main()

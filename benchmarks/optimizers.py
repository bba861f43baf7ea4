"""Muon against AdamW at equal tokens: `python -m benchmarks.optimizers`.

A small GPT on the generated sample, or on SYNTH's parquet files in `--parquet FOLDER`. Each optimizer's learning rate
is chosen with one seed, on a grid of doublings that is widened until its best rate has a worse one on either side; then
both train with other seeds, and their last val_loss are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import describe_machine
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.config import SAMPLE, DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import NotFiniteError

_FIRST_RATES = {"adamw": (2e-3, 4e-3, 8e-3), "muon": (4e-3, 8e-3, 16e-3)}
_MOST_RATES = 8  # tried of one optimizer
_TUNING_SEED = 0


class _LastLoss:
    """An observer that keeps the last val_loss."""

    def __init__(self) -> None:
        self.val_loss = math.nan

    def progress(self, record: Mapping[str, Any]) -> None:
        self.val_loss = record.get("val_loss", self.val_loss)

    def validating(self, done: int, total: int) -> None: ...

    def checkpoint(self, info: CheckpointInfo) -> None: ...

    def message(self, text: str) -> None: ...


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = _prepare_shards(options, folder)
        tokens = options.steps * options.sequences * options.length
        print(
            f"{describe_machine()}; {tokens:,} training tokens a run, {shards.manifest.facts['train_tokens']:,} there"
        )
        finals = {optimizer: _tune_and_train(optimizer, options, shards, folder) for optimizer in _FIRST_RATES}
    adamw, muon = (statistics.mean(finals[name]) for name in ("adamw", "muon"))
    print(f"RATIO of Muon's val_loss to AdamW's at equal tokens: {muon / adamw:.4f} (difference {muon - adamw:+.4f})")


def _tune_and_train(optimizer: str, options: argparse.Namespace, shards: StageResult, folder: Path) -> list[float]:
    """Return the last val_loss of each seed but the tuning's, at the best learning rate."""

    def train(rate: float, seed: int) -> float:
        return _train(optimizer, options, shards, folder, rate=rate, seed=seed)

    losses: dict[float, float] = {}
    rates: Sequence[float] = _FIRST_RATES[optimizer]
    while rates and len(losses) < _MOST_RATES:
        for rate in rates:
            losses[rate] = train(rate, _TUNING_SEED)
            print(f"  {optimizer}, learning rate {rate:g}: val_loss {losses[rate]:.4f}", flush=True)
        rates = rates_beyond_edge(losses)
    if rates:
        print(f"  {optimizer}: the best rate is at the edge of {_MOST_RATES}; those further out may do better")
    best = min(losses, key=losses.__getitem__)
    finals = [train(best, _TUNING_SEED + 1 + number) for number in range(options.seeds)]
    spread = statistics.stdev(finals) if len(finals) > 1 else 0.0
    print(f"{optimizer} at {best:g}: val_loss {statistics.mean(finals):.4f} (sd {spread:.4f}), by seed:", end=" ")
    print(", ".join(f"{final:.4f}" for final in finals), flush=True)
    return finals


def rates_beyond_edge(losses: Mapping[float, float]) -> list[float]:
    """Return the learning rate to try next: beyond the best of those tried if it is the outermost; none otherwise."""
    best = min(losses, key=losses.__getitem__)
    beyond = {max(losses): best * 2, min(losses): best / 2}
    return [beyond[best]] if best in beyond else []


def _train(
    optimizer: str, options: argparse.Namespace, shards: StageResult, folder: Path, *, rate: float, seed: int
) -> float:
    job = TrainingJob(
        experiment_name="optimizers",
        fingerprint="0" * 64,
        shards_folder=str(shards.folder),
        shards_fingerprint=shards.manifest.fingerprint,
        experiment_folder=str(folder / f"{optimizer}-{rate:g}-{seed}"),
        model=ModelConfig(
            n_layer=options.layers,
            n_head=options.width // 32,
            n_embd=options.width,
            context_length=options.length,
            dropout=0.0,
        ),
        training=TrainingConfig(
            batch_size=options.sequences,
            max_steps=options.steps,
            learning_rate=rate,
            warmup_steps=options.steps // 10,
            optimizer=optimizer,  # type: ignore[arg-type]
            seed=seed,
        ),
        max_length=options.length,
        cadence=CadenceConfig(
            eval_freq=options.steps, eval_iters=50, save_every_n_iterations=options.steps, keep_last=1
        ),
        hardware=HardwareConfig(),
    )
    observer = _LastLoss()
    try:
        outcome = run_job(job, observer)
    except NotFiniteError:  # that rate is too high
        return math.inf
    if not outcome.finished:  # a signal asked this training to stop, and so means the whole
        sys.exit(outcome.exit_code)
    return observer.val_loss


def _prepare_shards(options: argparse.Namespace, folder: Path) -> StageResult:
    config = DataConfig(
        num_samples=options.samples,
        max_length=options.length,
        source=SAMPLE,
        local_dataset_path=options.parquet,
        validation_fraction=0.05,
    )
    raw = prepare_raw(config, folder, say=lambda text: None)
    english = prepare_documents(config, raw, folder, say=lambda text: None)
    return prepare_shards(config, english, folder, say=lambda text: None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers")
    parser.add_argument("--parquet", help="a folder with SYNTH's files; default: the generated sample")
    parser.add_argument("--samples", type=int, default=4000, help="English documents to use")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=16, help="in one update")
    parser.add_argument("--steps", type=int, default=200, help="updates of one run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each optimizer after its rate is chosen")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()

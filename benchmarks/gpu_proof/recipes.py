"""Part 7: loss against tokens, for the same time of training each; over several calls, where one is too short."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof import text, trainer
from benchmarks.gpu_proof.record import Row, Task, UnfinishedError
from benchmarks.gpu_proof.setup import Setup
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.experiment.recipes import GPT2_124M, NANOCHAT_124M, Recipe
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, MuonConfig, TrainingConfig
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics

_ADAMW: Mapping[str, Any] = {"optimizer": "adamw", "learning_rate": 6e-4, "lr_schedule": "cosine"}  # GPT-3's rate
_RECIPES: Mapping[str, tuple[Recipe, Mapping[str, Any]]] = {
    "GPT-2, AdamW, cosine": (GPT2_124M, _ADAMW),
    "gpt2-124m": (GPT2_124M, {}),
    "nanochat-124m": (NANOCHAT_124M, {}),
}
_MOST_BYTES = 500_000_000  # of text
_SPEED_UPDATES = 12
_POINTS = 20  # estimates of the loss
_ESTIMATE = 16  # times eight sequences
_SHOWN = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the tokens
_LEAST_SECONDS = 180  # of a call: to make shards, to measure the speed, and then to train
_SAVE_SECONDS = 30  # kept back for the checkpoint with which a call ends


def tasks(setup: Setup) -> Iterator[Task]:
    """Yield the text, then the recipes; each goes on as long as a call lasts."""
    yield Task(part=7, name="text", seconds=60, run=partial(_text, setup))
    for name in _RECIPES:
        run = partial(_train, setup, name)
        yield Task(part=7, name=name, seconds=_LEAST_SECONDS, run=run, takes_the_rest=True)


def _text(setup: Setup) -> Sequence[Row]:
    shards = open_shards(_shards(setup))
    source = text.SOURCE if setup.shards is None else str(setup.shards)
    return [{"of": source, "million tokens": shards.train.n_tokens / 1e6}]


def _train(setup: Setup, name: str) -> Sequence[Row]:
    """Train for the time that is wanted, or to the end of this call.

    Raises:
        UnfinishedError: the call ended first.
    """
    own = setup.folder("recipes") / name.replace(" ", "_").replace(",", "")
    job = _job(setup, name, own, _shards(setup))
    plan = own / "plan.json"
    if not plan.is_file():
        write_json(plan, {"updates": _updates_in(job, setup.recipe_seconds)})
    updates = read_json(plan)["updates"]
    job = dataclasses.replace(job, training=_in_time(job.training, updates), cadence=_cadence(updates))
    with trainer.started(job) as process:
        while process.poll() is None:
            if time.monotonic() > setup.deadline - _SAVE_SECONDS:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(0.2)
    rows = [_row(job, updates)]
    if find_finished_training(job.folder, job.fingerprint) is None:
        if process.returncode not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise AssertionError(f"the trainer ended with {process.returncode}: {trainer.last_words(job)}")
        raise UnfinishedError(rows)
    shutil.rmtree(job.folder.checkpoints)
    return rows


def _shards(setup: Setup) -> Path:
    """Return the folder of the shards, made if they are not there."""
    if setup.shards is not None:
        return setup.shards
    folder = setup.folder("recipes") / "shards"
    text.make_shards(folder, most_bytes=400_000 if setup.tiny else _MOST_BYTES)
    return folder


def _job(setup: Setup, name: str, folder: Path, shards: Path) -> TrainingJob:
    """Return the recipe's training, of as many updates as it takes to measure its speed."""
    recipe, changes = _RECIPES[name]
    model = _block(recipe, "model")
    training = {**_block(recipe, "training"), **changes, "max_steps": _SPEED_UPDATES, "precision": "auto"}
    training["micro_batch_size"] = setup.step.micro_batch_size
    manifest = open_shards(shards).manifest
    model["vocab_size"] = 50257 if setup.shards is not None else text.VOCABULARY
    if setup.tiny:
        model |= {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": setup.step.length}
        training |= {"tokens_per_step": 4 * setup.step.length, "micro_batch_size": 2}
    return TrainingJob(
        experiment_name=name,
        fingerprint="c" * 64,
        shards_folder=str(shards),
        shards_fingerprint=manifest.fingerprint,
        experiment_folder=str(folder / "training"),
        model=ModelConfig(**model),
        training=TrainingConfig(**training),
        max_length=setup.step.length,
        cadence=_cadence(_SPEED_UPDATES),
        hardware=HardwareConfig(device=setup.device),  # type: ignore[arg-type]
    )


def _block(recipe: Recipe, section: str) -> dict[str, Any]:
    """Return the recipe's values of one block; a block within it becomes its config."""
    found = {
        key.removeprefix(f"{section}."): value
        for key, (value, _) in recipe.values.items()
        if key.startswith(f"{section}.")
    }
    if "muon" in found:
        found["muon"] = MuonConfig(**found["muon"])
    return found


def _updates_in(job: TrainingJob, seconds: float) -> int:
    """Return the updates that take `seconds`, by the speed of a few, which are not kept."""
    short = dataclasses.replace(job, experiment_folder=f"{job.experiment_folder}-speed")
    trainer.train(short)
    speed = [line["tokens_per_second"] for line in read_metrics(short.folder.metrics) if line["kind"] == "train"]
    shutil.rmtree(short.folder.root)
    assert job.training.tokens_per_step is not None
    return max(_POINTS, round(seconds * speed[-1] / job.training.tokens_per_step))


def _in_time(training: TrainingConfig, updates: int) -> TrainingConfig:
    """Return the training with so many updates, a twentieth of them to warm up."""
    return dataclasses.replace(training, max_steps=updates, warmup_steps=min(training.warmup_steps, updates // 20))


def _cadence(updates: int) -> CadenceConfig:
    every = max(1, updates // _POINTS)
    return CadenceConfig(eval_freq=every, eval_iters=_ESTIMATE, save_every_n_iterations=updates, keep_last=1)


def _row(job: TrainingJob, updates: int) -> Row:
    lines = read_metrics(job.folder.metrics)
    losses = {line["step"]: line["val_loss"] for line in lines if line["kind"] == "validation"}
    trained = [line for line in lines if line["kind"] == "train"]
    assert job.training.tokens_per_step is not None
    shown = {}
    for share in _SHOWN:
        near = min(losses, key=lambda step: abs(step - share * updates), default=None)
        reached = near is not None and near > (share - 1 / _POINTS) * updates
        shown[f"val_loss at {share:.0%}"] = losses[near] if near is not None and reached else None
    return {
        "of": f"{updates} updates",
        "million tokens": updates * job.training.tokens_per_step / 1e6,
        "tokens/s": trained[-1]["tokens_per_second"] if trained else None,
        "trained, s": trained[-1]["seconds"] if trained else None,
        **shown,
    }

"""How many tokens each technique saves: `python -m benchmarks.recipes EXPERIMENT.yaml ...`.

Each experiment file names data, a GPT-2 and its number of updates. Tuned, with AdamW and cosine, it sets the target:
the loss on held-out text at its end. Every other recipe adds a technique or two to another. Its learning rate is tuned,
on a grid of doublings whose best has a worse one on either side; then it is trained with fewer and fewer updates, each
time with a schedule of its own, until it misses the target: between the last two lies the number that it needs. Other
seeds, from those two on, give the spread. The data and its order are the same, and so is the number of parameters
outside the embeddings, within 2 %.

Each training has one thread and a process of its own; `--workers` are under way together, with low priority. What was
trained stands in RESULTS and is not trained again: the benchmark can be stopped, continued, and given more recipes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Contestant, Step, compete, describe_machine
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.config import CadenceConfig, MuonConfig, step_layout
from gpt_pipeline.training.device import choose_compute, prepare_process
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import NotFiniteError, Updater

_BUDGETS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13)
"""Shares of the baseline's updates that the recipes are trained with."""

_TUNED_AT = 0.5
_MOST_RATES = 6  # tried of one recipe
_HELD_OUT_TOKENS = 300_000
_TUNING_SEED = 0
_NICENESS = 15


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What differs from the experiment file: keys of its `model:` and `training:` blocks."""

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...]
    """Learning rates to try first, each twice the one before."""

    def plus(
        self,
        name: str,
        *,
        model: Mapping[str, Any] | None = None,
        rates: tuple[float, ...] | None = None,
        **training: Any,
    ) -> Recipe:
        """Return this recipe with more techniques, under `name`."""
        return Recipe(
            name=name,
            model={**self.model, **(model or {})},
            training={**self.training, **training},
            rates=rates or self.rates,
        )


_LINEAR = {"lr_schedule": "wsd", "min_learning_rate": 0.0}
_ADAMW = Recipe(name="GPT-2, AdamW, cosine", rates=(4e-3, 8e-3))
_MUON = Recipe(name="GPT-2, Muon as it was", training={"optimizer": "muon"}, rates=(8e-3, 16e-3))
_SPLIT = _MUON.plus("GPT-2, Muon with split QKV", muon=MuonConfig(split_qkv=True))
_NANOCHAT = _MUON.plus("nanochat, Muon", model={"architecture": "nanochat"}, rates=(16e-3, 32e-3))
_UNTIED = _NANOCHAT.plus("nanochat, Muon, own head", model={"tie_weights": False})
_WARMED = MuonConfig(momentum_warmup_steps=50)
_TO_ZERO = _UNTIED.plus("  and linear to zero", **_LINEAR)
RECIPES = (
    _ADAMW,
    _MUON,
    _NANOCHAT,
    _UNTIED,
    _TO_ZERO,
    _TO_ZERO.plus("  and momentum warm-up", muon=_WARMED),
    _UNTIED.plus("nanochat, Muon, own head, momentum warm-up", muon=_WARMED),
    _ADAMW.plus("GPT-2, AdamW, linear to zero", **_LINEAR),
    _ADAMW.plus("LLaMA, AdamW", model={"architecture": "llama"}, rates=(2e-3, 4e-3)),
    _ADAMW.plus("nanochat, AdamW", model={"architecture": "nanochat"}),
    _SPLIT,
    _SPLIT.plus("  and linear to zero, GPT-2", **_LINEAR),
    _MUON.plus("LLaMA, Muon", model={"architecture": "llama"}),
)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One training of a recipe."""

    experiment: str
    recipe: str
    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    bits_per_byte: float
    """On held-out text; infinite where the loss was not finite."""

    cpu_seconds: float


class _Bench:
    """Trains what is asked for, once."""

    def __init__(self, experiment: Experiment, results: Path) -> None:
        self._experiment = experiment
        self._results = results
        self._lock = threading.Lock()
        self._done: dict[_Run, _Outcome] = {}
        for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
            value = json.loads(line)
            self._done[_Run(**value["run"])] = _Outcome(**value["outcome"])

    @property
    def whole(self) -> int:
        """Updates of the baseline."""
        steps = self._experiment.config.training.max_steps
        if steps is None:
            raise SystemExit(
                f"{self._experiment.file.name}: training.max_steps: found null, need the baseline's updates"
            )
        return steps

    def loss(self, recipe: Recipe, *, share: float, rate: float, seed: int) -> float:
        """Return the bits per byte of `recipe` at the end of `share` of the baseline's updates."""
        run = _Run(
            experiment=self._experiment.name,
            recipe=recipe.name,
            steps=round(share * self.whole),
            learning_rate=rate,
            seed=seed,
        )
        if run not in self._done:
            outcome = _in_a_process(self._experiment.file, recipe, run)
            with self._lock, self._results.open("a", encoding="utf-8") as file:
                self._done[run] = outcome
                file.write(json.dumps({"run": dataclasses.asdict(run), "outcome": dataclasses.asdict(outcome)}) + "\n")
            print(
                f"  {recipe.name}: {run.steps} updates at {rate:g}, seed {seed}: {outcome.bits_per_byte:.4f}",
                flush=True,
            )
        return self._done[run].bits_per_byte

    def tuned(self, recipe: Recipe, *, share: float) -> float:
        """Return the learning rate at which `recipe` ends lowest."""
        losses: dict[float, float] = {}
        rates: Sequence[float] = recipe.rates
        while rates and len(losses) < _MOST_RATES:
            losses |= {rate: self.loss(recipe, share=share, rate=rate, seed=_TUNING_SEED) for rate in rates}
            rates = rates_beyond_edge(losses)
        if rates:
            print(f"  {recipe.name}: the best rate is at the edge of {_MOST_RATES}; those further out may do better")
        return min(losses, key=losses.__getitem__)


def rates_beyond_edge(losses: Mapping[float, float]) -> list[float]:
    """Return the learning rate to try next: beyond the best of those tried if it is the outermost; none otherwise."""
    best = min(losses, key=losses.__getitem__)
    beyond = {max(losses): best * 2, min(losses): best / 2}
    return [beyond[best]] if best in beyond else []


def share_needed(losses: Mapping[float, float], target: float) -> float:
    """Return the share of the updates at which the loss would be `target`, given the losses at some shares.

    Between two shares the loss is a straight line over the logarithm of the share. NaN: all are above the target;
    the smallest share where all are below it.
    """
    shares = sorted(losses, reverse=True)
    if losses[shares[0]] > target:
        return math.nan
    for above, below in itertools.pairwise(shares):
        if losses[below] > target:
            way = (target - losses[above]) / (losses[below] - losses[above])
            return float(math.exp(math.log(above) + way * (math.log(below) - math.log(above))))
    return shares[-1]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What came of a recipe."""

    recipe: Recipe
    rate: float
    shares: list[float]
    """Of the baseline's updates, that it needs for the baseline's loss, by seed."""


def _measured(bench: _Bench, recipe: Recipe, target: float, seeds: int) -> _Row:
    rate = bench.tuned(recipe, share=_TUNED_AT)
    shares, begin = [], [_TUNED_AT]
    for seed in range(_TUNING_SEED, _TUNING_SEED + seeds):
        losses = _on_both_sides(bench, recipe, rate=rate, seed=seed, target=target, begin=begin)
        shares.append(share_needed(losses, target))
        begin = sorted(losses, key=lambda share: abs(losses[share] - target))[:2]
    return _Row(recipe=recipe, rate=rate, shares=shares)


def _on_both_sides(
    bench: _Bench, recipe: Recipe, *, rate: float, seed: int, target: float, begin: Sequence[float]
) -> dict[float, float]:
    """Return losses by share: those at `begin`, and further ones until some are below the target and some above it."""

    def loss(share: float) -> float:
        return bench.loss(recipe, share=share, rate=rate, seed=seed)

    losses = {share: loss(share) for share in begin}
    for share in reversed(_BUDGETS):
        if share > max(losses) and min(losses.values()) > target:
            losses[share] = loss(share)
    for share in _BUDGETS:
        if share < min(losses) and max(losses.values()) <= target:
            losses[share] = loss(share)
    return losses


def main() -> None:
    options = _options()
    print(describe_machine())
    for file in options.experiments:
        experiment = load_experiment(file)
        _prepare(experiment)
        _compare(_Bench(experiment, options.results), experiment, options)


def _compare(bench: _Bench, experiment: Experiment, options: argparse.Namespace) -> None:
    rate = bench.tuned(_ADAMW, share=1.0)
    ends = [bench.loss(_ADAMW, share=1.0, rate=rate, seed=seed) for seed in range(options.seeds)]
    target, model = statistics.mean(ends), experiment.config.model
    print(
        f"{experiment.name}: {model.n_layer} layers of {model.n_embd}, {bench.whole} updates of "
        f"{experiment.config.tokens_per_step:,} tokens; {_ADAMW.name} at {rate:g} ends at {target:.4f} bits per byte, "
        f"by seed {', '.join(f'{end:.4f}' for end in ends)}",
        flush=True,
    )
    chosen = [each for each in RECIPES[1:] if not options.only or each.name.strip() in options.only]
    with ThreadPoolExecutor(options.workers) as pool:
        rows = list(pool.map(lambda recipe: _measured(bench, recipe, target, options.seeds), chosen))
    _print_table(rows, seconds=_seconds_per_update(experiment, [_ADAMW, *chosen], turns=options.turns))


def _seconds_per_update(experiment: Experiment, recipes: Sequence[Recipe], *, turns: int) -> dict[str, float]:
    """Return the time for an update with each of the recipes, which take turns on one thread."""
    contestants = [
        Contestant(name=recipe.name, make=_make_step, settings=(experiment.file, recipe)) for recipe in recipes
    ]
    return {name: one.median for name, one in compete(contestants, turns=turns, steps=2).items()}


def _make_step(settings: tuple[Path, Recipe]) -> Step:
    """Return an update of the recipe, on random tokens."""
    file, recipe = settings
    torch.set_num_threads(1)
    config = load_experiment(file).config
    training = dataclasses.replace(config.training, **recipe.training, max_steps=1_000_000, learning_rate=1e-4)
    layout = step_layout(training, max_length=config.data.max_length, steps_per_epoch=1, world_size=1)
    compute = choose_compute(config.hardware, training, ranks=Ranks(), say=_silent)
    prepare_process(compute)
    torch.manual_seed(0)
    model = make_model(_model(config.model, recipe)).to(compute.device)
    updater = Updater(model, training, layout=layout, compute=compute, ranks=Ranks(), say=_silent)
    ids = torch.randint(0, config.model.vocab_size, (layout.batch_size, layout.max_length + 1)).to(compute.device)
    batch, steps = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()), itertools.count()
    return lambda: updater.update(next(steps), batch).result().train_loss


def _print_table(rows: Sequence[_Row], *, seconds: Mapping[str, float]) -> None:
    """Print the ratios to the baseline."""
    print(f"\n{'RATIOS to ' + _ADAMW.name:44} {'rate':>7} {'tokens needed':>14} {'by seed':24} {'time a token':>13}")
    for row in rows:
        by_seed = ", ".join(f"{share:.2f}" for share in row.shares)
        mean, time_ratio = statistics.mean(row.shares), seconds[row.recipe.name] / seconds[_ADAMW.name]
        print(f"{row.recipe.name:44} {row.rate:7g} {mean:14.2f} {by_seed:24} {time_ratio:13.2f}")


def _prepare(experiment: Experiment) -> None:
    """Make the experiment's token shards."""
    data, folder = experiment.config.data, experiment.data_folder
    for stage in (RawStage(config=data, data_folder=folder), DocumentsStage(config=data, data_folder=folder)):
        prepare(stage, say=_silent)
    tokenizer = TokenizerStage(config=data, data_folder=folder)
    if tokenizer.is_made:
        tokenizer.finish(say=_silent)
    prepare(ShardsStage(config=data, data_folder=folder), say=_silent)


def _silent(text: str) -> None:
    """Say nothing."""


def _in_a_process(file: Path, recipe: Recipe, run: _Run) -> _Outcome:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_train, args=(there, file, recipe, run))
    process.start()
    there.close()
    try:
        outcome: _Outcome = here.recv()
    except EOFError:
        raise SystemExit(f"{recipe.name}: the training's process ended without an outcome") from None
    process.join()
    return outcome


class _LastLoss:
    """An observer that keeps the last val_loss."""

    def __init__(self) -> None:
        self.val_loss = math.nan

    def progress(self, record: Mapping[str, Any]) -> None:
        self.val_loss = record.get("val_loss", self.val_loss)

    def validating(self, done: int, total: int) -> None: ...

    def checkpoint(self, info: CheckpointInfo) -> None: ...

    def message(self, text: str) -> None: ...


def _train(answer: Connection, file: Path, recipe: Recipe, run: _Run) -> None:
    """Train `run`, in this process; send its outcome."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    torch.set_num_threads(1)
    experiment = load_experiment(file)
    shards = ShardsStage(config=experiment.config.data, data_folder=experiment.data_folder).find()
    assert shards is not None
    facts = shards.manifest.facts
    observer = _LastLoss()
    with tempfile.TemporaryDirectory() as folder:
        job = _job(experiment, recipe, run, folder=folder, shards=shards)
        begun = time.process_time()
        try:
            outcome = run_job(job, observer)
        except NotFiniteError:  # that rate is too high
            answer.send(_Outcome(bits_per_byte=math.inf, cpu_seconds=time.process_time() - begun))
            return
        if not outcome.finished:  # a signal asked this training to stop, and so means the whole
            raise SystemExit(outcome.exit_code)
        seconds = time.process_time() - begun
    bytes_per_token = facts["validation_text_bytes"] / open_shards(shards.folder).validation.n_tokens
    bits = observer.val_loss / math.log(2) / bytes_per_token
    answer.send(_Outcome(bits_per_byte=bits, cpu_seconds=seconds))


def _job(experiment: Experiment, recipe: Recipe, run: _Run, *, folder: str, shards: StageResult) -> TrainingJob:
    config = experiment.config
    training = dataclasses.replace(
        config.training,
        **{
            **recipe.training,
            "learning_rate": run.learning_rate,
            "max_steps": run.steps,
            "warmup_steps": min(config.training.warmup_steps, run.steps // 10),
            "seed": run.seed,
        },
    )
    windows = -(-_HELD_OUT_TOKENS // (config.data.max_length * training.batch_size))
    return TrainingJob(
        experiment_name="recipes",
        fingerprint="0" * 64,
        shards_folder=str(shards.folder),
        shards_fingerprint=shards.manifest.fingerprint,
        experiment_folder=folder,
        model=_model(config.model, recipe),
        training=training,
        max_length=config.data.max_length,
        cadence=CadenceConfig(eval_freq=run.steps, eval_iters=windows, save_every_n_iterations=run.steps, keep_last=1),
        hardware=config.hardware,
        tokenizer=shards.manifest.facts.get("tokenizer"),
    )


def _model(base: ModelConfig, recipe: Recipe) -> ModelConfig:
    """Return the model of `recipe`, as large as `base` outside the embeddings."""
    model = dataclasses.replace(base, **recipe.model)
    if model.architecture == "llama" and model.mlp_width is None:
        model = dataclasses.replace(model, mlp_width=round(8 * model.n_embd / 3))
    ratio = _outside_embeddings(model) / _outside_embeddings(base)
    assert abs(ratio - 1) < 0.02, f"{recipe.name}: {ratio:.3f} times the parameters"
    return model


def _outside_embeddings(model: ModelConfig) -> int:
    """Return the parameters without embeddings and head."""
    tied = dataclasses.replace(model, tie_weights=True)
    positions = model.context_length if model.architecture == "gpt2" else 0
    return parameter_count(tied) - (model.vocab_size + positions) * model.n_embd


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes")
    parser.add_argument("experiments", type=Path, nargs="+", help="files with data, a GPT-2 and training.max_steps")
    parser.add_argument("--results", type=Path, default=Path("recipes.jsonl"), help="what has been trained")
    parser.add_argument("--only", nargs="+", default=(), metavar="RECIPE", help="only those with these names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9, help="for the time of an update")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings under way together")
    return parser.parse_args()


if __name__ == "__main__":
    main()

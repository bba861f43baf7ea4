"""What the UI shows of an asset before it is made: its owner, its tags, where its settings and its code stand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.orchestration import keys
from gpt_pipeline.shown import counted

OWNERS = ["team:gpt_pipeline"]
"""Sets the project's assets apart in a Dagster that shows several code locations."""

_PACKAGE = Path(__file__).parents[1]
_LONGEST_TAG = 63  # letters that Dagster takes as the value of an asset's tag; a run's may be longer

SOURCES: Mapping[str, str] = {
    "raw_synth": "data/documents/raw.py",
    "english_parquet": "data/documents/stage.py",
    "raw_files": "data/documents/raw.py",
    "documents": "data/documents/stage.py",
    "tokenizer": "data/tokens/tokenizer_stage.py",
    "token_shards": "data/tokens/shards.py",
    "mixed_shards": "data/tokens/mixed.py",
    "rl_prompts": "rl/stage.py",
    "training": "training/trainer.py",
    "checkpoint": "checkpoints/save.py",
    "evaluation": "evaluation/evaluate.py",
    "report": "report/build.py",
    "comparison": "comparison/compare.py",
}
"""Where a stage's work is done, below the package, by the asset's last name."""


def stage_tags(stage: str, experiment: Experiment | None = None) -> dict[str, str]:
    """Return the tags by which the catalogue is searched; of one experiment, or of what several share."""
    tags = {keys.STAGE_TAG: stage}
    return tags if experiment is None else {**tags, keys.EXPERIMENT_TAG: experiment.name[:_LONGEST_TAG]}


def code_references(stage: str, experiment: Experiment | None = None) -> dict[str, Any]:
    """Return the metadata behind *Open in editor*: the experiment file, the stage's code."""
    code = {SOURCES[stage]: (_PACKAGE / SOURCES[stage], 1)}
    return _references(code if experiment is None else {experiment.file.name: (experiment.file, 1), **code})


def file_metadata(file: Path, *, line: int = 1) -> dict[str, Any]:
    """Return the metadata of an experiment file alone."""
    return {"experiment_file": dg.MetadataValue.path(str(file)), **_references({file.name: (file, line)})}


def experiment_metadata(stage: str, experiment: Experiment) -> dict[str, Any]:
    """Return what is shown of one of the experiment's own assets: the file and the code."""
    return {"experiment_file": dg.MetadataValue.path(str(experiment.file)), **code_references(stage, experiment)}


def training_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the main numbers of the training to come, as words: the UI would plot numbers."""
    config = experiment.config
    model, training = config.model, config.training
    length = counted(training.max_steps, "step") if training.max_steps else counted(training.num_epochs, "epoch")
    layers = counted(model.n_layer, "layer")
    shape = f"{layers}, {model.n_head} heads, {model.n_embd:,} wide, context {model.context_length:,}"
    return {
        "model": f"{parameter_count(model):,} parameters: {model.architecture}, {shape}",
        "batch": _batch(config),
        "schedule": f"{length}, {training.optimizer}, {training.lr_schedule} from {training.learning_rate:g} "
        f"after {counted(training.warmup_steps, 'step')} of warm-up",
        "checkpoints": f"every {config.evaluation.save_every_n_iterations:,} steps, the last "
        f"{config.evaluation.keep_last} and the best are kept",
        "hardware": f"{config.hardware.device}, {training.precision}"
        + (f", {config.hardware.num_gpus} GPUs" if config.hardware.num_gpus > 1 and not config.hardware.place else "")
        + (f", {config.hardware.place}" if config.hardware.place else ""),
    }


def _batch(config: ExperimentConfig) -> str:
    if config.has_rollouts:
        rl = config.rl
        return f"{rl.samples_per_prompt} answers to each of {rl.prompts_per_step} questions a step"
    return f"{config.tokens_per_step:,} tokens a step: {config.sequences_per_step} x {config.data.max_length}"


def _references(places: Mapping[str, tuple[Path, int]]) -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore", category=dg.BetaWarning):
        references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
            dg.LocalFileCodeReference(file_path=str(file), line_number=line, label=label)
            for label, (file, line) in places.items()
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references)}

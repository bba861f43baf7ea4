"""From an experiment to the job that the trainer gets: identity, data, and the weights to begin with. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpt_pipeline.checkpoints.choose import LAST
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    find_checkpoint,
    list_checkpoints,
    new_tokens,
)
from gpt_pipeline.data.config import CHATML_SUFFIX, is_gpt2
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.identity import TRAINING_CODE_VERSION, training_identity
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.sizes import size_on
from gpt_pipeline.experiment.start_from import StartNotReadyError, base_file, start_checkpoint
from gpt_pipeline.rl.prompts import TRAINING
from gpt_pipeline.rl.stage import PromptsStage
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.finished import best_of, find_finished_training, last_checkpoint
from gpt_pipeline.training.job import TOKENIZER, Rollouts, StartWeights, TrainingJob


@dataclass(frozen=True, kw_only=True)
class StartPoint:
    """The weights that a training begins with."""

    checkpoint: CheckpointInfo
    source: str
    """For people: `gpt2-124m.yaml, best_model.pt, step 50000`."""

    def weights(self, shards: StageResult) -> StartWeights:
        """Return the same for the trainer, which trains them on `shards`."""
        info = self.checkpoint
        return StartWeights(
            file=str(info.path),
            weights_sha256=info.weights_sha256,
            source=self.source,
            new_tokens=new_tokens(info.settings, shards.manifest.facts),
        )


def find_start(experiment: Experiment) -> StartPoint | None:
    """Return the weights that the experiment's training begins with; None if it begins with random ones.

    Raises:
        StartNotReadyError: they are still to be trained or converted; running the experiment does it.
        UserError: they cannot be had, such as a checkpoint that has been removed.
    """
    start_from = experiment.config.start_from
    if start_from is None:
        return None
    base = base_experiment(experiment)
    if base is not None:
        info = _checkpoint_of(base, experiment)
        return StartPoint(checkpoint=info, source=f"{base.file.name}, {info.path.name}, step {info.step}")
    found = start_checkpoint(start_from, experiment.file, experiment.folder)
    if found is None:
        raise StartNotReadyError(f"the weights of {start_from.text} are still to be converted")
    return StartPoint(checkpoint=found, source=start_from.text)


class StartInWords(NamedTuple):
    """The weights that a training begins with, for a person."""

    text: str
    """Which they are, or why they are not there; empty where they are random ones."""

    is_ready: bool = True
    can_be_made: bool = True
    """Whether running the experiment gives them, if they are not there."""


def start_in_words(experiment: Experiment) -> StartInWords:
    """Return which weights the training begins with, or why they are not there."""
    try:
        start = find_start(experiment)
    except UserError as error:
        can_be_made = isinstance(error, StartNotReadyError)
        return StartInWords(str(error), is_ready=False, can_be_made=can_be_made)
    return StartInWords("" if start is None else f"the weights of {start.source}")


def base_experiment(experiment: Experiment) -> Experiment | None:
    """Return the experiment that this one starts from, read anew; None if it starts from none."""
    start_from = experiment.config.start_from
    path = None if start_from is None else base_file(start_from, experiment.file)
    return None if path is None else load_experiment(path)


def pretraining_of(experiment: Experiment) -> Experiment | None:
    """Return the pretraining that the experiment goes on from, itself or over others; None if it is none of a file.

    The experiment itself where it pretrains.
    """
    found: Experiment | None = experiment
    while found is not None and found.config.training.is_post_training:
        found = base_experiment(found)
    return found


def _checkpoint_of(base: Experiment, later: Experiment) -> CheckpointInfo:
    """Return the checkpoint of `base` that `later` names, which belongs to the training that base's file asks for."""
    start_from = later.config.start_from
    assert start_from is not None
    identity = wanted_fingerprint(base)
    folder = base.folder.checkpoints
    named = None if start_from.step is None else find_checkpoint(folder, start_from.step)
    if named is not None and named.fingerprint == identity:
        return named
    if identity is None:
        find_start(base)  # whose own start may be what is not ready
    finished = None if identity is None else find_finished_training(base.folder, identity)
    if finished is None:
        changed = any(info.fingerprint != identity for info in list_checkpoints(folder)[-1:])
        why = "has changed since it was trained" if changed else "is not trained to its end yet"
        raise StartNotReadyError(f"{base.file.name} {why}")
    if start_from.step is None:
        named = (last_checkpoint if start_from.checkpoint == LAST else best_of)(base.folder, finished)
    if named is not None:  # of another training where base went on from one of its checkpoints
        return named
    known = ", ".join(f"step_{info.step}" for info in list_checkpoints(folder)) or "none"
    raise ConfigError(
        "start_from.checkpoint",
        found=start_from.checkpoint,
        need=f"one of those that {base.file.name} has kept in {folder}: {known}",
    )


def _require_same_tokenizer(start: StartPoint, tokenizer: str | None) -> None:
    """Raise `ConfigError` unless the weights to start from were trained on the tokens of this tokenizer."""
    theirs = start.checkpoint.settings.get(TOKENIZER)
    same = {tokenizer}
    if tokenizer is not None and tokenizer.endswith(CHATML_SUFFIX):
        same.add(_without_turns(tokenizer))
    if theirs not in same:
        ours, theirs = (_tokenizer_in_words(name) for name in (tokenizer, theirs))
        raise ConfigError(
            "data.tokenizer",
            found=ours,
            need=f"{theirs}, the tokenizer of {start.source}: with another one, the rows of its weights would mean "
            "other tokens",
            remedy="name its file, which is in its folder of token_shards",
        )


def _tokenizer_in_words(identity: str | None) -> str:
    """Return what facts or settings say of a tokenizer, for a person."""
    turns = " with the tokens of ChatML" if (identity or "").endswith(CHATML_SUFFIX) else ""
    if is_gpt2(identity):
        return f"GPT-2's{turns}"
    digest = (identity or "").removesuffix(CHATML_SUFFIX).removeprefix("tokenizer-")
    return f"one whose tokenizer.json has the sha256 {digest[:12]}...{turns}"


def _without_turns(tokenizer: str) -> str | None:
    """Return what settings say of the same tokenizer without the tokens of ChatML."""
    return None if is_gpt2(tokenizer) else tokenizer.removesuffix(CHATML_SUFFIX)


def training_fingerprint(config: ExperimentConfig, shards_fingerprint: str, *, start: str | None = None) -> str:
    """Return the identity of the weights that `config` gives on these shards; `identity.py` says what is in it.

    `start` is the sha256 of the weights that it begins with; None: random ones.
    """
    return fingerprint(
        "training",
        config=training_identity(config, start=start),
        upstream=[shards_fingerprint],
        code_version=TRAINING_CODE_VERSION,
    )


def wanted_fingerprint(experiment: Experiment) -> str | None:
    """Return the identity of the training that the file asks for; None before its data and its start are made."""
    # numpy, which would be half of the definitions' time to load
    from gpt_pipeline.data.tokens.choose import known_shards

    shards = known_shards(experiment.data, experiment.data_folder)
    if shards is None:
        return None
    try:
        start = find_start(experiment)
    except UserError:  # `start_in_words` says why
        return None
    weights = None if start is None else start.checkpoint.weights_sha256
    return training_fingerprint(experiment.config, shards.fingerprint, start=weights)


def prompts_stage(experiment: Experiment) -> PromptsStage | None:
    """Return the stage of the questions whose answers are trained on; None before its data and its start are made.

    Raises:
        UserError: the weights to begin with cannot be had.
    """
    from gpt_pipeline.data.tokens.choose import known_shards

    shards = known_shards(experiment.data, experiment.data_folder)
    try:
        start = find_start(experiment)
    except StartNotReadyError:
        return None
    return None if shards is None or start is None else _prompts_stage(experiment, shards, start)


def _prompts_stage(experiment: Experiment, shards: StageResult, start: StartPoint) -> PromptsStage:
    config = experiment.config
    return PromptsStage(
        config=config.rl,
        seed=config.training.seed,
        max_length=config.data.max_length,
        shards_fingerprint=shards.fingerprint,
        weights_sha256=start.checkpoint.weights_sha256,
        data_folder=experiment.data_folder,
    )


def _rollouts(experiment: Experiment, shards: StageResult, start: StartPoint | None) -> Rollouts | None:
    if not experiment.config.has_rollouts:
        return None
    assert start is not None  # `experiment.config` asks for it
    stage = _prompts_stage(experiment, shards, start)
    (folder, identity), made = stage.place(), stage.find()
    return Rollouts(
        config=experiment.config.rl,
        prompts_folder=str(folder),
        prompts_fingerprint=identity,
        prompts_sha256="" if made is None else made.manifest.files[TRAINING].sha256,
    )


def training_job(experiment: Experiment, shards: StageResult) -> TrainingJob:
    """Return what the trainer has to do for `experiment` on `shards`.

    Raises:
        DataError: the shards do not fill one update.
        ConfigError: the base folder is not one of this machine.
        UserError: as `find_start`.
    """
    config = experiment.config
    size_on(shards.folder, shards.manifest, config)
    start, tokenizer = find_start(experiment), shards.manifest.facts.get("tokenizer")
    if start is not None:
        _require_same_tokenizer(start, tokenizer)
    weights = None if start is None else start.weights(shards)
    sha256 = None if weights is None else weights.weights_sha256
    return TrainingJob(
        experiment_name=experiment.display_name,
        fingerprint=training_fingerprint(config, shards.fingerprint, start=sha256),
        shards_folder=str(shards.folder),
        shards_fingerprint=shards.fingerprint,
        experiment_folder=str(experiment.folder.root),
        model=config.model,
        training=config.training,
        max_length=config.data.max_length,
        cadence=experiment.cadence,
        hardware=config.hardware,
        resume=config.storage.checkpoint_to_resume,
        start_from=weights,
        tokenizer=tokenizer,
        packing=config.data.packing,
        rollouts=_rollouts(experiment, shards, start),
    )

"""What a run is about to do, said within a second of its start; `plan` says more, and measures."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.sizes import TrainingSize, training_size
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.planning.survey import is_surveyed
from gpt_pipeline.planning.tokens import TokenCount, count_tokens
from gpt_pipeline.progress.stages import data_progress
from gpt_pipeline.progress.training import asks_to_start_again, experiment_training
from gpt_pipeline.report.wording import count
from gpt_pipeline.shown import counted
from gpt_pipeline.training.decision import PREVIOUS_NAME


def outline(experiment: Experiment, *, force: bool = False) -> Iterator[str]:
    """Yield what is still to be done, a line a stage; nothing once it is trained. Uses no network, measures nothing.

    `force` is a training from the first step, whatever there is.
    """
    if not force and experiment_training(experiment).state == "finished" and not asks_to_start_again(experiment):
        return
    to_do = [stage.label for stage in data_progress(experiment) if stage.state != "finished"]
    tokens = _known_tokens(experiment, are_counted=not to_do)
    if to_do:
        amount = (
            ""
            if tokens is None
            else f": about {count(tokens.tokens)} tokens in {counted(tokens.documents, 'document')}"
        )
        yield f"data         {', '.join(to_do)}{amount}"
    yield f"training     {_training(experiment, tokens)}"
    if force and (experiment.folder.training.is_file() or list_checkpoints(experiment.folder.checkpoints)):
        yield f"             anew; the training so far moves to {experiment.folder.root / PREVIOUS_NAME}"
    yield "evaluations  of each checkpoint, beside the training"
    yield f"report       {experiment.folder.report}"
    yield "Ctrl+C saves a checkpoint and stops; the same command goes on from there."


def _known_tokens(experiment: Experiment, *, are_counted: bool) -> TokenCount | None:
    """Return the tokens where no file must be looked into for them, which could take long."""
    if not are_counted and any(is_surveyed(part.data) for part in experiment.parts.values()):
        return None
    try:
        return count_tokens(experiment)
    except UserError:  # whatever it is, the stage that meets it says it with its remedy
        return None


def _training(experiment: Experiment, tokens: TokenCount | None) -> str:
    config = experiment.config
    model = f"{count(parameter_count(config.model))} parameters"
    size = _size(experiment, tokens)
    if size is None:
        return f"{model}; its steps are known once the data is there"
    steps = size.layout.max_steps
    place = f", {config.hardware.place}" if config.hardware.is_remote else ""
    starts = config.start_from is not None and config.training.is_post_training  # with a checkpoint of step 0
    checkpoints = math.ceil(steps / config.evaluation.save_every_n_iterations) + starts
    return (
        f"{model}, about {counted(steps, 'step')} of {size.layout.tokens_per_step:,} tokens, "
        f"{counted(checkpoints, 'checkpoint')}{place}; the time left is shown once it is under way"
    )


def _size(experiment: Experiment, tokens: TokenCount | None) -> TrainingSize | None:
    if tokens is None and not experiment.config.has_rollouts:
        return None
    try:
        return training_size(experiment.config, train_tokens=tokens.train_tokens if tokens else 0)
    except UserError:  # too few tokens: the training says it with its remedy
        return None

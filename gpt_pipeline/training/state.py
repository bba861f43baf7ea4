"""The state of a training under way, and its way into checkpoints and back."""

from __future__ import annotations

import dataclasses

from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.config import is_gpt2
from gpt_pipeline.data.tokens.stream import tokenizer_file
from gpt_pipeline.training.job import TrainingJob, settings_of
from gpt_pipeline.training.seeds import random_states, restore_random_states
from gpt_pipeline.training.update import Updater


def take_snapshot(job: TrainingJob, progress: Progress, updater: Updater) -> Snapshot:
    """Return the state of the training; its tensors are the living ones, which the next update changes."""
    return Snapshot(
        model={name: tensor.detach() for name, tensor in updater.model.state_dict().items()},
        model_config=job.model,
        optimizer=updater.optimizer.state(),
        average=updater.average.state(),
        average_since=updater.average.since,
        loss_scale=None if updater.loss_scale is None else updater.loss_scale.state(),
        random=random_states(),
        progress=dataclasses.replace(progress),
        fingerprint=job.fingerprint,
        shards_fingerprint=job.shards_fingerprint,
        settings=settings_of(job),
        tokenizer=None if is_gpt2(job.tokenizer) else tokenizer_file(job.shards_folder),
    )


def restore(snapshot: Snapshot, updater: Updater) -> Progress:
    """Put the state of `snapshot` into the model, the optimizer and the generators; return its progress.

    What was trained in another precision has no loss scale, and begins with the first.
    """
    updater.model.load_state_dict(dict(snapshot.model))
    updater.optimizer.restore(snapshot.optimizer)
    updater.average.restore(snapshot)
    if updater.loss_scale is not None and snapshot.loss_scale is not None:
        updater.loss_scale.restore(snapshot.loss_scale)
    restore_random_states(snapshot.random)
    return dataclasses.replace(snapshot.progress)

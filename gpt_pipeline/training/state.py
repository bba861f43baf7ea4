"""The state of a training under way, the random generators' included, and its way into checkpoints and back."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.config import is_gpt2
from gpt_pipeline.data.tokens.stream import tokenizer_file
from gpt_pipeline.hardware import devices
from gpt_pipeline.training.job import TrainingJob, settings_of

if TYPE_CHECKING:
    from gpt_pipeline.training.update import Updater


def seed_all(seed: int) -> None:
    """Seed every generator, for the initial weights and for whatever else draws numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one update, so that its dropout masks depend on nothing but these three numbers."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def random_states() -> dict[str, Any]:
    """Return the state of every generator, as tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        **devices.generator_states(),
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set every generator to what `random_states` returned; GPUs that are not here are left out."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    devices.restore_generators(states)


def take_snapshot(job: TrainingJob, progress: Progress, updater: Updater) -> Snapshot:
    """Return the state of the training; its tensors are the living ones, which the next update changes."""
    return Snapshot(
        model={name: tensor.detach() for name, tensor in updater.model.state_dict().items()},
        model_config=job.model,
        optimizer=updater.optimizer.state(),
        average=updater.average.state(),
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
    updater.average.restore(snapshot.average)
    if updater.loss_scale is not None and snapshot.loss_scale is not None:
        updater.loss_scale.restore(snapshot.loss_scale)
    restore_random_states(snapshot.random)
    return dataclasses.replace(snapshot.progress)

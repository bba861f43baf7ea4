"""The random generators: how they are seeded, and their states, which a checkpoint holds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpt_pipeline.hardware import devices


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

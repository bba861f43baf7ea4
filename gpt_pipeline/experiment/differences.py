"""Differences between the configurations of experiments, key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.experiment.config import ExperimentConfig

_LEFT_OUT = ("experiment_name", "family", "storage")  # its names and location, not what is computed


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key whose value differs between the experiment files."""

    key: str
    """Whole path, such as `training.learning_rate`."""

    values: tuple[Any, ...]
    """One per experiment, in their order; defaults count as written, and None stands for the keys of a null block."""


def config_differences(configs: Sequence[ExperimentConfig]) -> list[Difference]:
    """Return the keys that differ between the configurations, in the order of the blocks."""
    flat = [
        flattened({section: block for section, block in config.as_values().items() if section not in _LEFT_OUT})
        for config in configs
    ]
    return [
        Difference(key=key, values=tuple(values.get(key) for values in flat))
        for key in dict.fromkeys(key for values in flat for key in values)
        if any(values.get(key) != flat[0].get(key) for values in flat)
    ]


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of blocks, and of blocks inside them, by their whole paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in flattened(value).items()}
        else:
            flat[key] = value
    return flat

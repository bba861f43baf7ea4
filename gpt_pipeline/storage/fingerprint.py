"""The identity of what a stage computes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

SHORT = 12  # hex digits that folder names carry: 48 bits

_NEUTRAL = "neutral"
_Value = TypeVar("_Value")


def added_later(neutral: _Value) -> _Value:
    """Return the default of a config key that did not exist in the first version; `neutral` computes as before it.

    While such a key has its neutral value, it is no part of an identity, so everything that was made before the key
    existed keeps its fingerprint. The neutral value is the default, and both stay what they are for good.
    """
    field: _Value = dataclasses.field(default=neutral, metadata={_NEUTRAL: neutral})
    return field


def neutral_values(config: type) -> dict[str, Any]:
    """Return the keys of a config class that were added later, with the values that stand for their absence."""
    return {each.name: each.metadata[_NEUTRAL] for each in dataclasses.fields(config) if _NEUTRAL in each.metadata}


def identity_of(config: Any, *keys: str) -> dict[str, Any]:
    """Return what a config contributes to a fingerprint: the values of `keys` (all if none is named).

    A key that was added later is left out while it is neutral, in configs inside this one too.
    """
    neutral = neutral_values(type(config))
    values = {name: getattr(config, name) for name in keys or [each.name for each in dataclasses.fields(config)]}
    return {
        name: _plain_identity(value) for name, value in values.items() if name not in neutral or value != neutral[name]
    }


def _plain_identity(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return identity_of(value)
    if isinstance(value, Mapping):
        return {name: _plain_identity(item) for name, item in value.items()}
    return [_plain_identity(item) for item in value] if isinstance(value, list | tuple) else value


def fingerprint(stage: str, *, config: Mapping[str, Any], upstream: Sequence[str] = (), code_version: str) -> str:
    """Return the hex sha256 of everything that decides a stage's output.

    `config` holds what is computed, as JSON values (see `identity_of`). Paths, hosts, dates, devices and worker counts
    do not belong in it: the same fingerprint on two machines means the same output. Raise `code_version` by hand when
    a stage's code changes its output.
    """
    identity = {"stage": stage, "config": config, "upstream": list(upstream), "code_version": code_version}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

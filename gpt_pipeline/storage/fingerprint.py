"""The identity of what a stage computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

SHORT = 12  # hex digits that folder names carry: 48 bits


def fingerprint(stage: str, *, config: Mapping[str, Any], upstream: Sequence[str] = (), code_version: str) -> str:
    """Return the hex sha256 of everything that decides a stage's output.

    `config` holds what is computed, as JSON values. Paths, hosts, dates, devices and worker counts do not belong in
    it: the same fingerprint on two machines means the same output. `code_version` is raised by hand when a stage's
    code changes its output.
    """
    identity = {"stage": stage, "config": config, "upstream": list(upstream), "code_version": code_version}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

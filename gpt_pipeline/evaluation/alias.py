"""The second name of an evaluated checkpoint: `best_model.pt` holds the weights of one of the others.

Derived from the folder whenever it is asked for, since the best changes while the evaluations stay as they are.
"""

from __future__ import annotations

from pathlib import Path

from gpt_pipeline.checkpoints.manifest import BEST_NAME, best_checkpoint
from gpt_pipeline.evaluation.result import EvaluationResult

BEST_ALIAS = BEST_NAME.removesuffix(".pt")


def alias_of(result: EvaluationResult, checkpoints: Path) -> str | None:
    """Return `best_model` if the weights that were evaluated are those of `best_model.pt` in `checkpoints` now."""
    best = best_weights(checkpoints, training_fingerprint=str(result.checkpoint["training_fingerprint"]))
    return BEST_ALIAS if best == result.checkpoint["weights_sha256"] else None


def best_weights(checkpoints: Path, *, training_fingerprint: str) -> str | None:
    """Return the hash of the weights in `best_model.pt`, or None if there is none of this training."""
    best = best_checkpoint(checkpoints)
    return best.weights_sha256 if best is not None and best.fingerprint == training_fingerprint else None

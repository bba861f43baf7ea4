"""What the loss that decides is estimated on, and so whether the estimates of two configurations compare.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pipeline.data.config import STREAM
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.rl.prompts import read_prompts
from gpt_pipeline.training.config import ERROR_RATE, deciding_loss
from gpt_pipeline.training.job import OBJECTIVE, PACKING, SHARDS, Change, Settings, TrainingJob, settings_of

_ITERATIONS, _LENGTH = "evaluation.eval_iters", "data.max_length"
_OF_ANSWERS = ("max_new_tokens", "temperature", "top_k", "samples_per_prompt", "candidates")
"""Keys of `rl:` that choose the held-out questions, or what is sampled in answer to them."""


def find_estimate_changes(before: Settings, job: TrainingJob) -> list[Change]:
    """Return what sets the estimates of `job` apart from those with the settings `before`; empty: they compare.

    More batches than the held-out documents have change nothing. What `before` does not know is no change, but for
    keys that came later, which had their neutral value.
    """
    after, available = settings_of(job), _available(job)
    known = {**after, OBJECTIVE: "pretrain", PACKING: STREAM, **before}
    then, now = _measured(known, available), _measured(after, available)
    return [
        Change(key=key, before=then[key], after=value)
        for key, value in now.items()
        if key in then and then[key] != value
    ]


def _available(job: TrainingJob) -> int:
    """Return how many held-out questions the job's estimates can be of, or held-out tokens that are predicted."""
    if job.rollouts is not None:
        return len(read_prompts(Path(job.rollouts.prompts_folder), job.rollouts.prompts_fingerprint).held_out)
    return open_shards(Path(job.shards_folder)).validation.n_tokens - 1


def _measured(settings: Settings, available: int) -> dict[str, Any]:
    """Return what decides an estimate besides the weights, for people too: with the same, estimates compare."""
    loss, length, count = (
        deciding_loss(settings[OBJECTIVE], settings[PACKING]),
        settings[_LENGTH],
        settings[_ITERATIONS],
    )
    found = {"the loss that decides": loss, SHARDS: settings[SHARDS], _LENGTH: length}
    if loss != ERROR_RATE:
        tokens = count * settings["training.batch_size"] * length
        return {**found, "held-out tokens in an estimate": min(tokens, available)}
    questions = count * settings["rl.prompts_per_step"]
    keys = ("training.seed", *(f"rl.{name}" for name in _OF_ANSWERS))
    answers = {key: settings[key] for key in keys}
    return {**found, **answers, "held-out questions in an estimate": min(questions, available)}

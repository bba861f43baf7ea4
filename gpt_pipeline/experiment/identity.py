"""What decides the weights of an experiment, and what does not."""

from __future__ import annotations

from typing import Any

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.stage import prompts_identity
from gpt_pipeline.storage.fingerprint import identity_of

TRAINING_CODE_VERSION = "2"
"""Raised by hand when the trainer's code changes the weights that a config gives, be it by rounding only.

2: gradients are clipped inside the optimizer's step; on the CPU, products by oneDNN on AMD and attention in blocks.

It was not raised when sampling read each question once, which only trainings on rewards notice, in the last bit, nor
when updates without a target stopped decaying weights, which only fine-tunings that have such updates notice: all
others would have counted as out of date.
"""

_HOW_NOT_WHAT = {"micro_batch_size", "compile", "gradient_checkpointing", "deterministic"}
_SAID_OTHERWISE = {"batch_size", "tokens_per_step", "num_epochs", "max_steps", "min_learning_rate"}


def training_identity(config: ExperimentConfig, *, start: str | None = None) -> dict[str, Any]:
    """Return everything that decides the weights, besides the data, as JSON values.

    `start` is the sha256 of the weights that the training begins with; None: random ones. Where they come from, an
    experiment, a file or the hub, makes no difference.

    Two ways of saying the same are one identity: `batch_size` and `tokens_per_step`, a `min_learning_rate` left out and
    the tenth of `learning_rate` that it stands for, any `num_epochs` below a `max_steps`.

    Left out, so that changing it continues a training rather than starting another:
        hardware: device and number of GPUs; the same batches in the same order on any of them.
        training.micro_batch_size: how an update is cut to fit the memory; the same gradient but for rounding and for
            where dropout falls. Who runs out of memory lowers it and goes on.
        training.compile: the same arithmetic in fused kernels, but for rounding.
        training.gradient_checkpointing: the same arithmetic, some of it twice.
        training.deterministic: the same arithmetic, whose sums have a fixed order.
        evaluation: looks at the weights, never changes them.
        storage, experiment_name, family, runtime: where the files lie and what they are called.
        data, but for max_length and packing: the fingerprint of the shards says more than the block.
    Kept although it is about hardware: training.precision, since bf16 and fp16 train visibly different weights. It
    counts as written: `auto` is an identity of its own, or else the device would be part of it. So a training with
    `auto` that moves from a GPU with bf16 to one with fp16, or to a CPU, continues; who wants the same everywhere names
    the precision. What `auto` came to stands in the training's record.
    A key that is `added_later` is left out while it is neutral. With `training.objective: rl`, the questions and what
    their answers are worth belong to it.
    """
    training = identity_of(config.training)
    for name in _HOW_NOT_WHAT | _SAID_OTHERWISE:
        training.pop(name, None)
    training["sequences_per_step"] = config.sequences_per_step
    training["min_learning_rate"] = config.training.final_learning_rate
    steps = config.training.max_steps
    training["length"] = {"epochs": config.training.num_epochs} if steps is None else {"steps": steps}
    return {
        "model": identity_of(config.model),
        "training": training,
        "max_length": config.data.max_length,
        **identity_of(config.data, "packing"),
        **({} if start is None else {"start_from": {"weights_sha256": start}}),
        **({"rl": _rl_identity(config.rl)} if config.has_rollouts else {}),
    }


def _rl_identity(config: RlConfig) -> dict[str, Any]:
    return {**identity_of(config), **prompts_identity(config)}

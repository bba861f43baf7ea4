"""The `training:` and `hardware:` blocks of an experiment file, and what the trainer needs of `evaluation:`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.errors import require
from gpt_pipeline.storage.fingerprint import added_later

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]
Objective = Literal["pretrain"]
Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the weights are updated. All but `micro_batch_size` and `compile` is part of the training's fingerprint."""

    batch_size: int = 8
    """Sequences of `data.max_length` tokens in one optimizer update."""

    num_epochs: int = 1
    """Passes over the training documents."""

    max_steps: int | None = None
    """Optimizer updates to stop after; null: as many as `num_epochs` gives."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached after the warm-up."""

    min_learning_rate: float | None = None
    """Learning rate of the last step; null: a tenth of `learning_rate`."""

    lr_schedule: Schedule = "cosine"
    """After the linear warm-up: `cosine` decay, `wsd` (stable, then linear decay over the last fifth), `constant`."""

    warmup_steps: int = 500
    """Updates over which the learning rate rises linearly from 0."""

    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""

    gradient_clip: float = 1.0
    """Largest global gradient norm; above it gradients are scaled down."""

    optimizer: OptimizerName = "adamw"
    """`adamw`, or `muon`: Muon for the blocks' matrices with AdamW for the rest."""

    tokens_per_step: int | None = None
    """Tokens in one optimizer update, all ranks and micro-batches together; null: `batch_size` * `data.max_length`."""

    micro_batch_size: int | None = None
    """Sequences in one forward pass; null: the whole update at once. Less memory, the same result."""

    precision: Precision = "auto"
    """`fp32`, `bf16` (autocast), or `auto`: bf16 on CUDA, fp32 on CPU."""

    compile: bool | Literal["auto"] = "auto"
    """Whether the model is compiled; `auto`: on CUDA where Triton is installed."""

    seed: int = 0
    """Chooses the initial weights, the order of the data and the dropout masks."""

    objective: Objective = added_later("pretrain")
    """What the targets are: `pretrain`, every next token of every document. More objectives follow."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "num_epochs"):
            require(getattr(self, key) > 0, key, found=getattr(self, key), need="a whole number above 0")
        for key in ("max_steps", "tokens_per_step", "micro_batch_size"):
            value = getattr(self, key)
            require(value is None or value > 0, key, found=value, need="a whole number above 0, or null")
        for key in ("warmup_steps", "seed"):
            require(getattr(self, key) >= 0, key, found=getattr(self, key), need="a whole number, 0 or above")
        for key in ("learning_rate", "gradient_clip"):
            require(
                0 < getattr(self, key) < float("inf"), key, found=getattr(self, key), need="a finite number above 0"
            )
        require(0 <= self.weight_decay < 1, "weight_decay", found=self.weight_decay, need="a number in [0, 1)")
        require(
            self.min_learning_rate is None or 0 <= self.min_learning_rate <= self.learning_rate,
            "min_learning_rate",
            found=self.min_learning_rate,
            need=f"a number from 0 to learning_rate={self.learning_rate}, or null",
        )

    @property
    def final_learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """What to train on. Never part of a fingerprint."""

    device: Device = "auto"
    """`cuda`, `cpu`, or `auto`: CUDA where torch finds it."""

    num_gpus: int = 1
    """GPUs of this machine to train on together."""

    def __post_init__(self) -> None:
        require(self.num_gpus > 0, "num_gpus", found=self.num_gpus, need="a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class CadenceConfig:
    """How often a running trainer looks at itself and saves. Changes no weight, so part of no fingerprint."""

    eval_freq: int
    """Steps between two estimates of the validation loss."""

    eval_iters: int
    """Micro-batches in one estimate."""

    save_every_n_iterations: int
    """Steps between two checkpoints."""

    keep_last: int
    """Checkpoints kept, newest first; the best and those being evaluated are kept besides."""

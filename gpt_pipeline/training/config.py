"""The `training:` and `hardware:` blocks of an experiment file, and the size of an update that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.data.config import STREAM
from gpt_pipeline.errors import ConfigError, require
from gpt_pipeline.launchers.config import LauncherName, RayConfig, SlurmConfig
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.fingerprint import added_later, neutral_values

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]
Objective = Literal["pretrain", "sft", "rl"]
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]

ERROR_RATE = "error_rate"
"""With `rl`: share of the sampled answers to held-out questions that have no reward, 1 - pass@1."""

PASSES = "pass_at_1"
"""With `rl`: share of those answers that have one."""


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """How Muon updates the blocks' matrices."""

    split_qkv: bool = added_later(False)
    """Whether the query, key and value matrices, which `gpt2` keeps in one, are made orthogonal each for itself."""

    momentum: float = added_later(0.95)
    """Share of the past in the running mean of gradients."""

    momentum_warmup_steps: int = added_later(0)
    """Updates over which the momentum rises linearly from 0.85."""

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, "momentum", found=self.momentum, need="a number in [0, 1)")
        steps = self.momentum_warmup_steps
        require(steps >= 0, "momentum_warmup_steps", found=steps, need="a whole number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class LearningRateFactors:
    """Multiples of `learning_rate`, and so of the decoupled weight decay, by what a parameter is."""

    embedding: float = added_later(1.0)
    """For embeddings, one that is also the head included."""

    head: float = added_later(1.0)
    """For a head of its own (`tie_weights: false`)."""

    matrices: float = added_later(1.0)
    """For the matrices of the blocks, which Muon updates if it is the optimizer."""

    vectors: float = added_later(1.0)
    """For biases and the gains of norms."""

    def __post_init__(self) -> None:
        for key in neutral_values(type(self)):
            value = getattr(self, key)
            require(0 <= value < float("inf"), key, found=value, need="a finite number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Which mean of the weights is kept beside them; none unless one of the keys is set."""

    decay: float | None = added_later(None)
    """Share of the past in the exponential mean at each update (EMA), such as 0.999."""

    last: float | None = added_later(None)
    """Share of the updates, at the end, over whose weights the plain mean is taken, such as 0.1."""

    def __post_init__(self) -> None:
        decay, last = self.decay, self.last
        require(decay is None or 0 < decay < 1, "decay", found=decay, need="a number between 0 and 1, or null")
        require(last is None or 0 < last <= 1, "last", found=last, need="a number above 0, up to 1, or null")
        require(
            decay is None or last is None,
            "decay",
            found=f"{decay} and last={last}",
            need="one of the two",
            remedy="remove one of the keys",
        )

    @property
    def is_wanted(self) -> bool:
        """Whether a mean is kept."""
        return self.decay is not None or self.last is not None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the weights are updated. All keys enter the training's fingerprint but `micro_batch_size`, `compile`,
    `gradient_checkpointing` and `deterministic`."""

    batch_size: int = 8
    """Sequences of `data.max_length` tokens in one optimizer update; with `tokens_per_step` only of the trainer's
    estimates, which read `evaluation.eval_iters` times as many."""

    num_epochs: int = 1
    """Passes over the training documents."""

    max_steps: int | None = None
    """Stop after this many optimizer updates; null: after `num_epochs` epochs."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached after the warm-up."""

    min_learning_rate: float | None = None
    """Learning rate of the last step; null: a tenth of `learning_rate`."""

    lr_schedule: Schedule = "cosine"
    """After the linear warm-up: `cosine` decay, `wsd` (stable, then linear decay over `decay_share`), `constant`."""

    warmup_steps: int = 500
    """Updates over which the learning rate rises linearly from 0."""

    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""

    gradient_clip: float = 1.0
    """Maximum global gradient norm; larger gradients are scaled down to it."""

    optimizer: OptimizerName = "adamw"
    """`adamw`, or `muon`: Muon for the blocks' matrices with AdamW for the rest."""

    tokens_per_step: int | None = None
    """Tokens in one optimizer update, all ranks and micro-batches together; null: `batch_size` * `data.max_length`."""

    micro_batch_size: int | Literal["auto"] | None = None
    """Sequences in one forward pass; null: the whole update at once. Less saves memory and changes no result. `auto`:
    as many as the GPU's memory holds, found by trying."""

    precision: Precision = "auto"
    """`fp32`; `bf16` or `fp16` in products (autocast), fp16 with loss scaling; or `auto`: on a GPU bf16 where its chip
    multiplies in it, else fp16 where an NVIDIA chip has tensor cores, else fp32."""

    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the model; `auto`: on CUDA or XPU if Triton is installed."""

    gradient_checkpointing: bool = added_later(False)
    """Whether blocks compute their activations again in the backward pass instead of keeping them: less memory, about a
    third more time, the same result."""

    deterministic: bool = added_later(False)
    """Whether a GPU adds up in a fixed order: the same training on the same machine gives the same bits, more slowly. A
    CPU always does."""

    seed: int = 0
    """Chooses the initial weights, the order of the data and the dropout masks."""

    objective: Objective = added_later("pretrain")
    """What is learned: `pretrain`, every next token of every document; `sft` (supervised fine-tuning), reasoning and
    answer alone, in rows of whole documents; `rl` (reinforcement learning), what is rewarded among the
    answers that the model samples to questions (the `rl:` block), without dropout."""

    decay_share: float = added_later(0.2)
    """Share of the updates over which `lr_schedule: wsd` decays, at the end (Hägele et al. 2024, "Scaling laws and
    compute-optimal training beyond fixed training durations")."""

    learning_rate_factors: LearningRateFactors = added_later(LearningRateFactors())  # frozen
    """Multiples of the learning rate, at each step of the schedule, for embedding, head, matrices and vectors."""

    muon: MuonConfig = added_later(MuonConfig())  # frozen
    """Details of `optimizer: muon`."""

    average_weights: AverageConfig = added_later(AverageConfig())  # frozen
    """A mean of the weights that is kept beside them in checkpoints: exponential (`decay: 0.999`), or plain over the
    end of the training (`last: 0.1`). The training itself stays the same."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "num_epochs"):
            require(getattr(self, key) > 0, key, found=getattr(self, key), need="a whole number above 0")
        for key in ("max_steps", "tokens_per_step"):
            value = getattr(self, key)
            require(value is None or value > 0, key, found=value, need="a whole number above 0, or null")
        micro = self.given_micro_batch_size
        need = "a whole number above 0, auto, or null"
        require(micro is None or micro > 0, "micro_batch_size", found=micro, need=need)
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
        require(0 < self.decay_share <= 1, "decay_share", found=self.decay_share, need="a number above 0, up to 1")
        for key, neutral in neutral_values(MuonConfig).items():
            value = getattr(self.muon, key)
            meant = self.optimizer == "muon" or value == neutral
            require(
                meant,
                f"muon.{key}",
                found=value,
                need=f"no such key with training.optimizer={self.optimizer}; set training.optimizer: muon",
            )

    @property
    def given_micro_batch_size(self) -> int | None:
        """Sequences in one forward pass as far as the file says; None: the whole update, or as many as fit."""
        return None if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def size_key(self) -> str:
        """The key that says how large an update is."""
        return "batch_size" if self.tokens_per_step is None else "tokens_per_step"

    @property
    def is_post_training(self) -> bool:
        """Whether it goes on from a model that continues text to one that answers."""
        return self.objective != "pretrain"

    @property
    def answers_only(self) -> bool:
        """Whether only reasoning and answers count, of documents that each stand whole in a row."""
        return self.objective == "sft"

    @property
    def final_learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """The hardware to train on. It never enters a fingerprint."""

    device: Device = "auto"
    """`cuda` (NVIDIA, or AMD with torch for ROCm), `mps` (Apple), `xpu` (Intel), `cpu`, or `auto`: a GPU if torch finds
    one."""

    num_gpus: int = 1
    """Number of GPUs to train on; with a launcher other than `local`, on each node."""

    launcher: LauncherName = added_later("local")
    """Where the training runs: `local`, on this machine, or as a job of a cluster, `slurm` or `ray`."""

    slurm: SlurmConfig = added_later(SlurmConfig())  # frozen
    """With `launcher: slurm`: how the job is submitted."""

    ray: RayConfig = added_later(RayConfig())  # frozen
    """With `launcher: ray`: how the job is submitted."""

    def __post_init__(self) -> None:
        require(self.num_gpus > 0, "num_gpus", found=self.num_gpus, need="a whole number above 0")

    @property
    def nodes(self) -> int:
        """Number of machines that train together."""
        match self.launcher:
            case "local":
                return 1
            case "slurm":
                return self.slurm.nodes
            case "ray":
                return self.ray.nodes

    @property
    def processes(self) -> int:
        """Number of processes that train together, one a GPU."""
        return self.nodes * self.num_gpus

    @property
    def gpus_per_node(self) -> int:
        """Number of GPUs that the training needs on each machine, as far as the file tells."""
        return 0 if self.device == "cpu" else self.num_gpus

    @property
    def is_remote(self) -> bool:
        """Whether an engine runs the training, on machines of its own."""
        return self.launcher != "local"

    @property
    def device_here(self) -> Device:
        """The device for what this machine does itself, such as evaluations: the cluster's is not here."""
        return "auto" if self.is_remote and self.device != "cpu" else self.device

    @property
    def place(self) -> str:
        """Where the training runs, in words; empty: here."""
        if not self.is_remote:
            return ""
        gpus = f" with {self.num_gpus} GPUs each" if self.num_gpus > 1 else ""
        return f"as a {self.launcher} job on {counted(self.nodes, 'node')}{gpus}"


@dataclass(frozen=True, kw_only=True)
class CadenceConfig:
    """How often a running trainer estimates its loss and saves. It changes no weights, so it enters no fingerprint."""

    eval_freq: int
    """Steps between two estimates of the validation loss."""

    eval_iters: int
    """Times `training.batch_size` sequences, or `rl.prompts_per_step` questions, in one estimate."""

    save_every_n_iterations: int
    """Steps between two checkpoints."""

    keep_last: int
    """Number of newest checkpoints to keep; the best one and those being evaluated are kept as well."""


ESTIMATES: Mapping[str, str] = {"val_loss": "validation", "document_loss": "documents", "completion_loss": "answers"}
"""Losses that a running training estimates, by name, and what a chart calls each; not every training has all."""


def deciding_loss(objective: str, packing: str) -> str:
    """Return by which estimate, lower being better, the checkpoints of a training are ranked: what it trains on."""
    if objective == "rl":
        return ERROR_RATE
    if objective == "sft":
        return "completion_loss"
    return "val_loss" if packing == STREAM else "document_loss"


def sequences_per_step(config: TrainingConfig, *, max_length: int) -> int:
    """Return the sequences in one optimizer update, all processes together.

    Raises:
        ConfigError: `tokens_per_step` is not made of whole sequences.
    """
    tokens = config.tokens_per_step
    if tokens is None:
        return config.batch_size
    _require_multiple("tokens_per_step", tokens, of=max_length, unit=f"data.max_length={max_length}")
    return tokens // max_length


def total_steps(config: TrainingConfig, *, steps_per_epoch: int) -> int:
    """Return the optimizer updates of the whole training."""
    return config.max_steps if config.max_steps is not None else config.num_epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """One optimizer update, shared by `world_size` processes that each accumulate gradients over micro-batches."""

    batch_size: int
    """Sequences in one update, all processes together."""

    micro_batch_size: int
    """Sequences in one forward pass of one process."""

    max_length: int
    """T, tokens in a sequence."""

    world_size: int
    max_steps: int
    """Updates of the whole training."""

    @property
    def share(self) -> int:
        """Sequences of one process in one update."""
        return self.batch_size // self.world_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update, all processes and micro-batches together."""
        return self.batch_size * self.max_length

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one process in one update."""
        return -(
            -self.batch_size // (self.world_size * self.micro_batch_size)
        )  # the last of sampled ones may be smaller

    @property
    def log_every(self) -> int:
        """Updates in one line of metrics: each of a short training, ten of a long one."""
        return max(1, min(10, self.max_steps // 1000))


def step_layout(config: TrainingConfig, *, max_length: int, steps_per_epoch: int, world_size: int) -> StepLayout:
    """Return the layout of the training; with `micro_batch_size: auto`, with as few forward passes as can be.

    Raises:
        ConfigError: the update does not divide evenly among processes or into micro-batches.
    """
    batch_size = sequences_per_step(config, max_length=max_length)
    key = config.size_key
    size, unit = (batch_size, 1) if config.tokens_per_step is None else (config.tokens_per_step, max_length)
    _require_multiple(key, size, of=world_size * unit, unit=f"the {world_size} processes that share it")
    share = batch_size // world_size
    micro = min(config.given_micro_batch_size or share, share)
    _require_multiple(key, size, of=world_size * unit * micro, unit=f"micro_batch_size={micro} in each process")
    return StepLayout(
        batch_size=batch_size,
        micro_batch_size=micro,
        max_length=max_length,
        world_size=world_size,
        max_steps=total_steps(config, steps_per_epoch=steps_per_epoch),
    )


def cpu_micro_batch_size(share: int, *, max_length: int) -> int:
    """Return the largest divisor of `share` sequences with at most 1,024 tokens, or 1: on a CPU, more is no faster."""
    return next(size for size in divisors(share) if size * max_length <= 1024 or size == 1)


def divisors(number: int) -> list[int]:
    """Return the divisors of `number`, the largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def rollout_layout(config: TrainingConfig, rl: RlConfig, *, max_length: int, world_size: int) -> StepLayout:
    """Return the layout of a training on sampled answers, whose sequences have at most `max_length` tokens.

    Raises:
        ConfigError: the questions do not divide evenly among the processes, or `micro_batch_size` is `auto`.
    """
    if config.micro_batch_size == "auto":
        raise auto_with_rollouts()
    prompts, key = rl.prompts_per_step, "rl.prompts_per_step"
    need, remedy = (
        f"a multiple of the {world_size} processes that share it",
        f"use {-(-prompts // world_size) * world_size}",
    )
    require(prompts % world_size == 0, key, found=prompts, need=need, remedy=remedy)
    assert config.max_steps is not None  # `experiment.config` asks for it
    share = prompts * rl.samples_per_prompt // world_size
    return StepLayout(
        batch_size=share * world_size,
        micro_batch_size=min(config.given_micro_batch_size or share, share),
        max_length=max_length,
        world_size=world_size,
        max_steps=config.max_steps,
    )


def auto_with_rollouts() -> ConfigError:
    """Return what is wrong with `micro_batch_size: auto` where answers are sampled, in batches of that size."""
    need = "a number or null with training.objective=rl, where answers sampled together may be other texts"
    return ConfigError("training.micro_batch_size", found="auto", need=need, remedy="use 16, say")


def _require_multiple(key: str, value: int, *, of: int, unit: str) -> None:
    below = value // of * of
    use = f"{below} or {below + of}" if below else f"{of}"
    require(value % of == 0, f"training.{key}", found=value, need=f"a multiple of {of} ({unit})", remedy=f"use {use}")

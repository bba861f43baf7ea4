"""The whole experiment file as one config, and what its blocks must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from math import isqrt
from typing import Any

from gpt_pipeline.data.config import DOCUMENTS, FORMAT_COLUMNS, LENGTH_OF_PART, DataConfig, DocumentsConfig, PartConfig
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.errors import ConfigError, require
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.experiment.start_from import StartFromConfig
from gpt_pipeline.mirror.address import require_mirror
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.storage.fingerprint import added_later, neutral_values
from gpt_pipeline.storage.names import folder_name
from gpt_pipeline.training.config import (
    HardwareConfig,
    StepLayout,
    TrainingConfig,
    auto_with_rollouts,
    deciding_loss,
    rollout_layout,
    sequences_per_step,
    step_layout,
)

LOCAL = "local files"
DATA_FOLDER = "data"  # <base_folder>/data holds what experiments share, so that no experiment may bear the name
TRASH = ".trash"  # nor this one: <base_folder>/.trash holds what `gpt-pipeline remove` took away


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where an experiment keeps its files, and which checkpoint it resumes from."""

    base_folder: str
    """Folder for all data and checkpoints; a relative path starts at the experiment file's folder."""

    checkpoint_to_resume: str | None = None
    """A file name in the `checkpoints` folder to resume from; null: the newest valid one; `scratch`: start over."""

    mirror: str | None = added_later(None)
    """Object storage to which finished data, checkpoints and results are copied in the background, and from which a
    machine that lacks them brings them: `s3://bucket/prefix`, `gs://`, `az://` or `file:///folder`; null: none."""

    mirror_keep_last: int | None = added_later(None)
    """Checkpoints of this training to keep in the mirror, besides the best; null: as many as `evaluation.keep_last`."""

    def __post_init__(self) -> None:
        if self.mirror is not None:
            require_mirror(self.mirror, key="mirror")
        kept = self.mirror_keep_last
        require(kept is None or kept >= 1, "mirror_keep_last", found=kept, need="a whole number from 1 on, or null")
        require(bool(self.base_folder.strip()), "base_folder", found=self.base_folder, need="the path of a folder")
        name = self.checkpoint_to_resume
        if name is not None and name != "scratch":
            plain = name.endswith(".pt") and "/" not in name and "\\" not in name and ":" not in name
            require(
                plain,
                "checkpoint_to_resume",
                found=name,
                need="a file name such as checkpoint_step_50000.pt, `scratch`, or null",
            )


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What an experiment file says, block by block; omitted blocks have their defaults."""

    experiment_name: str
    """Shown to people; also the name of the experiment's folder, with `_` for characters that are not allowed there."""

    data: DataConfig
    storage: StorageConfig
    family: str | None = added_later(None)
    """The set of experiments that this one belongs to, such as a grid of learning rates; `status` and `compare` sum it
    up. It changes no result; null: none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    start_from: StartFromConfig | None = added_later(None)
    """The weights to begin with; null: random ones."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rl: RlConfig = added_later(RlConfig())  # frozen
    """With `training.objective: rl`: how answers are sampled and rewarded."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def as_values(self) -> dict[str, Any]:
        """Return every value by block and key for a person, as JSON values; a block that is null is left out.

        Of `data.columns`, those that the format reads. `data.local_dataset_path` is used instead of `data.source`,
        whose default would name data that is not used.
        """
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if not self.has_rollouts:
            del values["rl"]
        values["data"]["columns"] = _columns_read(self.data)
        if self.data.mix is not None:  # whose parts name what the block names otherwise
            of_parts = {each.name for each in fields(DocumentsConfig)} - {"num_samples"}
            said = {name: _said_of(part) for name, part in self.data.mix.items()}
            data = {name: value for name, value in values["data"].items() if name not in of_parts}
            return values | {"data": data | {"mix": said}}
        if self.data.local_dataset_path is not None:
            return values | {"data": {**values["data"], "source": LOCAL}}
        return values

    @property
    def deciding_loss(self) -> str:
        """Name of the loss by which the trainer chooses the best checkpoint."""
        return deciding_loss(self.training.objective, self.data.packing)

    @property
    def has_rollouts(self) -> bool:
        """Whether training is on answers that the model samples."""
        return self.training.objective == "rl"

    @property
    def trained_model(self) -> ModelConfig:
        """The model as updates compute it: on answers that it samples, without dropout."""
        return replace(self.model, dropout=0.0) if self.has_rollouts else self.model

    @property
    def sequences_per_step(self) -> int:
        """Sequences in one optimizer update, all GPUs and micro-batches together."""
        if self.has_rollouts:
            return self.rl.prompts_per_step * self.rl.samples_per_prompt
        return sequences_per_step(self.training, max_length=self.data.max_length)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer update, all GPUs and micro-batches together; of sampled answers the most."""
        return self.sequences_per_step * self.data.max_length

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one GPU in one optimizer update."""
        return self.step_layout(steps_per_epoch=1).grad_accum_steps  # which depends on no epoch

    def step_layout(self, *, steps_per_epoch: int) -> StepLayout:
        """Return how the trainer will cut its updates on the hardware that the file names."""
        length, size = self.data.max_length, self.hardware.processes
        if self.has_rollouts:
            return rollout_layout(self.training, self.rl, max_length=length, world_size=size)
        return step_layout(
            self.training,
            max_length=length,
            steps_per_epoch=steps_per_epoch,
            world_size=size,
        )


def _columns_read(data: DocumentsConfig) -> dict[str, Any]:
    return {name: getattr(data.columns, name) for name in FORMAT_COLUMNS[data.format]}


def _said_of(part: PartConfig) -> dict[str, Any]:
    """Return what a part of a mix says beyond the defaults."""
    values = asdict(part) | {"columns": _columns_read(part)}
    return {each.name: values[each.name] for each in fields(part) if getattr(part, each.name) != each.default}


def contradictions(config: ExperimentConfig) -> Iterator[ConfigError]:
    """Yield what the blocks of `config` do not agree on, each with the values to use instead."""
    yield from _name(config)
    if config.family is not None and not config.family.strip():
        yield ConfigError("family", found=config.family, need="a name, or null")
    yield from _sequence_length(config)
    yield from _rollouts(config) if config.has_rollouts else _batch(config)
    yield from _rl_block(config)
    yield from _warmup(config)
    yield from _decay_share(config)
    yield from _objective(config)
    yield from _idle(config)


def _name(config: ExperimentConfig) -> Iterator[ConfigError]:
    try:
        folder = folder_name(config.experiment_name, key="experiment_name")
    except ConfigError as error:
        yield error
        return
    if folder.lower() == DATA_FOLDER:  # lower: Windows and macOS do not tell `Data` from `data`
        need = f"another name: the folder `{DATA_FOLDER}` holds the data that experiments share"
        yield ConfigError("experiment_name", found=config.experiment_name, need=need, remedy="use `data 1`, say")
    elif folder.lower() == TRASH:
        need = f"another name: `gpt-pipeline remove` moves experiments to the folder `{TRASH}`"
        yield ConfigError("experiment_name", found=config.experiment_name, need=need, remedy="use `trash`, say")


def _sequence_length(config: ExperimentConfig) -> Iterator[ConfigError]:
    length, context = config.data.max_length, config.model.context_length
    if length > context:
        need = f"at most model.context_length={context}"
        remedy = f"use data.max_length: {context}, or model.context_length: {length}"
        yield ConfigError("data.max_length", found=length, need=need, remedy=remedy)


def _batch(config: ExperimentConfig) -> Iterator[ConfigError]:
    tokens, length = config.training.tokens_per_step, config.data.max_length
    if tokens is not None and tokens % length:
        use = _either([tokens // length * length, (tokens // length + 1) * length])
        need = f"a multiple of data.max_length={length}"
        yield ConfigError("training.tokens_per_step", found=tokens, need=need, remedy=use)
        return
    sequences, gpus, processes = config.sequences_per_step, config.hardware.num_gpus, config.hardware.processes
    if sequences % gpus:
        need = f"a divisor of the {sequences} sequences in one update"
        yield ConfigError("hardware.num_gpus", found=gpus, need=need, remedy=_either(_divisors_near(gpus, sequences)))
        return
    if sequences % processes:
        need = (
            f"a divisor of {sequences // gpus}: the {sequences} sequences of one update over a node's {gpus} processes"
        )
        yield _of_nodes(config, need=need, use=_divisors_near(config.hardware.nodes, sequences // gpus))
        return
    size, share = config.training.given_micro_batch_size, sequences // processes
    if size is not None and size < share and share % size:  # above the share, the trainer takes the share at once
        need = f"a divisor of the {share} sequences of one update on each GPU"
        use = _either(_divisors_near(size, share))
        yield ConfigError("training.micro_batch_size", found=size, need=need, remedy=use)


def _rl_block(config: ExperimentConfig) -> Iterator[ConfigError]:
    for each in () if config.has_rollouts else fields(RlConfig):
        found = getattr(config.rl, each.name)
        if found != each.default:
            need = f"no such key with training.objective={config.training.objective}"
            remedy = "set training.objective: rl, or remove the block `rl:`"
            yield ConfigError(f"rl.{each.name}", found=found, need=need, remedy=remedy)


def _rollouts(config: ExperimentConfig) -> Iterator[ConfigError]:
    """Yield what a training on sampled answers lacks, and what it has no use for."""
    training, rl, length = config.training, config.rl, config.data.max_length
    if config.start_from is None:
        need, remedy = "weights to begin with, for training.objective=rl", "name the experiment that trains them"
        yield ConfigError("start_from", found=None, need=need, remedy=remedy)
    if training.max_steps is None:
        need = "a whole number above 0: with training.objective=rl there are no epochs to count"
        yield ConfigError("training.max_steps", found=None, need=need, remedy="use 200, say")
    if training.micro_batch_size == "auto":
        yield auto_with_rollouts()
    for key, neutral in {"batch_size": 8, "tokens_per_step": None, "num_epochs": 1}.items():
        if (found := getattr(training, key)) != neutral:
            need = "no such key with training.objective=rl"
            remedy = (
                "remove it: rl.prompts_per_step and rl.samples_per_prompt say what an update has, max_steps how many"
            )
            yield ConfigError(f"training.{key}", found=found, need=need, remedy=remedy)
    is_whole = length > LENGTH_OF_PART  # a part of a mix need not ask questions, nor know how long a sequence is
    if is_whole and not has_questions(config.data):
        need = "synth, question_answer or chat with training.objective=rl, which rewards answers"
        yield ConfigError(
            "data.format", found=config.data.format, need=need, remedy="or set training.objective: pretrain"
        )
    if is_whole and rl.max_new_tokens >= length:
        need = f"less than data.max_length={length}, which question and answer share"
        yield ConfigError("rl.max_new_tokens", found=rl.max_new_tokens, need=need, remedy=f"use {length // 2}")
    gpus = config.hardware.num_gpus
    if rl.prompts_per_step % gpus:
        need = f"a multiple of hardware.num_gpus={gpus}"
        remedy = f"use {-(-rl.prompts_per_step // gpus) * gpus}"
        yield ConfigError("rl.prompts_per_step", found=rl.prompts_per_step, need=need, remedy=remedy)
    elif rl.prompts_per_step % config.hardware.processes:
        need = (
            f"a divisor of the {rl.prompts_per_step // gpus} questions in one update for each of the nodes' processes"
        )
        yield _of_nodes(config, need=need, use=_divisors_near(config.hardware.nodes, rl.prompts_per_step // gpus))


def _of_nodes(config: ExperimentConfig, *, need: str, use: list[int]) -> ConfigError:
    hardware = config.hardware
    return ConfigError(f"hardware.{hardware.launcher}.nodes", found=hardware.nodes, need=need, remedy=_either(use))


def _warmup(config: ExperimentConfig) -> Iterator[ConfigError]:
    warmup, steps = config.training.warmup_steps, config.training.max_steps
    if steps is not None and warmup >= steps:
        need = f"a whole number below training.max_steps={steps}, or the learning rate never reaches its peak"
        yield ConfigError("training.warmup_steps", found=warmup, need=need, remedy=f"use {steps // 10}")


def _decay_share(config: ExperimentConfig) -> Iterator[ConfigError]:
    schedule, share = config.training.lr_schedule, config.training.decay_share
    if schedule != "wsd" and share != neutral_values(type(config.training))["decay_share"]:
        need = f"no such key with training.lr_schedule={schedule}"
        yield ConfigError("training.decay_share", found=share, need=need, remedy="remove it, or set lr_schedule: wsd")


def _objective(config: ExperimentConfig) -> Iterator[ConfigError]:
    if not config.training.answers_only:
        return
    if config.data.packing != DOCUMENTS:
        need = f"{DOCUMENTS} with training.objective=sft: an answer is learnt behind its own question"
        remedy = f"set data.packing: {DOCUMENTS}"
        yield ConfigError("data.packing", found=config.data.packing, need=need, remedy=remedy)
    for name, part in config.data.parts.items():
        if not has_questions(part):
            key = f"data.mix.{name}.format" if name else "data.format"
            need = "synth, question_answer or chat with training.objective=sft, which trains on answers"
            yield ConfigError(key, found=part.format, need=need, remedy="or set training.objective: pretrain")


def _idle(config: ExperimentConfig) -> Iterator[ConfigError]:
    """Yield keys for parameters that the model does not have: they would change nothing."""
    factors, model = config.training.learning_rate_factors, config.model
    if factors.head != 1 and model.tie_weights:
        need = "no such key with model.tie_weights=true, where the embedding is the head"
        remedy = "set learning_rate_factors.embedding, or model.tie_weights: false"
        yield ConfigError("training.learning_rate_factors.head", found=factors.head, need=need, remedy=remedy)
    if factors.vectors != 1 and model.architecture == "nanochat":
        need = "no such key with model.architecture=nanochat, which has no vectors"
        yield ConfigError(
            "training.learning_rate_factors.vectors", found=factors.vectors, need=need, remedy="remove it"
        )
    if config.training.muon.split_qkv and model.architecture != "gpt2":
        need = f"no such key with model.architecture={model.architecture}, whose matrices are apart already"
        yield ConfigError("training.muon.split_qkv", found=True, need=need, remedy="remove it")


def _divisors_near(value: int, whole: int) -> list[int]:
    """Return the largest divisor of `whole` below `value` and the smallest above it."""
    limit = min(isqrt(whole), 10_000)  # bounds the work for absurd sizes, where a nearer divisor may be missed
    small = [divisor for divisor in range(1, limit + 1) if whole % divisor == 0]
    divisors = sorted({*small, *(whole // divisor for divisor in small)})
    below = [divisor for divisor in divisors if divisor < value]
    above = [divisor for divisor in divisors if divisor > value]
    return below[-1:] + above[:1]


def _either(values: list[int]) -> str:
    return "use " + " or ".join(str(value) for value in values if value > 0)

"""What the trainer is asked to do, as one JSON file, and what sets two such jobs apart. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_pipeline.checkpoints.manifest import TOKENIZER as TOKENIZER  # noqa: PLC0414  # exported
from gpt_pipeline.data.config import STREAM
from gpt_pipeline.errors import UserError
from gpt_pipeline.mirror.order import Order
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.storage.atomic import only_known_fields, read_state, write_json
from gpt_pipeline.storage.fingerprint import added_later, identity_of
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig, deciding_loss

SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """The weights of another training that this one begins with."""

    file: str
    """A checkpoint, beside its manifest."""

    weights_sha256: str
    """Of the weights in it (`checkpoints.snapshot.weights_sha256`): part of the training's fingerprint."""

    source: str
    """Where they come from, for people: `gpt2-124m.yaml, best_model.pt, step 50000`."""

    new_tokens: tuple[int, ...] = ()
    """Tokens that they were not trained on, whose rows begin as `model.vocabulary` says. The shards and the weights
    decide which."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "new_tokens", tuple(self.new_tokens))  # JSON has lists


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What a training on sampled answers needs besides."""

    config: RlConfig = added_later(RlConfig())  # frozen
    prompts_folder: str
    """Of the stage `rl_prompts`."""

    prompts_fingerprint: str
    prompts_sha256: str = added_later("")
    """Of the questions to train on: measured again, on another device say, they may be others."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training: where its data lies, what to train, where to put it."""

    experiment_name: str
    fingerprint: str
    """Of the training; checkpoints with another one are not continued unasked."""

    shards_folder: str
    shards_fingerprint: str
    experiment_folder: str
    model: ModelConfig
    training: TrainingConfig
    max_length: int
    """T, tokens in a training sequence."""

    cadence: CadenceConfig
    hardware: HardwareConfig
    resume: str | None = None
    """The experiment file's `storage.checkpoint_to_resume`: a file name, `scratch`, or None."""

    request: str = ""
    """Names one demand to train anew although nothing changed, such as the id of a forced run; the same demand is
    carried out once, however often the job is started. Empty: no such demand."""

    start_from: StartWeights | None = None
    """The weights to begin with; None: random ones."""

    tokenizer: str | None = None
    """What the shards' manifest says of their tokenizer; None: GPT-2's."""

    packing: str = STREAM
    """The experiment file's `data.packing`."""

    rollouts: Rollouts | None = None
    """With `training.objective: rl`."""

    mirror: Order | None = None
    """What is to be in the experiment's mirror; None: it has none."""

    @property
    def folder(self) -> ExperimentFolder:
        return ExperimentFolder(root=Path(self.experiment_folder))

    @property
    def deciding_loss(self) -> str:
        """Name of the estimate by which the best checkpoint is chosen."""
        return deciding_loss(self.training.objective, self.packing)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        value = {**dataclasses.asdict(self), "hardware": identity_of(self.hardware)}
        for name in (START_FROM, "tokenizer", "rollouts", "mirror"):
            if value[name] is None:  # so that a version that does not know the key reads the job
                del value[name]
        if self.packing == STREAM:
            del value["packing"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingJob:
        """Return what `to_json` gave; raises KeyError, TypeError or ValueError for anything else.

        An unknown key asks for what this version cannot do, so none is left out.
        """
        kinds = {
            "model": ModelConfig,
            "training": TrainingConfig,
            "cadence": CadenceConfig,
            "hardware": HardwareConfig,
            "start_from": StartWeights,
            "rollouts": Rollouts,
        }
        parts: dict[str, Any] = {
            name: kind(**only_known_fields(kind, value[name], section=name))
            for name, kind in kinds.items()
            if name not in (START_FROM, "rollouts") or value.get(name) is not None
        }
        if value.get("mirror") is not None:
            parts["mirror"] = Order.from_json(value["mirror"])
        return cls(**{**only_known_fields(cls, value), **parts})

    def write(self, path: Path) -> None:
        """Write the job to `path`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """Return the job in the file `path`.

        Raises:
            UserError: the file is missing or is no job.
            NewerFileError: a newer version wrote it.
        """
        try:
            return read_state(path, cls.from_json)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; need a job file, such as <experiment folder>/job.json") from None
        except ValueError as error:
            raise UserError(f"{path} is no job file: {error}") from error


Effect = Literal["free", "warned", "refused"]
Settings = Mapping[str, Any]
"""Values by the whole path of their key in the experiment file."""

SHARDS = "token shards"
"""Stands for everything that decides the documents and their split: the fingerprint of the shards."""

START_FROM = "start_from"
"""Stands for the weights that the training began with: their sha256; null: random ones."""

OBJECTIVE = "training.objective"
PROMPTS = "rl_prompts"
"""Stands for the questions that sampled answers are to: their file's sha256."""

PACKING = "data.packing"


_FREE_SECTIONS = ("hardware", "evaluation")
_FREE = tuple(f"training.{key}" for key in ("micro_batch_size", "compile", "gradient_checkpointing", "deterministic"))
_SAMPLED_TOGETHER = "training.micro_batch_size"
_WARNED_MODEL = "model.dropout"
_REFUSED = ("training.optimizer", TOKENIZER)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key that has another value now."""

    key: str
    before: Any
    after: Any
    of_rollouts: bool = False
    """Whether the training samples its answers."""

    @property
    def effect(self) -> Effect:
        """What the change means for a training that goes on."""
        section = self.key.split(".")[0]
        if self.of_rollouts and self.key == _SAMPLED_TOGETHER:
            return "warned"  # what is sampled together is rounded together, and so may be another text
        if section in _FREE_SECTIONS or self.key in _FREE:
            return "free"
        refused = self.key in _REFUSED or (section == "model" and self.key != _WARNED_MODEL)
        return "refused" if refused else "warned"

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)}"


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """Return all that `job` was told, but for names and folders: plain values by key, as a checkpoint keeps them."""
    sections = {
        "model": dataclasses.asdict(job.model),
        "training": dataclasses.asdict(job.training),
        "evaluation": dataclasses.asdict(job.cadence),
        "hardware": {"device": job.hardware.device, "num_gpus": job.hardware.num_gpus},
        "rl": {} if job.rollouts is None else dataclasses.asdict(job.rollouts.config),
    }
    prompts = {} if job.rollouts is None else {PROMPTS: job.rollouts.prompts_sha256}
    start = None if job.start_from is None else job.start_from.weights_sha256
    tokenizer = {} if job.tokenizer is None else {TOKENIZER: job.tokenizer}
    return {
        **flat_settings(sections),
        "data.max_length": job.max_length,
        PACKING: job.packing,
        SHARDS: job.shards_fingerprint,
        START_FROM: start,
        **tokenizer,
        **prompts,
    }


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return plain values by the whole path of their key, those of configs inside `values` too."""
    flat: dict[str, Any] = {}
    for key, given in values.items():
        is_config = dataclasses.is_dataclass(given) and not isinstance(given, type)
        value = dataclasses.asdict(given) if is_config else given
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def find_changes(before: Settings, job: TrainingJob) -> list[Change]:
    """Return the keys whose value in `job` is another than in `before`; what `before` does not know is no change."""
    after = {TOKENIZER: None, **settings_of(job)}
    return [
        Change(key=key, before=before[key], after=value, of_rollouts=job.rollouts is not None)
        for key, value in after.items()
        if key in before and before[key] != value
    ]


def listed(changes: Iterable[Change], effect: Effect) -> str:
    """Return the changes of one effect in a line; empty if there are none."""
    return "; ".join(str(change) for change in changes if change.effect == effect)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text  # a fingerprint

"""What the trainer is asked to do, as one JSON file that any machine can read with the standard library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.errors import UserError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.config import CadenceConfig, HardwareConfig, TrainingConfig

SCRATCH = "scratch"


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

    @property
    def folder(self) -> ExperimentFolder:
        return ExperimentFolder(root=Path(self.experiment_folder))

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingJob:
        """Return what `to_json` gave; raises KeyError, TypeError or ConfigError for anything else."""
        parts = {
            "model": ModelConfig(**value["model"]),
            "training": TrainingConfig(**value["training"]),
            "cadence": CadenceConfig(**value["cadence"]),
            "hardware": HardwareConfig(**value["hardware"]),
        }
        return cls(**{**value, **parts})

    def write(self, path: Path) -> None:
        """Write the job to `path`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """Return the job in the file `path`.

        Raises:
            UserError: the file is missing or is no job.
        """
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; need a job file, such as <experiment folder>/job.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no job file: {error}") from error

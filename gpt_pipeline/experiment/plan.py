"""From an experiment and its token shards to the job that the trainer gets."""

from __future__ import annotations

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.identity import TRAINING_CODE_VERSION, training_identity
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.sizes import training_size
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.job import TrainingJob


def training_fingerprint(config: ExperimentConfig, shards_fingerprint: str) -> str:
    """Return the identity of the weights that `config` gives on these shards; `identity.py` says what is in it."""
    return fingerprint(
        "training",
        config=training_identity(config),
        upstream=[shards_fingerprint],
        code_version=TRAINING_CODE_VERSION,
    )


def training_job(experiment: Experiment, shards: StageResult) -> TrainingJob:
    """Return what the trainer has to do for `experiment` on `shards`.

    Raises:
        DataError: the shards do not fill one update.
        ConfigError: the base folder is not one of this machine.
    """
    config = experiment.config
    training_size(config, train_tokens=shards.manifest.facts["train_tokens"])
    return TrainingJob(
        experiment_name=experiment.display_name,
        fingerprint=training_fingerprint(config, shards.fingerprint),
        shards_folder=str(shards.folder),
        shards_fingerprint=shards.fingerprint,
        experiment_folder=str(experiment.folder.root),
        model=config.model,
        training=config.training,
        max_length=config.data.max_length,
        cadence=experiment.cadence,
        hardware=config.hardware,
        resume=config.storage.checkpoint_to_resume,
    )

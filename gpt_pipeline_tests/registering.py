"""Registering the model of a training: for tests, and for the processes that they start, without what tests import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.tracking.registered_model import Registered, register_model
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.projects import default_tracking_uri

NAME = "My GPT"
KILLED_AT = (
    ("log_artifacts", "before"),
    ("create_registered_model", "before"),
    ("create_model_version", "before"),
    ("create_model_version", "after"),
    ("set_registered_model_alias", "after"),
)


def write(checkpoint: Path, target: Path) -> str:
    """A model's files, as far as MLflow is concerned."""
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    (target / "of.txt").write_text(checkpoint.name)
    return str(read_json(checkpoint.with_suffix(".json"))["weights_sha256"])


def register(job: TrainingJob, store: Path, **changes: Any) -> Registered | None:
    settings = {"tracking_uri": default_tracking_uri(store), "experiment_name": NAME, "write_model": write, **changes}
    return register_model(job.folder, fingerprint=job.fingerprint, **settings)

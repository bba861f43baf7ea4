"""What was asked for when a training was last started, so that a job started again does not ask again.

Without it a job that says `scratch`, or names a checkpoint, would lose its work each time something restarts it.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from gpt_pipeline.storage.atomic import read_json, write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.finished import FinishedTraining, find_finished_training
from gpt_pipeline.training.job import TrainingJob

MARKER_NAME = "start.json"
PREVIOUS_NAME = "previous"
"""Folder, in an experiment's, of trainings that were moved aside."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """From where a training was asked to start."""

    fingerprint: str
    resume: str | None
    request: str

    @classmethod
    def of(cls, job: TrainingJob) -> Demand:
        """Return what `job` asks for."""
        return cls(fingerprint=job.fingerprint, resume=job.resume, request=job.request)

    @classmethod
    def read(cls, folder: ExperimentFolder) -> Demand | None:
        """Return what was last carried out in `folder`, if that is known."""
        try:
            value = read_json(folder.root / MARKER_NAME)
            return cls(fingerprint=value["fingerprint"], resume=value["resume"], request=value["request"])
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            return None  # not knowing, a demand is carried out (again), which loses nothing

    @property
    def is_for_something(self) -> bool:
        """Whether it asks for anything but to go on."""
        return self.resume is not None or bool(self.request)

    def write(self, folder: ExperimentFolder) -> None:
        """Note in `folder` that this was carried out."""
        write_json(folder.root / MARKER_NAME, {**dataclasses.asdict(self), "time": utc_now()})


def earlier_trainings(folder: ExperimentFolder) -> list[ExperimentFolder]:
    """Return the folders of the trainings that were moved aside, oldest first; each bears its own `start.json`."""
    parent = folder.root / PREVIOUS_NAME
    if not parent.is_dir():
        return []
    found = [path for path in parent.iterdir() if path.name.split("-")[0].isdigit()]
    return [ExperimentFolder(root=path) for path in sorted(found, key=lambda path: int(path.name.split("-")[0]))]


def find_finished_work(job: TrainingJob) -> FinishedTraining | None:
    """Return the finished training if `job` has nothing left to do; None if the trainer must be started.

    That is: training.json bears the job's fingerprint, the last checkpoint is there, and the job does not ask for a
    start from scratch or from a named checkpoint that is yet to be carried out.
    """
    demand = Demand.of(job)
    if demand.is_for_something and demand != Demand.read(job.folder):
        return None
    return find_finished_training(job.folder, job.fingerprint)

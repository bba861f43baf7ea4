"""What an experiment asks an engine for: which one, and the training as that engine takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gpt_pipeline.launchers.choose import make_launcher
from gpt_pipeline.launchers.protocol import Launcher, TrainingCommand
from gpt_pipeline.launchers.submission import Submission, log_of
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.job import TrainingJob


def launcher_of(hardware: HardwareConfig) -> Launcher | None:
    """Return the engine that the block names; None where the training stays here."""
    return make_launcher(hardware.launcher, gpus=hardware.gpus_per_node, slurm=hardware.slurm, ray=hardware.ray)


def launcher_of_note(hardware: HardwareConfig, note: Submission) -> Launcher:
    """Return the engine that the job of `note` was handed to, on the cluster that the note names."""
    slurm, ray = hardware.slurm, hardware.ray
    if note.where is not None:
        slurm = dataclasses.replace(slurm, ssh=note.where or None) if note.launcher == "slurm" else slurm
        ray = dataclasses.replace(ray, address=note.where) if note.launcher == "ray" else ray
    launcher = make_launcher(note.launcher, gpus=hardware.gpus_per_node, slurm=slurm, ray=ray)
    assert launcher is not None  # nothing is submitted to this machine itself
    return launcher


def training_command(job: TrainingJob, note: Submission, environment: Mapping[str, str]) -> TrainingCommand:
    """Return what the engine is to run for `job`, under the name that `note` has."""
    return TrainingCommand(
        name=note.name,
        job_file=job.folder.job,
        log_file=log_of(job.folder, note),
        nodes=job.hardware.nodes,
        processes=job.hardware.num_gpus,
        environment=environment,
    )

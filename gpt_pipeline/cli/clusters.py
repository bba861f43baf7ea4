"""The verb of trainings that run elsewhere: what is submitted, and how it is stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt_pipeline.cli.common import EXPERIMENT, say, tell

if TYPE_CHECKING:
    from gpt_pipeline.experiment.load import Experiment
    from gpt_pipeline.launchers.protocol import TrainingCommand
    from gpt_pipeline.launchers.submission import Submission
    from gpt_pipeline.training.job import TrainingJob


@click.command()
@EXPERIMENT
@click.option(
    "--render",
    "engine",
    type=click.Choice(["slurm", "kubernetes"]),
    help="Print what trains the experiment there, to be submitted by hand; its data has to be made already.",
)
@click.option("--stop", is_flag=True, help="Ask the experiment's job to save a checkpoint and end; wait for that.")
@click.option("--nodes", type=click.IntRange(min=1), help="For Kubernetes; default: as the file has them.")
@click.option("--image", default="gpt-pipeline", show_default=True, help="For Kubernetes: has gpt_pipeline installed.")
@click.option(
    "--claim",
    default="gpt-pipeline",
    show_default=True,
    help="For Kubernetes: the PersistentVolumeClaim whose volume is storage.base_folder.",
)
@click.pass_context
def launch(
    context: click.Context,
    experiment: Path,
    *,
    engine: str | None,
    stop: bool,
    nodes: int | None,
    image: str,
    claim: str,
) -> None:
    """Render or stop the job that trains an experiment on a cluster.

    `gpt-pipeline run` submits the job of an experiment with hardware.launcher, and follows it: docs/clusters.md.
    """
    from gpt_pipeline.experiment.load import load_experiment

    if stop == (engine is not None):
        raise click.UsageError("need one of --render and --stop", context)
    loaded = load_experiment(experiment)
    if stop:
        _stop(loaded)
        return
    job = _job(loaded)
    tell(
        _slurm(job)
        if engine == "slurm"
        else _kubernetes(job, nodes=nodes or job.hardware.nodes, image=image, claim=claim)
    )


def _job(experiment: Experiment) -> TrainingJob:
    """Return the training, written to the file that the rendered job reads."""
    from gpt_pipeline.data.formats import shards_name
    from gpt_pipeline.data.tokens.choose import known_shards
    from gpt_pipeline.experiment.launching import launcher_of_note
    from gpt_pipeline.experiment.training import training_job
    from gpt_pipeline.launchers.submission import require_no_job
    from gpt_pipeline.storage.manifest import not_finished
    from gpt_pipeline.training.heartbeat import trainer_state

    shards = known_shards(experiment.data, experiment.data_folder)
    if shards is None:
        raise not_finished(
            shards_name(experiment.data), experiment.data_folder, of=experiment.file.name, file=experiment.file
        )
    job = training_job(experiment, shards)
    if trainer_state(job.folder.root) != "running":  # which may be started again, by its engine, from this file
        require_no_job(job.folder, lambda note: launcher_of_note(job.hardware, note))  # nor one that waits to read it
        job.write(job.folder.job)
        say(f"Written: {job.folder.job}, which the job reads.")
    return job


def _command(job: TrainingJob, *, nodes: int) -> TrainingCommand:
    from gpt_pipeline.launchers.protocol import TrainingCommand
    from gpt_pipeline.launchers.submission import training_name

    name = training_name(job.folder, job.fingerprint)
    log = job.folder.jobs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for the output
    return TrainingCommand(
        name=name, job_file=job.folder.job, log_file=log, nodes=nodes, processes=job.hardware.num_gpus
    )


def _slurm(job: TrainingJob) -> str:
    from gpt_pipeline.launchers.slurm import Slurm

    hardware = job.hardware
    return Slurm(hardware.slurm, gpus=hardware.gpus_per_node).script(_command(job, nodes=hardware.slurm.nodes)).rstrip()


def _kubernetes(job: TrainingJob, *, nodes: int, image: str, claim: str) -> str:
    from gpt_pipeline.launchers.kubernetes import Cluster, as_yaml, manifests

    command = dataclasses.replace(_command(job, nodes=nodes), python="python")
    cluster = Cluster(image=image, claim=claim, base_folder=job.folder.base, gpus=job.hardware.gpus_per_node)
    return as_yaml(manifests(command, cluster)).rstrip()


def _stop(experiment: Experiment) -> None:
    from gpt_pipeline.experiment.launching import launcher_of_note
    from gpt_pipeline.launchers.protocol import ALIVE, END_SECONDS
    from gpt_pipeline.launchers.submission import await_end, look_up, read_submission

    note = read_submission(experiment.folder)
    if note is not None:
        launcher = launcher_of_note(experiment.config.hardware, note)
        note = look_up(experiment.folder, note, launcher)
        if note.id is not None and note.state in ALIVE:
            launcher.cancel(note.id, name=note.name)
            say(f"{note.in_words} was asked to end; it saves a checkpoint first.")
            _tell_end(experiment, await_end(experiment.folder, note, launcher, seconds=END_SECONDS))
            return
    say(f"No job of {experiment.file.name} is at work.")


def _tell_end(experiment: Experiment, note: Submission) -> None:
    """Tell how the job is that was asked to end, and which one somebody submitted meanwhile.

    Raises:
        UserError: it has not ended.
    """
    from gpt_pipeline.errors import UserError
    from gpt_pipeline.launchers.protocol import ALIVE, END_SECONDS
    from gpt_pipeline.launchers.submission import describe_state, read_submission

    if note.state in ALIVE:
        raise UserError(
            f"{note.in_words} was asked to end and is still {describe_state(note.state, note.reason)} after "
            f"{END_SECONDS:.0f} s: ask it again (gpt-pipeline launch --stop), or end it with the engine's own command; "
            "until an end is seen, it counts as at work"
        )
    how = "was asked to end, and how it is cannot be told" if note.state == "unknown" else "has ended"
    say(f"{note.in_words} {how}: {describe_state(note.state, note.reason)}.")
    newest = read_submission(experiment.folder)
    if newest is not None and newest.name != note.name:
        say(f"Meanwhile another was submitted, which was not asked to end: {newest.described}.")

"""`gpt-pipeline init`: a new experiment file."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.output import say
from gpt_pipeline.experiment.recipes import RECIPES
from gpt_pipeline.storage.names import as_typed


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT.yaml")
@click.option("--recipe", type=click.Choice(list(RECIPES)), help="Start from one of the project's experiments.")
@click.option("--samples", type=click.IntRange(min=1), help="English documents to train on.")
@click.option("--folder", help="For data and checkpoints; a relative one starts at the file's own folder.")
def init(experiment: Path, recipe: str | None, samples: int | None, folder: str | None) -> None:
    """Write a new, commented experiment file.

    It holds every key with its default and what it is. What you change nothing of, you may delete.
    """
    from gpt_pipeline.experiment.new import write_new_experiment

    written = write_new_experiment(experiment, recipe=recipe, num_samples=samples, base_folder=folder)
    click.echo(written.file)
    name = as_typed(experiment, Path.cwd())
    say(f"Next: gpt-pipeline plan {name}, then: gpt-pipeline run {name}")

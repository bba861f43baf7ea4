"""`gpt-pipeline validate`: check an experiment file."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT


@click.command()
@EXPERIMENT
def validate(experiment: Path) -> None:
    """Check an experiment file."""
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    folder = loaded.folder.root  # also checks that the base folder can be used on this machine
    config = loaded.config
    click.echo(f"{experiment} is valid.")
    click.echo(f"  experiment  {config.experiment_name}")
    click.echo(
        f"  data        {config.data.num_samples:,} samples of {loaded.data.local_dataset_path or config.data.source}"
    )
    click.echo(f"  folder      {folder}")

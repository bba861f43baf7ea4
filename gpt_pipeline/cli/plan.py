"""`gpt-pipeline plan`: what an experiment will take."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT, JSON
from gpt_pipeline.cli.output import FAILED, say, show


@click.command()
@EXPERIMENT
@JSON
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Make a few real updates on this device, two minutes at the most.",
)
def plan(experiment: Path, as_json: bool, measure: bool) -> None:
    """Say what an experiment will take.

    Tokens, steps, FLOPs, disk, memory, and the hours on this device, before anything is spent; what is done already
    and used again. Nothing is written. Exit code 1 if something would make the run fail.
    """
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.planning import show as form
    from gpt_pipeline.planning.plan import make_plan

    made = make_plan(load_experiment(experiment), measured=measure, say=say)
    show(made, form, as_json=as_json)
    if made.problems:
        sys.exit(FAILED)

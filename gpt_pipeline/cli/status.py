"""`gpt-pipeline status`: how far the experiments are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from gpt_pipeline.cli.arguments import JSON
from gpt_pipeline.cli.output import say, show


@click.command()
@click.argument(
    "experiments",
    type=click.Path(path_type=Path),
    nargs=-1,
    metavar="[EXPERIMENT.yaml ...]",
    callback=lambda *given: [path.absolute() for path in given[2]],
)
@JSON
def status(experiments: Sequence[Path], as_json: bool) -> None:
    """Say how far experiments are.

    What is made, where the training stands, what is to be evaluated, and the command that comes next. Without a file:
    all experiments of the project. Only folders are read.
    """
    from gpt_pipeline.progress import show as form
    from gpt_pipeline.progress.status import statuses
    from gpt_pipeline.project import Project

    found = statuses(experiments, experiments=Project.here().experiments)
    show(found, form, as_json=as_json)
    if not found:
        say("There is no experiment yet; `gpt-pipeline init` writes one.")

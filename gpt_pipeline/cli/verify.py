"""`gpt-pipeline verify`: read all finished data again."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT, JSON
from gpt_pipeline.cli.output import FAILED, print_json, say


@click.command()
@EXPERIMENT
@JSON
def verify(experiment: Path, as_json: bool) -> None:
    """Read all finished data again.

    Every byte of it is compared with its manifests; exit code 1 if some are not as they were made.
    """
    from gpt_pipeline.data.verification import verify_data
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    found = verify_data(loaded.data, loaded.data_folder, say=say)
    if as_json:
        print_json([{"stage": each.stage, "folder": each.folder, "problem": each.problem} for each in found])
    else:
        for each in found:
            click.echo(f"{each.stage:16} {each.problem or 'as it was made'}")
    if any(each.folder is not None and each.problem is not None for each in found):
        sys.exit(FAILED)

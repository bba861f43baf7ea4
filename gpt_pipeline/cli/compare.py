"""`gpt-pipeline compare`: experiments beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from gpt_pipeline.cli.arguments import JSON
from gpt_pipeline.cli.output import show
from gpt_pipeline.errors import UserError


@click.command()
@click.argument(
    "experiments",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="A.yaml B.yaml ...",
    callback=lambda *given: [path.absolute() for path in given[2]],
)
@JSON
def compare(experiments: Sequence[Path], as_json: bool) -> None:
    """Put experiments beside each other.

    Quality, cost, and the keys of their files that differ. They are ranked only if their losses are of the same
    held-out tokens.
    """
    from gpt_pipeline.comparison import table
    from gpt_pipeline.comparison.compare import compare_experiments
    from gpt_pipeline.experiment.load import load_experiment

    if twice := [path.name for path, count in Counter(experiments).items() if count > 1]:
        raise UserError(f"found {', '.join(twice)} twice, need different experiments; name each once")
    comparison = compare_experiments([load_experiment(path) for path in experiments])
    show(comparison, table, as_json=as_json)

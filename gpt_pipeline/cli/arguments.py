"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

EXPERIMENT = click.argument(
    "experiment",
    type=click.Path(path_type=Path),
    metavar="EXPERIMENT.yaml",
    callback=lambda *given: given[2].absolute(),
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure in full.")


def _checkpoints(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return for the shell's completion what --checkpoint can be: words, and the steps that are on disk."""
    from gpt_pipeline.checkpoints.manifest import list_checkpoints
    from gpt_pipeline.errors import UserError
    from gpt_pipeline.experiment.load import load_experiment

    names = ["best", "last"]
    try:
        folder = load_experiment(Path(context.params["experiment"])).folder.checkpoints
        names += [f"step_{checkpoint.step}" for checkpoint in list_checkpoints(folder)]
    except (KeyError, TypeError, UserError):
        pass  # no experiment yet on the line, or none that can be read: the command itself will say so
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


CHECKPOINT = click.option(
    "--checkpoint",
    default="best",
    show_default=True,
    metavar="best|last|step_N|FILE.pt",
    help="Which of the experiment's checkpoints.",
    shell_complete=_checkpoints,
)

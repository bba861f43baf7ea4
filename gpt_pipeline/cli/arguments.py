"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem, split_arg_string

EXPERIMENT = click.argument(
    "experiment",
    type=click.Path(path_type=Path),
    metavar="EXPERIMENT.yaml",
    callback=lambda *given: given[2].absolute(),
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure in full.")


def _checkpoints(_context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return for the shell's completion what --checkpoint can be: words, and the steps that are on disk."""
    from gpt_pipeline.checkpoints.manifest import list_checkpoints
    from gpt_pipeline.errors import UserError
    from gpt_pipeline.experiment.load import load_experiment

    names = ["best", "last"]
    for experiment in _experiments_on_the_line():
        try:
            folder = load_experiment(experiment).folder.checkpoints
        except UserError:
            continue  # the command itself will say what is wrong with it
        names += [f"step_{checkpoint.step}" for checkpoint in list_checkpoints(folder)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _experiments_on_the_line() -> list[Path]:
    """Return the experiment files among the words so far. click does not give them: the option is not complete yet."""
    from gpt_pipeline.experiment.document import SUFFIXES

    words = split_arg_string(os.environ.get("COMP_WORDS", ""))
    return [path for path in map(Path, words) if path.suffix in SUFFIXES and path.is_file()]


CHECKPOINT = click.option(
    "--checkpoint",
    default="best",
    show_default=True,
    metavar="best|last|step_N|FILE.pt",
    help="Which of the experiment's checkpoints.",
    shell_complete=_checkpoints,
)

"""What the verbs share: arguments, exit codes, and printing. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.shell_completion import CompletionItem, split_arg_string

from gpt_pipeline.row import instead_of_row
from gpt_pipeline.shown import on_terminal
from gpt_pipeline.storage.names import as_typed

if TYPE_CHECKING:
    from gpt_pipeline.experiment.load import Experiment
    from gpt_pipeline.project import Project
    from gpt_pipeline.sheet import Sheet

Result_contra = TypeVar("Result_contra", contravariant=True)
_Verb = TypeVar("_Verb", bound=Callable[..., Any])

FAILED = 1
MISUSE = 2
STOPPED = 130  # as a shell reports a command that Ctrl+C ended


def _absolute(_context: click.Context, _: click.Parameter, given: Path) -> Path:
    return given.absolute()


def _files(_context: click.Context, _: click.Parameter, given: Sequence[Path]) -> list[Path]:
    from gpt_pipeline.experiment.discover import files_named

    return [file.absolute() for path in given for file in files_named(path)]


EXPERIMENT = click.argument(
    "experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT.yaml", callback=_absolute
)


def experiments_argument(*, required: bool, metavar: str) -> Callable[[_Verb], _Verb]:
    """Return the decorator of an argument that takes any number of experiment files, folders and patterns of them."""
    return click.argument(
        "experiments",
        type=click.Path(path_type=Path),
        nargs=-1,
        required=required,
        metavar=metavar,
        callback=_files,
    )


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure in full.")


def _checkpoint_names(_context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return what the shell may complete --checkpoint to: words, and the steps that are on disk."""
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
    """Return the experiment files among the words so far, which click does not give while an option is incomplete."""
    from gpt_pipeline.experiment.document import SUFFIXES

    words = split_arg_string(os.environ.get("COMP_WORDS", ""))
    return [path for path in map(Path, words) if path.suffix in SUFFIXES and path.is_file()]


CHECKPOINT = click.option(
    "--checkpoint",
    default="best",
    show_default=True,
    metavar="best|last|step_N|FILE.pt",
    help="Which of the experiment's checkpoints.",
    shell_complete=_checkpoint_names,
)


WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["raw", "average"]),
    default="raw",
    show_default=True,
    help="The weights themselves, or their mean (training.average_weights).",
)


ALLOW_HOST = click.option(
    "--allow-host",
    "names",
    multiple=True,
    envvar="GPT_PIPELINE_ALLOWED_HOSTS",
    show_envvar=True,
    metavar="NAME",
    help="A name under which browsers reach it, such as a proxy's; may be given more than once.",
)


def say(text: str) -> None:
    """Print a line for the person who watches."""
    click.echo(instead_of_row(sys.stderr, on_terminal(text)), err=True)


def tell(text: object) -> None:
    """Print a line of the result."""
    click.echo(on_terminal(str(text)))


def print_json(value: object) -> None:
    """Print the result of a `--json` command."""
    import json

    tell(json.dumps(value, indent=2, ensure_ascii=False, default=str))  # str: of paths


class Shown(Protocol[Result_contra]):
    """A module that shows one kind of result in two ways."""

    def as_json(self, result: Result_contra, /) -> object:
        """Return what `--json` prints."""

    def sheets(self, result: Result_contra, /) -> Sequence[Sheet]:
        """Return what is printed otherwise."""


def show(result: Result_contra, form: Shown[Result_contra], *, as_json: bool) -> None:
    """Print a result: as JSON where it is asked for, else as lines, in colour on a terminal."""
    if as_json:
        print_json(form.as_json(result))
        return
    from rich.console import Console

    from gpt_pipeline.sheet import print_sheets

    print_sheets(form.sheets(result), Console(highlight=False))


def tell_outcome(project: Project, experiment: Experiment, *, here: Path) -> None:
    """Print what the experiment came to, and, relative to `here`, where the web pages are or how to open them."""
    from rich.console import Console

    from gpt_pipeline.progress.at_work import pages_addresses
    from gpt_pipeline.progress.outcome import outcome_sheet
    from gpt_pipeline.sheet import print_sheets

    program = as_typed(Path(sys.executable).parent / "gpt-pipeline", here)
    pages = [program, "ui"]
    if project.experiments != here / "experiments":
        pages.append(as_typed(project.experiments, here))
    sheet = outcome_sheet(
        experiment,
        pages=next(iter(pages_addresses(project)), " ".join(pages)),
        talk=f"{program} generate {as_typed(experiment.file, here)} --interactive",
        another=f"{program} init experiments/my-idea.yaml",
    )
    print_sheets([sheet], Console(highlight=False))

"""What the verbs print: results on the standard output, all else on the standard error. And their exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from gpt_pipeline.storage.names import as_typed

if TYPE_CHECKING:
    from rich.console import Console

    from gpt_pipeline.project import Project

Result_contra = TypeVar("Result_contra", contravariant=True)

FAILED = 1
MISUSE = 2
STOPPED = 130  # as a shell reports a command that Ctrl+C ended


def say(text: str) -> None:
    """Print a line for the person who watches."""
    click.echo(text, err=True)


def complain(text: str) -> None:
    """Print what went wrong."""
    say(f"gpt-pipeline: {text}")


def print_json(value: object) -> None:
    """Print the result of a `--json` command."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))  # str: of paths


class Shown(Protocol[Result_contra]):
    """A module that shows one kind of result in three ways."""

    def as_json(self, result: Result_contra, /) -> object:
        """Return what `--json` prints."""

    def plain_text(self, result: Result_contra, /) -> str:
        """Return lines without colours."""

    def print_rich(self, result: Result_contra, console: Console, /) -> None:
        """Print it in colour."""


def show(result: Result_contra, form: Shown[Result_contra], *, as_json: bool) -> None:
    """Print a result: as JSON where it is asked for, in colour on a terminal, as plain lines elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if as_json:
        print_json(form.as_json(result))
    elif console.is_terminal:
        form.print_rich(result, console)
    else:
        click.echo(form.plain_text(result), nl=False)


def where_to_look(project: Project, report: Path, *, here: Path) -> None:
    """Say to who works in the folder `here` where the report is, and how to open the pages of Dagster and MLflow."""
    command = [as_typed(Path(sys.executable).parent / "gpt-pipeline", here), "ui"]
    if project.experiments != here / "experiments":
        command.append(as_typed(project.experiments, here))
    say(f"\nReport:     {report}\nWeb pages:  {' '.join(command)}")

"""What the verbs print: results on the standard output, all else on the standard error. And their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from gpt_pipeline.storage.names import as_typed

if TYPE_CHECKING:
    from gpt_pipeline.project import Project
    from gpt_pipeline.sheet import Sheet

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


def where_to_look(project: Project, report: Path, *, here: Path) -> None:
    """Say to who works in the folder `here` where the report is, and how to open the pages of Dagster and MLflow."""
    command = [as_typed(Path(sys.executable).parent / "gpt-pipeline", here), "ui"]
    if project.experiments != here / "experiments":
        command.append(as_typed(project.experiments, here))
    say(f"\nReport:     {report}\nWeb pages:  {' '.join(command)}")

"""What the verbs print: results on the standard output, all else on the standard error. And their exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gpt_pipeline.orchestration.project import Project

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


def where_to_look(project: Project, report: Path) -> None:
    """Say where the report is and how to open the pages of Dagster and MLflow."""
    command = [_shown(Path(sys.executable).parent / "gpt-pipeline"), "ui"]
    if project.experiments != Path.cwd() / "experiments":
        command.append(f'"{project.experiments}"')
    say(f"\nReport:     {report}\nWeb pages:  {' '.join(command)}")


def _shown(path: Path) -> str:
    """Return the path relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

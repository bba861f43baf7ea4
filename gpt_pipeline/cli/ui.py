"""`gpt-pipeline ui`: the web pages of Dagster and MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt_pipeline.cli.output import say

if TYPE_CHECKING:
    from gpt_pipeline.orchestration.pages import Page

_PORT = click.IntRange(1, 65_535)
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.argument(
    "experiments", type=click.Path(path_type=Path, file_okay=False, exists=True), required=False, metavar="[FOLDER]"
)
@click.option("--port", type=_PORT, help="Of Dagster's page; default: 3000, or the next that is free.")
@click.option("--mlflow-port", type=_PORT, help="Of MLflow's page; default: 5000, or the next that is free.")
@click.option("--open", "in_browser", is_flag=True, help="Show Dagster's page in the browser.")
def ui(experiments: Path | None, port: int | None, mlflow_port: int | None, in_browser: bool) -> None:
    """Open the web pages of Dagster and MLflow.

    FOLDER holds the experiment files; default: experiments/. Both pages are for this machine only (127.0.0.1).
    Ctrl+C stops both; a training that runs saves a checkpoint first.
    """
    from gpt_pipeline.orchestration.pages import serve_pages
    from gpt_pipeline.project import Project

    project = Project.of_experiments(experiments.absolute()) if experiments else Project.here()

    def opened(pages: Sequence[Page]) -> None:
        for page in pages:
            click.echo(f"{page.name:8} {page.address}")
        say(f"Logs: {pages[0].log.parent}. Ctrl+C stops both.")
        if in_browser:
            click.launch(pages[0].address)

    say(f"Starting the pages of {project.root} ...")
    serve_pages(
        project,
        dagster_port=port,
        mlflow_port=mlflow_port,
        opened=opened,
        stopping=lambda: say("Stopping ..."),
    )

"""The verbs of this machine: the web pages, its check, completion in the shell."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from gpt_pipeline.cli.common import ALLOW_HOST, FAILED, JSON, say, show, tell

if TYPE_CHECKING:
    from gpt_pipeline.orchestration.pages import Pages
    from gpt_pipeline.project import Project

_PORT = click.IntRange(1, 65_535)
_COMPLETION_VARIABLE = "_GPT_PIPELINE_COMPLETE"  # click's name for a program of this name


@click.command()
@click.argument(
    "experiments", type=click.Path(path_type=Path, file_okay=False, exists=True), required=False, metavar="[FOLDER]"
)
@click.option("--port", type=_PORT, help="Of Dagster's page; default: 3000, or the next that is free.")
@click.option("--mlflow-port", type=_PORT, help="Of MLflow's page; default: 5000, or the next that is free.")
@ALLOW_HOST
@click.option("--open", "in_browser", is_flag=True, help="Show the start page in the browser.")
def ui(
    experiments: Path | None,
    port: int | None,
    mlflow_port: int | None,
    names: Sequence[str],
    in_browser: bool,
) -> None:
    """Open the web pages: a start page with all experiments, Dagster and MLflow.

    FOLDER holds the experiment files; default: experiments/. The pages are for this machine only (127.0.0.1) and
    refuse what other websites make a browser send. Ctrl+C stops them; a running training saves a checkpoint first.
    """
    from gpt_pipeline.orchestration.pages import serve_pages
    from gpt_pipeline.project import Project

    project = Project.of_experiments(experiments.absolute()) if experiments else Project.here()

    def opened(pages: Pages) -> None:
        click.echo(pages.start)
        say(f"It leads to Dagster's pages ({pages.dagster.place}) and MLflow's ({pages.mlflow.place}).")
        say(f"Logs: {pages.dagster.log.parent}. Ctrl+C stops everything.")
        if in_browser:
            click.launch(pages.start)

    say(f"Starting the pages of {project.root} ...")
    serve_pages(
        project,
        dagster_port=port,
        mlflow_port=mlflow_port,
        names=names,
        opened=opened,
        stopping=lambda: say("Stopping ..."),
    )


@click.command()
@click.option("--test", is_flag=True, help="Send a test message to each address; exit code 1 if one does not get it.")
def notify(test: bool) -> None:
    """Show where the project's notifications go, or try it.

    Runs tell when they failed, were stopped, or finished. Addresses are apprise's, in notify.yaml beside dagster.yaml,
    or in GPT_PIPELINE_NOTIFY; of an address only its kind is shown.
    """
    from gpt_pipeline.notify.addresses import find_addresses
    from gpt_pipeline.notify.message import Message
    from gpt_pipeline.notify.send import send
    from gpt_pipeline.project import NOTIFY_CONFIG, Project

    project = Project.here()
    found = find_addresses(project)
    if found is None:
        tell(f"No addresses: write {project.root / NOTIFY_CONFIG} with `addresses:` and a list of them.")
        sys.exit(FAILED if test else 0)
    tell(f"Notifications go to {found.in_words}.")
    if not test:
        return
    message = Message(
        title="gpt-pipeline: a test", body=f"Runs of {project.root} tell here how they ended.", ending="finished"
    )
    problems = send(found, message)
    for problem in problems:
        say(f"not notified: {problem}")
    if problems:
        sys.exit(FAILED)
    tell("Each has taken a test message.")


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path), required=False, metavar="[EXPERIMENT.yaml]")
@JSON
@click.option("--offline", is_flag=True, help="Do not contact the hub.")
def doctor(experiment: Path | None, as_json: bool, offline: bool) -> None:
    """Check whether this machine can run the pipeline.

    Python and libraries, torch and GPU, disk, memory, hub, ports, the stores of Dagster and MLflow; each with a remedy
    where something is wrong. Without a file: for all experiments of the project. Exit code 1 if there is a problem.
    """
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.project import Project

    loaded = None if experiment is None else load_alone(experiment.absolute())
    say("Checking this machine ...")
    from gpt_pipeline.doctor import show as form
    from gpt_pipeline.doctor.examination import examine  # torch

    project = Project.here() if loaded is None else Project.of_experiments(loaded.file.parent)
    findings = examine(project, loaded, offline=offline, count_runs=_count_runs)
    show(findings, form, as_json=as_json)
    if not all(finding.passed for finding in findings):
        sys.exit(FAILED)


def _count_runs(project: Project) -> int:
    from gpt_pipeline.orchestration.history import count_runs  # takes seconds, only needed where there is a history

    return count_runs(project)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands.

    \b
    bash:  echo 'eval "$(gpt-pipeline completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(gpt-pipeline completion zsh)"' >> ~/.zshrc
    fish:  gpt-pipeline completion fish > ~/.config/fish/completions/gpt-pipeline.fish
    """
    source = get_completion_class(shell)
    assert source is not None
    click.echo(source(context.find_root().command, {}, "gpt-pipeline", _COMPLETION_VARIABLE).source())

"""`gpt-pipeline doctor`: whether this machine can do the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt_pipeline.cli.arguments import JSON
from gpt_pipeline.cli.output import FAILED, show

if TYPE_CHECKING:
    from gpt_pipeline.project import Project


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path), required=False, metavar="[EXPERIMENT.yaml]")
@JSON
@click.option("--offline", is_flag=True, help="Do not ask the hub.")
def doctor(experiment: Path | None, as_json: bool, offline: bool) -> None:
    """Look whether this machine can do the work.

    Python and libraries, torch and GPU, disk, memory, hub, ports, the stores of Dagster and MLflow; each with a remedy
    where something is wrong. Without a file: for all experiments of the project. Exit code 1 if there is a problem.
    """
    from gpt_pipeline.doctor import show as form
    from gpt_pipeline.doctor.examination import examine
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.project import Project

    loaded = None if experiment is None else load_experiment(experiment.absolute())
    project = Project.here() if loaded is None else Project.of_experiments(loaded.file.parent)
    findings = examine(project, loaded, offline=offline, count_runs=_count_runs)
    show(findings, form, as_json=as_json)
    if not all(finding.passed for finding in findings):
        sys.exit(FAILED)


def _count_runs(project: Project) -> int:
    from gpt_pipeline.orchestration.history import count_runs  # seconds, and not needed where there is no history

    return count_runs(project)

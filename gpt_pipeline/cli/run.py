"""`gpt-pipeline run`: everything for one experiment."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT
from gpt_pipeline.cli.output import say, where_to_look


@click.command()
@EXPERIMENT
@click.option("--force", is_flag=True, help="Train again from the first step; the old training is moved aside.")
def run(experiment: Path, force: bool) -> None:
    """Do everything: data, training, evaluations, report.

    What is finished already is not done again. Ctrl+C saves a checkpoint; the same command continues from it.
    """
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.orchestration.driver import Session, run_experiment
    from gpt_pipeline.project import Project

    here = Path.cwd()  # the session works in the project's folder
    loaded = load_experiment(experiment)
    project = Project.of_experiments(loaded.file.parent)
    with Session.open(project, loaded) as session:
        worked = run_experiment(session, force=force, say=say)
    say("Everything is done." if worked else "Nothing to do: everything is finished, from the raw files to the report.")
    where_to_look(project, loaded.folder.report, here=here)

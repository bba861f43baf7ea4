"""`gpt-pipeline evaluate`: the evaluations that are missing."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT
from gpt_pipeline.cli.output import say, where_to_look
from gpt_pipeline.storage.names import as_typed


@click.command()
@EXPERIMENT
@click.option("--questions", type=click.IntRange(min=0), help="Questions to ask; default: as the file says.")
@click.option("--force", is_flag=True, help="Evaluate again what has been evaluated.")
def evaluate(experiment: Path, questions: int | None, force: bool) -> None:
    """Evaluate what has not been evaluated.

    Then the report is written anew.
    """
    from gpt_pipeline.checkpoints.manifest import list_checkpoints
    from gpt_pipeline.errors import UserError
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.orchestration.driver import Session, evaluate_experiment
    from gpt_pipeline.project import Project

    here = Path.cwd()  # the session works in the project's folder
    loaded = load_experiment(experiment)
    project = Project.of_experiments(loaded.file.parent)
    with Session.open(project, loaded) as session:
        count = evaluate_experiment(session, questions=questions, force=force, say=say)
    if not count and not list_checkpoints(loaded.folder.checkpoints):
        raise UserError(f"there is no checkpoint yet; train first: gpt-pipeline run {as_typed(experiment, here)}")
    say(f"{count} evaluated." if count else "Nothing to do: every checkpoint is evaluated.")
    where_to_look(project, loaded.folder.report, here=here)

"""`gpt-pipeline import`: a folder of transformers as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import EXPERIMENT
from gpt_pipeline.cli.output import say
from gpt_pipeline.storage.names import as_typed


@click.command(name="import")
@click.argument("folder", type=click.Path(path_type=Path), callback=lambda *given: given[2].absolute())
@EXPERIMENT
def import_(folder: Path, experiment: Path) -> None:
    """Make a model of transformers a checkpoint.

    FOLDER is what save_pretrained, or our export, wrote. Its shape must be that of the experiment.
    """
    from gpt_pipeline.exchange.take_in import import_folder
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    taken = import_folder(folder, loaded)
    say("Imported." if taken.new else "Nothing to do: the experiment has this model already.")
    say(
        f"To start a training from it, set storage.checkpoint_to_resume: {taken.checkpoint.path.name} in "
        f"{experiment.name} and run: gpt-pipeline run {as_typed(experiment, Path.cwd())}"
    )
    click.echo(taken.checkpoint.path)

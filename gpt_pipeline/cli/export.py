"""`gpt-pipeline export`: a checkpoint as a folder for transformers."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import CHECKPOINT, EXPERIMENT
from gpt_pipeline.cli.output import say


@click.command()
@EXPERIMENT
@CHECKPOINT
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, help="A new folder.")
def export(experiment: Path, checkpoint: str, target: Path) -> None:
    """Write a checkpoint as a folder for transformers.

    Weights, tokenizer and model card, as Hugging Face's library loads them. It replaces an earlier
    export, and nothing else.
    """
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.exchange.export import export_checkpoint
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint)
    exported = export_checkpoint(loaded, chosen.path, target)
    say(f"{chosen.path.name}, step {exported.checkpoint.step:,}: {exported.parameters:,} parameters")
    click.echo(exported.folder)

"""`gpt-pipeline generate`: let a checkpoint answer."""

from __future__ import annotations

from pathlib import Path

import click

from gpt_pipeline.cli.arguments import CHECKPOINT, EXPERIMENT
from gpt_pipeline.cli.output import STOPPED, say


@click.command()
@EXPERIMENT
@CHECKPOINT
@click.option("--prompt", help="The question; with --raw, the beginning of the text.")
@click.option("--interactive", is_flag=True, help="Answer one line after the other, until Ctrl+D.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, not as a question.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest.")
@click.option("--top-k", type=click.IntRange(min=1), help="Draw among so many of the likeliest tokens.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: as the experiment file says.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: as the experiment file says.")
def generate(
    *,
    experiment: Path,
    checkpoint: str,
    prompt: str | None,
    interactive: bool,
    raw: bool,
    temperature: float,
    top_k: int | None,
    seed: int,
    max_new_tokens: int | None,
    device: str | None,
) -> int | None:
    """Let a checkpoint answer a question.

    It is seen as it writes: its reasoning, then its answer. The text goes to the standard output, all else beside it.
    """
    if (prompt is None) != interactive:
        raise click.UsageError("give either --prompt or --interactive", click.get_current_context())
    if top_k is not None and temperature == 0:
        raise click.UsageError("--top-k needs a --temperature above 0", click.get_current_context())
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.writing import Manner, Writer, converse, picker, write_once

    loaded = load_experiment(experiment)
    config = loaded.config
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint)
    writer = Writer.of_checkpoint(
        chosen.path, device=device or config.hardware.device, trained_length=config.data.max_length
    )
    manner = Manner(
        pick=picker(temperature=temperature, top_k=top_k, seed=seed),
        max_new_tokens=max_new_tokens or config.evaluation.max_new_tokens,
        raw=raw,
    )
    say(f"{writer.checkpoint.path.name}, step {writer.checkpoint.step:,}")
    try:
        if prompt is None:
            converse(writer, manner, say=say)
        else:
            write_once(writer, manner, prompt, say=say)
    except KeyboardInterrupt:
        click.echo()
        return STOPPED
    return None

"""`gpt-pipeline completion`: what makes a shell complete verbs, options, files and checkpoints."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_GPT_PIPELINE_COMPLETE"  # click's name for a program of this name


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete.

    \b
    bash:  echo 'eval "$(gpt-pipeline completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(gpt-pipeline completion zsh)"' >> ~/.zshrc
    fish:  gpt-pipeline completion fish > ~/.config/fish/completions/gpt-pipeline.fish
    """
    source = get_completion_class(shell)
    assert source is not None
    click.echo(source(context.find_root().command, {}, "gpt-pipeline", _VARIABLE).source())

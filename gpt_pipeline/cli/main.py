"""The command with all its verbs; what an error is to the shell."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from gpt_pipeline import __version__
from gpt_pipeline.cli.clusters import launch
from gpt_pipeline.cli.common import FAILED, MISUSE, STOPPED, say
from gpt_pipeline.cli.experiments import (
    compare,
    evaluate,
    init,
    mirror,
    plan,
    preview,
    remove,
    run,
    status,
    validate,
    verify,
)
from gpt_pipeline.cli.machine import completion, doctor, notify, ui
from gpt_pipeline.cli.models import benchmark, export, generate, import_, serve
from gpt_pipeline.errors import ConfigError, StoppedError, UserError
from gpt_pipeline.row import show_each_warning_once, speak_utf8


class _InOrder(click.Group):
    """Lists its verbs in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gpt-pipeline")
def command() -> None:
    """Pre-train small GPTs on SYNTH or your own text: from one YAML file to trained, evaluated, compared checkpoints.

    Begin with `init experiments/my-idea.yaml`, then `plan` and `run` that file; `status` says what comes next.
    Everything runs through the project's Dagster definitions and history, so the web pages that `ui` opens show it.
    """


for verb in (
    *(init, validate, preview, plan, run, status, ui),
    *(evaluate, compare, generate, serve, export, import_, benchmark),
    *(verify, mirror, remove, launch, doctor, notify, completion),
):
    command.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 for a failure, 2 for misuse or a bad file, 130 when stopped."""
    speak_utf8()
    show_each_warning_once()
    sys.exit(_run(arguments))


def _complain(text: str) -> None:
    say(f"gpt-pipeline: {text}")


def _run(arguments: Sequence[str] | None) -> int:
    from gpt_pipeline.experiment.problems import ExperimentFileError

    try:
        code = command.main(args=arguments, prog_name="gpt-pipeline", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = MISUSE
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        _complain(error.format_message().rstrip(".") + hint)
        code = MISUSE
    except (ConfigError, ExperimentFileError) as error:
        _complain(str(error))
        code = MISUSE
    except UserError as error:
        _complain(str(error))
        code = FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has seen enough
        code = FAILED
    except OSError as error:
        remedy = "; free some space on the disk, and run again" if error.errno == errno.ENOSPC else ""
        if error.filename is None and not remedy:
            raise
        _complain(f"{error.filename or 'a file'}: {error.strerror}{remedy}")
        code = FAILED
    except StoppedError as stopped:
        say(str(stopped) or "Stopped; what was done is saved. The same command continues from here.")
        code = STOPPED
    except (click.Abort, KeyboardInterrupt):
        say("Stopped.")
        code = STOPPED
    return int(code)

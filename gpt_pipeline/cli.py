"""The `gpt-pipeline` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt_pipeline import __version__
from gpt_pipeline.errors import ConfigError, StoppedError, UserError

if TYPE_CHECKING:
    from gpt_pipeline.orchestration.project import Project

_MISUSE = 2
_FAILED = 1
_STOPPED = 130  # as a shell reports a command that Ctrl+C ended

_EXPERIMENT = click.argument(
    "experiment",
    type=click.Path(path_type=Path),
    metavar="EXPERIMENT.yaml",
    callback=lambda *given: given[2].absolute(),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gpt-pipeline")
def command() -> None:
    """Pre-train GPT-2 from scratch on SYNTH: one YAML file to trained, evaluated, compared checkpoints.

    Everything runs through the project's Dagster definitions and history, so `dagster dev` shows it.
    """


@command.command()
@_EXPERIMENT
def validate(experiment: Path) -> None:
    """Check an experiment file and say what it asks for."""
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    folder = loaded.folder.root  # also checks that the base folder can be used on this machine
    config = loaded.config
    click.echo(f"{experiment} is valid.")
    click.echo(f"  experiment  {config.experiment_name}")
    click.echo(
        f"  data        {config.data.num_samples:,} samples of {loaded.data.local_dataset_path or config.data.source}"
    )
    click.echo(f"  folder      {folder}")


@command.command()
@_EXPERIMENT
@click.option("--force", is_flag=True, help="Train again from the first step; the old training is moved aside.")
def run(experiment: Path, force: bool) -> None:
    """Materialize everything for one experiment: data, training, evaluations, report.

    What is finished already is not done again. Ctrl+C saves a checkpoint; the same command continues from it.
    """
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.orchestration.driver import Session, run_experiment
    from gpt_pipeline.orchestration.project import Project

    loaded = load_experiment(experiment)
    project = Project.of_experiments(loaded.file.parent)
    with Session.open(project, loaded) as session:
        worked = run_experiment(session, force=force, say=_say)
    _say(
        "Everything is done." if worked else "Nothing to do: everything is finished, from the raw files to the report."
    )
    _where_to_look(project, loaded.folder.report)


@command.command()
@_EXPERIMENT
@click.option("--questions", type=click.IntRange(min=0), help="Questions to ask; default: as the file says.")
@click.option("--force", is_flag=True, help="Evaluate again what has been evaluated.")
def evaluate(experiment: Path, questions: int | None, force: bool) -> None:
    """Evaluate an experiment's checkpoints that have no evaluation yet, and write the report anew."""
    from gpt_pipeline.experiment.load import load_experiment
    from gpt_pipeline.orchestration.driver import Session, evaluate_experiment
    from gpt_pipeline.orchestration.project import Project

    loaded = load_experiment(experiment)
    project = Project.of_experiments(loaded.file.parent)
    with Session.open(project, loaded) as session:
        count = evaluate_experiment(session, questions=questions, force=force, say=_say)
    _say(f"{count} evaluated." if count else "Nothing to do: every checkpoint is evaluated.")
    _where_to_look(project, loaded.folder.report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 for a failure, 2 for misuse or a bad file, 130 when stopped."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    from gpt_pipeline.experiment.problems import ExperimentFileError

    try:
        command.main(args=arguments, prog_name="gpt-pipeline", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return _MISUSE
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        _complain(error.format_message().rstrip(".") + hint)
        return _MISUSE
    except (ConfigError, ExperimentFileError) as error:
        _complain(str(error))
        return _MISUSE
    except UserError as error:
        _complain(str(error))
        return _FAILED
    except (click.Abort, KeyboardInterrupt, StoppedError):
        _say("Stopped; what was done is saved. The same command continues from here.")
        return _STOPPED
    return 0


def _say(text: str) -> None:
    click.echo(text, err=True)


def _where_to_look(project: Project, report: Path) -> None:
    """Say where the report is and how to open the pages of Dagster and MLflow."""
    bin_folder = Path(sys.executable).parent
    _say(f"""
Report:      {report}
Dagster UI:  {_shown(bin_folder / "dagster")} dev   (in {project.root})
MLflow UI:   {_shown(bin_folder / "mlflow")} ui --backend-store-uri {project.tracking_uri} --workers 1""")


def _shown(path: Path) -> str:
    """Return the path relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _complain(text: str) -> None:
    click.echo(f"gpt-pipeline: {text}", err=True)

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
def verify(experiment: Path) -> None:
    """Read every byte of an experiment's finished data and compare it with its manifests."""
    from gpt_pipeline.data.verification import verify_data
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    found = verify_data(loaded.data, loaded.data_folder, say=_say)
    for each in found:
        click.echo(f"{each.stage:16} {each.problem or 'as it was made'}")
    if any(each.folder is not None and each.problem is not None for each in found):
        sys.exit(_FAILED)


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


_CHECKPOINT = click.option(
    "--checkpoint",
    default="best",
    show_default=True,
    metavar="best|last|step_N|FILE.pt",
    help="Which of the experiment's checkpoints.",
)


@command.command()
@_EXPERIMENT
@_CHECKPOINT
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
    from gpt_pipeline.writing.console import converse, write_once
    from gpt_pipeline.writing.sampling import picker
    from gpt_pipeline.writing.stream import Manner, Writer

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
    _say(f"{writer.checkpoint.path.name}, step {writer.checkpoint.step:,}")
    try:
        if prompt is None:
            converse(writer, manner, say=_say)
        else:
            write_once(writer, manner, prompt, say=_say)
    except KeyboardInterrupt:
        click.echo()
        return _STOPPED
    return None


@command.command()
@_EXPERIMENT
@_CHECKPOINT
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
    _say(f"{chosen.path.name}, step {exported.checkpoint.step:,}: {exported.parameters:,} parameters")
    click.echo(exported.folder)


@command.command(name="import")
@click.argument("folder", type=click.Path(path_type=Path), callback=lambda *given: given[2].absolute())
@_EXPERIMENT
def import_(folder: Path, experiment: Path) -> None:
    """Make a GPT-2 of transformers a checkpoint to start from.

    FOLDER is what save_pretrained, or our export, wrote. Its shape must be that of the experiment.
    """
    from gpt_pipeline.exchange.take_in import import_folder
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    taken = import_folder(folder, loaded)
    _say("Imported." if taken.new else "Nothing to do: the experiment has this model already.")
    _say(
        f"To start a training from it, set storage.checkpoint_to_resume: {taken.checkpoint.path.name} in "
        f"{experiment.name} and run: gpt-pipeline run"
    )
    click.echo(taken.checkpoint.path)


@command.command()
@_EXPERIMENT
@_CHECKPOINT
@click.option("--tasks", required=True, metavar="A,B", help="As lm-evaluation-harness names them, such as hellaswag.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents of each task; default: all.")
@click.option("--task-folder", type=click.Path(path_type=Path, exists=True), help="With task files of your own.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def benchmark(
    *, experiment: Path, checkpoint: str, tasks: str, limit: int | None, task_folder: Path | None, device: str
) -> None:
    """Score a checkpoint on public benchmarks. Needs the extra: pip install 'gpt-pipeline[benchmarks]'."""
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.exchange.benchmark import BenchmarkRequest, benchmark_checkpoint
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    request = BenchmarkRequest(tasks=names, limit=limit, task_folder=task_folder, device=device)
    result = benchmark_checkpoint(loaded, chosen.path, request)
    _say(f"{chosen.path.name}, step {result.step:,}" + (", measured before" if result.reused else ""))
    for score in result.scores:
        spread = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        count = result.samples.get(score.task)
        click.echo(f"{score.task}  {score.metric}  {score.value:.4f}{spread}" + (f"  of {count:,}" if count else ""))
    _say(str(result.path))


@command.command()
@click.argument(
    "experiments",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="A.yaml B.yaml ...",
    callback=lambda *given: [path.absolute() for path in given[2]],
)
@click.option("--json", "as_values", is_flag=True, help="Print JSON, with every figure in full.")
def compare(experiments: Sequence[Path], as_values: bool) -> None:
    """Put experiments beside each other.

    Quality, cost, and the keys of their files that differ. They are ranked only if their losses are of the same
    held-out tokens.
    """
    import json

    from rich.console import Console

    from gpt_pipeline.comparison import table
    from gpt_pipeline.comparison.compare import compare_experiments
    from gpt_pipeline.experiment.load import load_experiment

    comparison = compare_experiments([load_experiment(path) for path in experiments])
    console = Console()
    if as_values:
        click.echo(json.dumps(table.as_json(comparison), indent=2, ensure_ascii=False))
    elif console.is_terminal:
        table.print_rich(comparison, console)
    else:
        click.echo(table.plain_text(comparison), nl=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 for a failure, 2 for misuse or a bad file, 130 when stopped."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    from gpt_pipeline.experiment.problems import ExperimentFileError

    try:
        return command.main(args=arguments, prog_name="gpt-pipeline", standalone_mode=False) or 0
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

"""`gpt-pipeline benchmark`: public benchmarks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gpt_pipeline.cli.arguments import CHECKPOINT, EXPERIMENT, JSON
from gpt_pipeline.cli.output import print_json, say


@click.command()
@EXPERIMENT
@CHECKPOINT
@click.option("--tasks", required=True, metavar="A,B", help="As lm-evaluation-harness names them, such as hellaswag.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents of each task; default: all.")
@click.option("--task-folder", type=click.Path(path_type=Path, exists=True), help="With task files of your own.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@JSON
def benchmark(
    *,
    experiment: Path,
    checkpoint: str,
    tasks: str,
    limit: int | None,
    task_folder: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score a checkpoint on public benchmarks.

    It needs the extra: pip install 'gpt-pipeline[benchmarks]'.
    """
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.exchange.benchmark import BenchmarkRequest, benchmark_checkpoint
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    request = BenchmarkRequest(tasks=names, limit=limit, task_folder=task_folder, device=device)
    result = benchmark_checkpoint(loaded, chosen.path, request)
    say(f"{chosen.path.name}, step {result.step:,}" + (", measured before" if result.reused else ""))
    if as_json:
        print_json([{**asdict(score), "samples": result.samples.get(score.task)} for score in result.scores])
        return
    for score in result.scores:
        spread = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        count = result.samples.get(score.task)
        click.echo(f"{score.task}  {score.metric}  {score.value:.4f}{spread}" + (f"  of {count:,}" if count else ""))
    say(str(result.path))

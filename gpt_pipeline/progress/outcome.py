"""What an experiment came to: the numbers that a command ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    rank_of,
    ranking_metric,
    read_evaluations,
    same_answers,
)
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.show import figures, training_text
from gpt_pipeline.progress.training import experiment_training
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Line, Sheet
from gpt_pipeline.shown import counted
from gpt_pipeline.training.finished import read_finished_training


def outcome_sheet(experiment: Experiment, *, pages: str, talk: str, another: str) -> Sheet:
    """Return the training, the last and the best checkpoint by its evaluations, the report, and what may come next.

    `pages` is the address of the web pages, or the command that opens them; `talk` and `another` are the commands that
    let the model answer and that write another experiment.
    """
    results = comparable_results(experiment)
    rows: list[Line] = [(("training", "dim"), _training_text(experiment))]
    if results:
        metric = ranking_metric(results, experiment.config.deciding_loss)
        last, best = results[-1], min(results, key=lambda result: rank_of(result, metric))
        label = "best = last" if best is last else "last"
        rows.append(((label, "dim"), _of_checkpoint(last, metric)))
        if best is not last:
            rows.append((("best", "dim"), _of_checkpoint(best, metric)))
    if experiment.folder.report.is_file():
        rows.append((("report", "dim"), str(experiment.folder.report)))
    rows += [(("web pages", "dim"), pages), (("talk to it", "dim"), talk), (("your own", "dim"), another)]
    return Sheet(heading=((experiment.display_name, "bold"),), rows=rows, indent=2)


def best_text(experiment: Experiment) -> str:
    """Return what the best of the evaluated checkpoints reached, in a line; "" where none is evaluated."""
    results = comparable_results(experiment)
    if not results:
        return ""
    metric = ranking_metric(results, experiment.config.deciding_loss)
    best = min(results, key=lambda result: rank_of(result, metric))
    return f"{wording.at_step(best.step)}: {result_text(best, metric)}"


def _of_checkpoint(result: EvaluationResult, metric: str) -> str:
    file = result.checkpoint.get("file", f"step {result.step}")
    return f"{file}{'' if result.step else ', the weights it began with'}: {result_text(result, metric)}"


def comparable_results(experiment: Experiment) -> Sequence[EvaluationResult]:
    """Return the newest evaluation of each step, by step, of those that answer the same questions as the newest."""
    results = [each for each in read_evaluations(experiment.folder.evaluations) if "val_loss" in each.metrics]
    newest = max(results, key=lambda result: result.created_at, default=None)
    by_step = {each.step: each for each in results if newest is not None and same_answers(each, newest)}
    return [by_step[step] for step in sorted(by_step)]


def result_text(result: EvaluationResult, metric: str | None = None) -> str:
    """Return what was found, as `val loss 0.562, 33 of 84 right (39 %, 30 to 50 %)` or `..., 5 texts continued`.

    `metric` is the one that ranks it, which then stands first.
    """
    found = [f"val loss {result.metrics['val_loss']:.3f}"]
    if metric is not None and metric not in ("val_loss", "correct"):
        found.insert(0, f"{wording.words(metric)} {result.metrics[metric]:.3f}")
    if (right := share_of(result.answers, "correct")) is not None:
        low, high = right.interval
        share = f"{100 * right.value:.0f} %, {100 * low:.0f} to {100 * high:.0f} %"
        found.append(f"{right.successes} of {right.total} right ({share})")
    if continued := len(result.continuations):
        found.append(f"{counted(continued, 'text')} continued")
    return ", ".join(found)


def _training_text(experiment: Experiment) -> str:
    finished = read_finished_training(experiment.folder)
    progress = experiment_training(experiment)
    if finished is None or progress.state != "finished":
        return training_text(progress)
    length = f"{wording.count(finished.tokens_seen)} tokens in {wording.duration(finished.seconds)}"
    ended = replace(progress, train_loss=finished.train_loss, val_loss=finished.val_loss, val_step=progress.step)
    return ", ".join([f"finished at step {finished.step:,}: {length}", *figures(ended)])

"""A status to read: one block of lines for each experiment."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from gpt_pipeline.checkpoints.manifest import BEST_NAME
from gpt_pipeline.progress.family import family_sheet
from gpt_pipeline.progress.stages import StageProgress
from gpt_pipeline.progress.status import CheckpointStatus, Status
from gpt_pipeline.progress.training import NOT_YET_KNOWN, TrainingProgress
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Line, Sheet
from gpt_pipeline.shown import counted

_STYLES = {
    "finished": "green",
    "running": "cyan",
    "partly": "yellow",
    "stopped": "yellow",
    "died": "red",
    "absent": "dim",
}


def sheets(statuses: Sequence[Status]) -> list[Sheet]:
    """Return the statuses as blocks of lines, an empty line between them; several of one family share a block."""
    counts = Counter(status.family for status in statuses)
    blocks: list[Sheet] = []
    summed_up: set[str] = set()
    for status in statuses:
        if status.family is None or counts[status.family] < 2:
            heading = ((status.name, "bold"), str(status.folder or status.file))
            blocks.append(Sheet(heading=heading, rows=list(_rows(status)), indent=2))
        elif status.family not in summed_up:
            summed_up.add(status.family)
            blocks.append(family_sheet([each for each in statuses if each.family == status.family]))
    return [replace(block, closing=[*block.closing, ("",)]) for block in blocks[:-1]] + blocks[-1:]


def as_json(statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """Return the statuses as JSON values, with figures in full; the keys are the fields of `status.Status`."""
    return [dataclasses.asdict(status) for status in statuses]


def _rows(status: Status) -> Iterator[Line]:
    if status.problem is not None:
        yield _row("problem", status.problem, "red")
    for stage in status.stages:
        yield _row(stage.label, stage_text(stage), _STYLES[stage.state])
    if status.start:
        yield _row("starts from", status.start, "" if status.start_is_ready else "yellow")
    if status.training is not None:
        yield _row("training", training_text(status.training), _STYLES[status.training.state])
        for name in status.training.damaged:
            yield _row("", f"damaged: {name}; the one before it is used", "red")
    if status.problem is None:
        for number, text in enumerate(_checkpoint_texts(status)):
            yield _row("" if number else "checkpoints", text)
        for name, why in status.uncounted.items():
            yield _row("", f"{name} does not count: {why}", "yellow")
        yield from _result_rows(status)
    if status.mirror:
        yield _row("mirror", status.mirror)
    if status.failure is not None:
        yield _row("last run", status.failure.in_words, "red")
    yield _row("next", f"{status.next.command}   # {status.next.why}")


def _row(label: str, text: str, style: str = "") -> Line:
    return (label, "dim"), (text, style)


def stage_text(stage: StageProgress, *, finished: str = "finished") -> str:
    """Return how far a stage of the data is, in a line."""
    size = f", {wording.size(stage.size)}" if stage.size else ""
    note = f" ({stage.note})" if stage.note else ""
    if stage.state == "finished":
        return f"{finished}{size}{note}"
    if stage.state == "absent":
        return f"to do{note}"
    of = f"{stage.files_done:,} of " if stage.files else ""
    return f"partly: {of}{counted(stage.files or stage.files_done or 0, 'file')}{size}{note}"


def training_text(training: TrainingProgress) -> str:
    """Return how far the training is, in a line."""
    of = "" if training.max_steps is None else f" of {training.max_steps:,}"
    job = f"; {training.job}" if training.job else ""
    if training.state == "absent":
        steps = f": {counted(training.max_steps, 'step')}" if training.max_steps else ""
        return f"to do{steps}{job}"
    words = figures(training)
    if training.state == "finished":
        return ", ".join([f"finished at step {training.step:,}", *words])
    if training.state == "running":
        process = f"process {training.process} on {training.host}" if training.process else ""
        who = f" ({training.job or process})" if training.job or process else ""
        return ", ".join([f"running{who}", f"step {training.step:,}{of}", *words, *_speed_words(training)])
    if training.ended_before and not training.of_other_settings:
        words.append(NOT_YET_KNOWN)
        return ", ".join([f"finished before, at step {training.step:,}", *words])
    what = "stopped" if training.state == "stopped" else "was killed; saved"
    other = "; with other settings, data or start than the file names now" if training.of_other_settings else ""
    return ", ".join([f"{what} at step {training.step:,}{of}", *words]) + other + job


def figures(training: TrainingProgress) -> list[str]:
    """Return what tells how good the model is, in words: rewards and right answers before losses."""
    words = []
    if training.reward is not None:
        words.append(f"reward {training.reward:.3f}")
    elif training.train_loss is not None:
        words.append(f"train loss {training.train_loss:.3f}")
    estimates = (("pass@1", training.pass_at_1), ("val loss", training.val_loss))
    words += [f"{name} about {value:.3f}" for name, value in estimates if value is not None]
    if training.val_loss is not None and training.val_step != training.step:
        words[-1] += f" at step {training.val_step:,}"
    return words


def _speed_words(training: TrainingProgress) -> list[str]:
    speed, left = training.tokens_per_second, training.eta_seconds
    words = [] if speed is None else [f"{speed:,.0f} tokens/s"]
    return words if left is None else [*words, f"{wording.duration(left)} left"]


def _checkpoint_texts(status: Status) -> list[str]:
    if not status.checkpoints:
        return ["none"]
    count = f"{len(status.checkpoints)}, {wording.size(status.checkpoint_bytes)}"
    return [count, *(_checkpoint_text(each) for each in status.checkpoints)]


def _checkpoint_text(checkpoint: CheckpointStatus) -> str:
    states = {"done": "evaluated", "missing": "to be evaluated", "outdated": "to be evaluated again"}
    state = "" if checkpoint.evaluation is None else f"  {states[checkpoint.evaluation]}"
    if checkpoint.lacks_mlflow_alone:
        state = "  evaluated, not all in MLflow yet"
    name = f"{checkpoint.file} (step {checkpoint.step:,})" if checkpoint.file == BEST_NAME else checkpoint.file
    return f"{name:28} {wording.size(checkpoint.size):>8}{_loss_text(checkpoint)}{state}"


def _loss_text(checkpoint: CheckpointStatus) -> str:
    """Return the figure that an evaluation measured, else what the trainer estimated, marked as such."""
    if checkpoint.ranked_value is not None:
        return f"  {wording.words(checkpoint.ranked_by)} {checkpoint.ranked_value:.3f}"
    if checkpoint.evaluated_loss is not None:
        return f"  val loss {checkpoint.evaluated_loss:.3f}"
    return "" if checkpoint.val_loss is None else f"  val loss about {checkpoint.val_loss:.3f}"


def _result_rows(status: Status) -> Iterator[Line]:
    done, pending = status.evaluations_done, status.evaluations_pending
    to_come = "in progress" if status.is_evaluating else "to do"
    text = f"{done} done" + (f", {pending} {to_come}" if pending else "")
    yield _row("evaluations", text, "yellow" if pending else "")
    if status.best is not None:
        how = "" if status.best.evaluated else " (the trainer's estimate)"
        yield _row(
            "best so far",
            f"{wording.at_step(status.best.step)}, {wording.words(status.best.metric)} {status.best.value:.3f}{how}",
        )
    if status.report is not None:
        yield _row("report", f"{status.report}{' (outdated)' if status.report_is_outdated else ''}")

"""A status to read: one block of lines for each experiment, in colour on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from gpt_pipeline.checkpoints.manifest import BEST_NAME
from gpt_pipeline.progress.stages import StageProgress
from gpt_pipeline.progress.status import CheckpointStatus, Status
from gpt_pipeline.progress.training import TrainingProgress
from gpt_pipeline.report import wording

Line = tuple[str, str, str]
"""Label, how it stands (for the colour), and the text."""

_STYLES = {"finished": "green", "running": "cyan", "problem": "red", "died": "red", "stopped": "yellow", "todo": "dim"}
_WIDTH = 16


def lines_of(status: Status) -> list[Line]:
    """Return the status as lines, without its heading."""
    if status.problem is not None:
        return [("problem", "problem", status.problem), _next_line(status)]
    lines = [(stage.name, _style_of(stage), _stage_text(stage)) for stage in status.stages]
    if status.training is not None:
        lines += _training_lines(status.training)
    lines += [("" if number else "checkpoints", "", text) for number, text in enumerate(_checkpoint_texts(status))]
    lines += _result_lines(status)
    return [*lines, _next_line(status)]


def print_rich(statuses: Sequence[Status], console: Console) -> None:
    """Print the statuses for a terminal."""
    for number, status in enumerate(statuses):
        if number:
            console.print()
        console.print(Text.assemble((status.name, "bold"), f"  {status.folder or status.file}"), soft_wrap=True)
        for label, style, text in lines_of(status):
            shown = Text.assemble((f"  {label:{_WIDTH}}", "dim"), (text, _STYLES.get(style, "")))
            console.print(shown, soft_wrap=True)


def plain_text(statuses: Sequence[Status]) -> str:
    """Return the statuses as plain lines."""
    blocks = []
    for status in statuses:
        lines = [f"{status.name}  {status.folder or status.file}"]
        lines += [f"  {label:{_WIDTH}}{text}".rstrip() for label, _, text in lines_of(status)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def as_json(statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """Return the statuses as JSON values, with figures in full; the keys are the fields of `status.Status`."""
    return [_plain(dataclasses.asdict(status)) for status in statuses]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _style_of(stage: StageProgress) -> str:
    return {"finished": "finished", "partly": "stopped", "absent": "todo"}[stage.state]


def _stage_text(stage: StageProgress) -> str:
    size = f", {wording.size(stage.size)}" if stage.size else ""
    note = f" ({stage.note})" if stage.note else ""
    if stage.state == "finished":
        return f"finished{size}{note}"
    if stage.state == "absent":
        return f"to do{note}"
    of = f" of {stage.files:,}" if stage.files else ""
    return f"partly: {stage.files_done:,}{of} files{size}{note}"


def _training_lines(training: TrainingProgress) -> Iterator[Line]:
    yield "training", _training_style(training), training_text(training)
    for name in training.damaged:
        yield "", "problem", f"damaged: {name}; the one before it is used"


def _training_style(training: TrainingProgress) -> str:
    return "todo" if training.state == "absent" else training.state


def training_text(training: TrainingProgress) -> str:
    """Return how far the training is, in a line."""
    of = "" if training.max_steps is None else f" of {training.max_steps:,}"
    if training.state == "absent":
        return f"to do{f': {training.max_steps:,} steps' if training.max_steps else ''}"
    losses = [("train loss", training.train_loss), ("val loss about", training.val_loss)]
    words = [f"{name} {value:.3f}" for name, value in losses if value is not None]
    if training.state == "finished":
        return ", ".join([f"finished at step {training.step:,}", *words])
    if training.state == "running":
        return ", ".join([_running_text(training), f"step {training.step:,}{of}", *words, *_speed_words(training)])
    what = "stopped" if training.state == "stopped" else "was killed; saved"
    other = "; with other settings than the file has now" if training.of_other_settings else ""
    return ", ".join([f"{what} at step {training.step:,}{of}", *words]) + other


def _running_text(training: TrainingProgress) -> str:
    who = f" (process {training.process} on {training.host})" if training.process else ""
    return f"running{who}"


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
    loss = _loss_text(checkpoint)
    states = {"done": "evaluated", "missing": "to be evaluated", "outdated": "to be evaluated again"}
    state = "" if checkpoint.evaluation is None else f"  {states[checkpoint.evaluation]}"
    name = f"{checkpoint.file} (step {checkpoint.step:,})" if checkpoint.file == BEST_NAME else checkpoint.file
    return f"{name:28} {wording.size(checkpoint.size):>8}{loss}{state}"


def _loss_text(checkpoint: CheckpointStatus) -> str:
    """Return the loss that an evaluation measured, else what the trainer estimated, marked as such."""
    if checkpoint.evaluated_loss is not None:
        return f"  val loss {checkpoint.evaluated_loss:.3f}"
    return "" if checkpoint.val_loss is None else f"  val loss about {checkpoint.val_loss:.3f}"


def _result_lines(status: Status) -> Iterator[Line]:
    done, pending = status.evaluations_done, status.evaluations_pending
    to_come = "under way" if status.is_evaluating else "to do"
    yield "evaluations", "stopped" if pending else "", f"{done} done" + (f", {pending} {to_come}" if pending else "")
    if status.best is not None:
        how = "" if status.best.evaluated else " (the trainer's estimate)"
        yield "best so far", "", f"step {status.best.step:,}, val loss {status.best.val_loss:.3f}{how}"
    if status.report is not None:
        yield "report", "", f"{status.report}{' (outdated)' if status.report_is_outdated else ''}"


def _next_line(status: Status) -> Line:
    return "next", "", f"{status.next.command}   # {status.next.why}"

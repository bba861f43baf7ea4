"""In which state an experiment is: a word, and what else there is to say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.progress.show import stage_text
from gpt_pipeline.progress.status import Status
from gpt_pipeline.progress.training import NOT_YET_KNOWN, TrainingProgress
from gpt_pipeline.shown import counted

Word = Literal[
    "training",
    "evaluating",
    "making data",
    "waiting",
    "failed",
    "stopped",
    "finished",
    "not started",
    "broken",
    "not read yet",
]
RunState = Literal["waiting", "working", "failed", "canceled", "succeeded"]


@dataclass(frozen=True, kw_only=True)
class NewestRun:
    """The newest run that makes an experiment's data or its training, as the history of runs has it."""

    state: RunState
    page: str
    """Address of its page."""

    process: str = ""
    """`process 12 on host`, where it is known."""

    error: str = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of an experiment."""

    word: Word
    detail: str = ""


def state_of(status: Status, run: NewestRun | None) -> State:
    """Return the state by what lies in the experiment's folders and by its newest run."""
    training = status.training
    assert training is not None  # only of a file that could be read
    at_work = status.at_work is not None or (run is not None and run.state == "working")
    if training.state == "running":
        return State(
            word="training", detail=f"by process {training.process} on {training.host}" if training.host else ""
        )
    if training.state != "finished":
        if run is not None and run.state == "waiting":
            return State(word="waiting", detail="its run waits for its turn")
        if at_work or any(stage.note == "being made now" for stage in status.stages):
            return _at_work(status, run)
    if status.is_evaluating:
        return State(word="evaluating", detail=f"{counted(status.evaluations_pending, 'checkpoint')} to go")
    if training.state == "finished":
        return State(word="finished", detail=f"after {counted(training.step, 'step')}")
    return _at_rest(status, training, run)


def _at_work(status: Status, run: NewestRun | None) -> State:
    shown = status.at_work.process if status.at_work is not None else None
    process = f"process {shown.pid} on {shown.host}" if shown is not None else run.process if run is not None else ""
    who = f"by {process}" if process else ""
    unfinished = [stage for stage in status.stages if stage.state != "finished"]
    if not unfinished:
        return State(word="training", detail=", ".join(["starting", *([who] if who else [])]))
    stage = unfinished[0]
    how_far = f"{stage.label}: {stage_text(stage)}" if stage.state == "partly" else stage.label
    return State(word="making data", detail=", ".join([how_far, *([who] if who else [])]))


def _at_rest(status: Status, training: TrainingProgress, run: NewestRun | None) -> State:
    """Return the state of an experiment that nobody works on and that is not finished."""
    if run is not None and run.state == "failed":
        return State(word="failed", detail=run.error)
    if training.state == "died":
        return State(word="failed", detail="its process was killed, or its machine went down; a new run continues")
    if training.of_other_settings:
        return State(word="stopped", detail="with other settings, data or start than the file names now")
    if training.ended_before:
        return State(word="finished", detail=f"after {counted(training.step, 'step')}; {NOT_YET_KNOWN}")
    if training.state == "absent":
        return _before_training(status)
    return State(word="stopped", detail="a new run continues")


def _before_training(status: Status) -> State:
    states = {stage.state for stage in status.stages}
    if "partly" in states:
        return State(word="stopped", detail="part of its data is made")
    if "absent" not in states:
        return State(word="not started", detail="its data is finished")
    # Finished stages may be those of another experiment, which this one shares.
    return State(word="not started", detail="part of its data is finished" if "finished" in states else "")

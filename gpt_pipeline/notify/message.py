"""What is told of a run that has ended."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.shown import duration, on_terminal, without_password

Ending = Literal["finished", "stopped", "failed"]

_LINES = 6  # of an error
_LONGEST = 300  # letters of a line


@dataclass(frozen=True, kw_only=True)
class Message:
    """A notification."""

    title: str
    body: str
    ending: Ending


def message_of(
    experiment: Experiment, ending: Ending, *, seconds: float | None, problem: str = "", what: str = "run"
) -> Message:
    """Return what is told of a run of the experiment: how long it took, what it reached, and what to do now.

    `problem` is why it failed, in its own words, which hold the remedy; `what` says which run it was.
    """
    from gpt_pipeline.progress.outcome import best_text  # numpy and pyarrow, which loading the definitions does without

    time = f" after {duration(seconds)}" if seconds is not None else ""
    lines = [f"The {what} of {experiment.file.name} on {socket.gethostname()} {_VERBS[ending]}{time}."]
    lines += [line[:_LONGEST] for line in without_password(problem).splitlines()[:_LINES]]
    if best := best_text(experiment):
        lines.append(f"Best so far: {best}" if ending != "finished" else f"Best: {best}")
    if ending == "finished" and experiment.folder.report.is_file():
        lines.append(f"Report: {experiment.folder.report}")
    if ending != "finished":
        lines.append(f"What is finished is kept. To continue: gpt-pipeline run {experiment.file}")
    return Message(title=f"{experiment.display_name}: {ending}", body=on_terminal("\n".join(lines)), ending=ending)


def broken_message(name: str, problem: str) -> Message:
    """Return what is told of an experiment whose file could not be read when its turn came."""
    lines = [line[:_LONGEST] for line in without_password(problem).splitlines()[:_LINES]]
    return Message(title=f"{name}: failed", body=on_terminal("\n".join(lines)), ending="failed")


_VERBS = {"finished": "has finished", "stopped": "was stopped", "failed": "failed"}

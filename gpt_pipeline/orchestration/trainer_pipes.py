"""The trainer under Dagster: `python -m gpt_pipeline.orchestration.trainer_pipes JOB.json`.

Runs the same trainer as `python -m gpt_pipeline.training` and reports through Dagster Pipes. Of Dagster, it imports
only `dagster_pipes`, which needs nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.errors import UserError
from gpt_pipeline.row import show_each_warning_once
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.launch import place_in
from gpt_pipeline.training.observer import Observer, SilentObserver, console_observer, describe
from gpt_pipeline.training.stopping import stop_when_parent_dies

if TYPE_CHECKING:
    from gpt_pipeline.checkpoints.manifest import CheckpointInfo

_EXIT_MISUSE = 2
DIE_WITH_PARENT = "GPT_PIPELINE_DIE_WITH_PARENT"
"""Environment variable: the process that starts the trainer, which is to stop when that is gone."""

_PROGRESS_SECONDS = 10.0  # between two lines of progress in Dagster's log


class PipesObserver:
    """Reports the training to the Dagster step, and to the terminal if there is one."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], object],
        terminal: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send_message = send
        self._terminal = terminal
        self._clock = clock
        self._next_line = 0.0
        self._tokens_per_second: float | None = None

    def progress(self, record: Mapping[str, Any]) -> None:
        """Report a validation at once, other progress every few seconds."""
        self._terminal.progress(record)
        if record["kind"] == "train":
            self._tokens_per_second = record.get("tokens_per_second")
            if self._clock() < self._next_line:
                return
            self._next_line = self._clock() + _PROGRESS_SECONDS
        self._send(kind="message", text=f"step {record['step']}/{record['max_steps']}  {describe(record)}")

    def validating(self, done: int, total: int) -> None:
        """Show it on the terminal only."""
        self._terminal.validating(done, total)

    def checkpoint(self, info: CheckpointInfo) -> None:
        """Report a finished checkpoint and the training's speed at that point."""
        self._terminal.checkpoint(info)
        self._send(kind="checkpoint", checkpoint=info.to_json(), tokens_per_second=self._tokens_per_second)

    def message(self, text: str) -> None:
        """Report a sentence."""
        self._terminal.message(text)
        self._send(kind="message", text=text)

    def error(self, text: str) -> None:
        """Report why the trainer gives up."""
        self._send(kind="error", text=text)

    def _send(self, **message: Any) -> None:
        self._send_message(message)


def main(arguments: list[str]) -> int:
    """Run the job in the file that is the only argument; return the exit code."""
    from dagster_pipes import open_dagster_pipes

    show_each_warning_once()
    place = place_in(os.environ)
    if starter := os.environ.get(DIE_WITH_PARENT):  # the parent too, unless torchrun stands between
        stop_when_parent_dies(parent=int(starter) if place is None else None)
    if place is not None and place.rank > 0:  # under torchrun only the first process reports
        return _train(Path(arguments[0]), SilentObserver(), complain=lambda text: print(text, file=sys.stderr))
    with open_dagster_pipes() as pipes, _terminal() as terminal:
        observer = PipesObserver(pipes.report_custom_message, terminal)
        return _train(Path(arguments[0]), observer, complain=observer.error)


def _train(job_file: Path, observer: Observer, *, complain: Callable[[str], None]) -> int:
    from gpt_pipeline.training.run import run_job  # torch

    try:
        return run_job(TrainingJob.read(job_file), observer).exit_code
    except UserError as error:
        complain(str(error))
        return _EXIT_MISUSE


def _terminal() -> AbstractContextManager[Observer]:
    """Return an observer with a row of progress; without a terminal a silent one, since Dagster's log has the lines."""
    return console_observer(sys.stdout) if sys.stdout.isatty() else nullcontext(SilentObserver())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

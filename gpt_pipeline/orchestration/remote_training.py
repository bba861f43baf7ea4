"""Have an engine run the trainer: hand the job over, or find it, and follow it by what it writes into its folder.

The engine is asked only whether the job waits, runs or has ended, and why. What the trainer did is read from the
experiment's folder, so a step that is killed loses nothing: the next one finds the job by its note and goes on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from gpt_pipeline.experiment.launching import training_command
from gpt_pipeline.launchers.protocol import (
    ALIVE,
    END_SECONDS,
    SHUTDOWN_SECONDS,
    Launcher,
    Observed,
    TrainingCommand,
    UnreachableError,
)
from gpt_pipeline.launchers.submission import (
    Submission,
    describe_state,
    ensure_submitted,
    log_of,
    note_state,
    only_follower,
    submit_again,
    tail,
)
from gpt_pipeline.orchestration.trainer_launch import PROGRESS_DESCRIPTOR, STOPPED_CODES
from gpt_pipeline.orchestration.trainer_pipes import PipesObserver
from gpt_pipeline.shown import Say, as_code
from gpt_pipeline.storage.lock import SILENT_SECONDS
from gpt_pipeline.training.decision import find_finished_work
from gpt_pipeline.training.folder_watch import FolderWatch, Pulse
from gpt_pipeline.training.heartbeat import RUN_VARIABLE, trainer_state
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import Observer, SilentObserver, console_observer
from gpt_pipeline.training.stopping import HANGS, StopFlag, stop_on_signals

MOST_LOST = 3
"""Attempts in a row that may end without a new checkpoint before the training is given up."""

_LOG_LINES = 20
_LEAVING_SECONDS = 30.0
_OWN_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a job is looked after, and how long it may keep us waiting, in seconds."""

    look: float = 0.5
    """Between two looks into the folder."""

    ask: float = 10.0
    """Between two questions to the engine."""

    start: float = 900.0
    """From the job's start to the trainer's first sign of life: modules, imports, a meeting of all nodes."""

    silent: float = SILENT_SECONDS
    """Between two signs of life of a trainer."""

    stop: float = END_SECONDS
    """From the request to stop to the job's end."""


def train_remotely(
    job: TrainingJob,
    launcher: Launcher,
    *,
    run_id: str,
    max_steps: int,
    receive: Callable[[Mapping[str, Any]], None],
    say: Say,
    tell_job: Callable[[str], None],
    patience: Patience = Patience(),  # frozen
) -> None:
    """Have the engine train `job` until it ends, at its last step or stopped by a signal sent to it.

    `receive` gets the messages that `train_in_child` passes on, `say` what happens to the job, and `tell_job` which job
    it is, whenever that is another one. A request to stop (a terminated run, Ctrl+C) becomes one to the engine, and the
    trainer's checkpoint is waited for. If this process is killed, the job goes on; whoever materializes the training
    next finds it.

    Raises:
        DagsterExecutionInterruptedError: the run was asked to stop.
        dagster.Failure: the trainer failed, with its own message if it left one; or it was lost too often.
        OtherJobError: a job with other settings is at work in the folder.
        LauncherError: the engine refuses the job, or did not answer for long.
    """
    stop = StopFlag()
    with stop_on_signals(stop), only_follower(job.folder), _terminal() as terminal:
        following = _Following(
            job=job,
            launcher=launcher,
            watch=FolderWatch(
                job.folder, PipesObserver(receive, terminal), fingerprint=job.fingerprint, max_steps=max_steps
            ),
            stop=stop,
            say=say,
            environment={RUN_VARIABLE: run_id},
            tell_job=tell_job,
            patience=patience,
        )
        following.train()


@contextmanager
def _terminal() -> Iterator[Observer]:
    """Yield an observer that draws a row of progress where someone watches; else a silent one."""
    descriptor = os.environ.get(PROGRESS_DESCRIPTOR)
    if not descriptor:
        yield SilentObserver()
        return
    with os.fdopen(os.dup(int(descriptor)), "w", errors="replace") as stream, console_observer(stream) as observer:
        yield observer


@dataclass(kw_only=True)
class _Following:
    """The training of one step, over all jobs that it takes."""

    job: TrainingJob
    launcher: Launcher
    watch: FolderWatch
    stop: StopFlag
    say: Say
    environment: Mapping[str, str]
    tell_job: Callable[[str], None]
    patience: Patience

    def train(self) -> None:
        """Follow one job after the other until the training has ended in order."""
        note = ensure_submitted(
            self.job.folder,
            self.launcher,
            fingerprint=self.job.fingerprint,
            request=self.job.request,
            saved=self.watch.newest_step,
            command=self._command,
            say=self.say,
        )
        while True:
            self.tell_job(note.in_words)
            note, end = _Follow(self, note).to_the_end()
            self.watch.look()
            if self._is_over(note, end):
                return
            note = self._again(note, end)

    def _command(self, note: Submission) -> TrainingCommand:
        job = self.asked_of(note)
        job.write(job.folder.job)
        return training_command(job, note, self.environment)

    def asked_of(self, note: Submission) -> TrainingJob:
        """Return what the note's job does: to train anew may have been asked by another run, which was killed."""
        if note.request == self.job.request:
            return self.job
        return dataclasses.replace(self.job, request=note.request)

    def _is_over(self, note: Submission, end: Observed) -> bool:
        """Whether the trainer has ended in order; False if it was lost through no fault of its own.

        Raises:
            dagster.Failure: it failed, or somebody else cancelled it.
        """
        finished = find_finished_work(self.asked_of(note)) is not None
        if finished or end.state == "succeeded" or (end.state == "failed" and end.exit_code in STOPPED_CODES):
            return True
        if end.state == "failed":
            raise _failure(self.job, note, end)
        if end.state == "cancelled":
            raise dg.Failure(
                description=f"{note.in_words} was cancelled, and not by this run ({end.reason}). Materialize training "
                "again: it continues from the last checkpoint.",
                allow_retries=False,
            )
        return False

    def _again(self, note: Submission, end: Observed) -> Submission:
        self._until_left()
        saved = self.watch.newest_step()
        how = f"{note.in_words} ended early: {describe_state(end.state, end.reason)}"
        if saved <= note.first_step and note.lost + 1 >= MOST_LOST:
            raise dg.Failure(
                description=f"{how}. So did the {note.lost} before it, none with a new checkpoint. The end of its "
                f"output, {log_of(self.job.folder, note)}:\n{self._tail(note)}\nSave more often "
                "(evaluation.save_every_n_iterations) or allow more time, then materialize training again.",
                allow_retries=False,
            )
        begin = "the beginning" if saved < 0 else f"step {saved}"
        self.say(f"{how}. The training is submitted again and continues from {begin}.")
        return submit_again(self.job.folder, note, self.launcher, saved=saved, command=self._command, say=self.say)

    def _until_left(self) -> None:
        """Wait for the trainers of a job that has ended: they may outlive it to save, and hold the folder meanwhile."""
        until = time.monotonic() + SHUTDOWN_SECONDS
        while trainer_state(self.job.folder.root) == "running" and time.monotonic() < until:
            if self.stop.requested:
                raise dg.DagsterExecutionInterruptedError
            time.sleep(self.patience.look)
        self.watch.look()

    def _tail(self, note: Submission) -> str:
        return tail(log_of(self.job.folder, note), _LOG_LINES)


class _Follow:
    """One job, from now to its end."""

    def __init__(self, following: _Following, note: Submission) -> None:
        self._all = following
        self._patience = following.patience
        self._note = note
        self._pulse = Pulse(following.job.folder)
        self._unreachable: UnreachableError | None = None
        self._asked = -following.patience.ask
        self._was_alive = False

    def to_the_end(self) -> tuple[Submission, Observed]:
        """Return how the job ended, and its note; pass on meanwhile what the trainer writes.

        Raises:
            DagsterExecutionInterruptedError: as asked, once the job has ended.
            UnreachableError: neither the engine nor the trainer showed life for long.
            dagster.Failure: the job runs, and nothing of it appears in the folder.
        """
        while True:
            self._all.watch.look()
            if self._all.stop.requested:
                self._end_as_asked()
                raise dg.DagsterExecutionInterruptedError
            end = self._ask_in_time() or self._lost()
            if end is not None:
                return self._note, end
            time.sleep(self._patience.look)

    def _ask_in_time(self) -> Observed | None:
        """Ask the engine if it is time to; return how the job ended, if it did."""
        # When the trainer has left, the job's end is a matter of seconds, unless it sends to its mirror.
        leaves = self._was_alive and self._pulse.has_left and self._pulse.silence() < _LEAVING_SECONDS
        if time.monotonic() - self._asked < (1.0 if leaves else self._patience.ask):
            return None
        seen = self._ask()
        if seen is None:
            return None
        if seen.state == "waiting":
            self._pulse.reset()
            self._was_alive = False
        forgotten = seen.state == "unknown" and self._pulse.silence() < self._patience.silent and self._pulse.was_felt
        return None if seen.state in ALIVE or forgotten else seen

    def _ask(self) -> Observed | None:
        """Return how the job is and note it; None while the engine does not answer."""
        self._asked = time.monotonic()
        assert self._note.id is not None
        try:
            seen = self._all.launcher.state(self._note.id, name=self._note.name)
        except UnreachableError as error:
            if self._unreachable is None:
                self._all.say(f"{error}. The training goes on by itself; the engine is asked again.")
            self._unreachable = error
            return None
        if self._unreachable is not None:
            self._all.say(f"The engine answers again: {describe_state(seen.state, seen.reason)}.")
            self._unreachable = None
        if (seen.state, seen.reason) != (self._note.state, self._note.reason):
            self._all.say(f"{self._note.in_words} is {describe_state(seen.state, seen.reason)}.")
        self._note = note_state(self._all.job.folder, self._note, seen)
        return seen

    def _lost(self) -> Observed | None:
        """Return that the job is lost, once it has shown no life for too long, and end it."""
        silence = self._pulse.silence()
        self._was_alive = self._was_alive or self._pulse.was_felt
        if silence <= (self._patience.silent if self._was_alive and not self._pulse.has_left else self._patience.start):
            return None
        if self._unreachable is not None:
            if silence > self._patience.start:
                raise self._unreachable
            return None
        if self._pulse.has_left and find_finished_work(self._all.asked_of(self._note)) is not None:
            return None  # it is done, and may send to its mirror for long
        if not self._was_alive and not self._pulse.was_felt:
            raise self._never_seen(silence)
        self._all.say(f"{self._note.in_words} gave no sign of life for {silence:.0f} s and is ended.")
        if not self._kill():
            raise self._without_end(silence)
        return Observed(state="timed_out", reason=f"no sign of life for {silence:.0f} s")

    def _never_seen(self, silence: float) -> Exception:
        folder, log = self._all.job.folder, log_of(self._all.job.folder, self._note)
        if not self._kill():
            return self._without_end(silence)
        return dg.Failure(
            description=f"{self._note.in_words} ran for {silence:.0f} s and no sign of life of its trainer appeared in "
            f"{folder.root}; it was ended. All nodes and this machine need to see this folder: choose another "
            f"storage.base_folder if they do not. The end of its output, {log}:\n{tail(log, _LOG_LINES)}",
            allow_retries=False,
        )

    def _without_end(self, silence: float) -> Exception:
        """Return why nothing else is submitted: the job may still write into the folder."""
        return self._unreachable or dg.Failure(
            description=f"{self._note.in_words} gave no sign of life for {silence:.0f} s and does not end; nothing "
            "else is submitted. End it with the engine's own command, then materialize training again.",
            allow_retries=False,
        )

    def _end_as_asked(self) -> None:
        self._all.say(f"Stopping {self._note.in_words}: the trainer saves a checkpoint at the next step and exits.")
        until = time.monotonic() + self._patience.stop
        asked = False
        while time.monotonic() < until:
            asked = asked or self._request("cancel")
            self._all.watch.look()
            seen = self._ask()
            if seen is not None and seen.state not in ALIVE:
                return
            time.sleep(max(self._patience.look, 1.0))
        self._all.say(f"{self._note.in_words} did not end within {self._patience.stop:.0f} s and is killed.")
        self._kill()

    def _kill(self) -> bool:
        """End the job now and wait for it; return whether the engine says that it has ended."""
        until = time.monotonic() + self._patience.stop
        killed = False
        while time.monotonic() < until:
            killed = killed or self._request("kill")
            seen = self._ask()
            if seen is not None and seen.state not in ALIVE:
                return True
            time.sleep(max(self._patience.look, 1.0))
        self._all.say(f"{self._note.in_words} may still be at work; its engine does not say that it has ended.")
        return False

    def _request(self, what: Literal["cancel", "kill"]) -> bool:
        """Ask the engine for `what`; return whether it heard."""
        assert self._note.id is not None
        launcher = self._all.launcher
        try:
            (launcher.cancel if what == "cancel" else launcher.kill)(self._note.id, name=self._note.name)
        except UnreachableError as error:
            self._all.say(str(error))
            return False
        return True


def _failure(job: TrainingJob, note: Submission, end: Observed) -> dg.Failure:
    """Return the failure in the trainer's own words, or else with the end of its output."""
    log = log_of(job.folder, note)
    text = tail(log, _LOG_LINES)
    own = _OWN_ERROR.findall(tail(log, 10 * _LOG_LINES))
    if own and not own[-1].startswith(HANGS):
        output = dg.MetadataValue.md(as_code(text))
        return dg.Failure(description=own[-1], metadata={"output": output}, allow_retries=False)
    return dg.Failure(
        description=f"{note.in_words} ended: {describe_state(end.state, end.reason)}. The end of its output, {log}:\n"
        f"{text}\nMaterialize training again: it continues from the last checkpoint."
    )

"""Which job a training was handed to: `launch.json` in the experiment's folder, and what keeps it at one job.

The note is written before the job is submitted, with the job's name, and once more with the id that the engine gave it.
An engine that cannot even be asked for the name gets no note; one that refuses the job is noted as having failed. So
whoever is killed anywhere in between leaves what the next one needs to find the job, or to submit it under the same
name. The name is derived from the training's fingerprint and the attempt, and from a word that is drawn when the folder
gets its first note, so that copies of an experiment do not find each other's jobs.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.errors import LockedError, UserError
from gpt_pipeline.launchers.protocol import (
    ALIVE,
    JobState,
    Launcher,
    LauncherError,
    Observed,
    TrainingCommand,
    UnreachableError,
)
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import known_fields, read_state, write_json
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.manifest import utc_now

_NAME_LETTERS = 30  # of the experiment's name; Kubernetes takes 63 in all
_LOG_BYTES = 64 << 10
_LOCK_SECONDS = 2.0
_NO_SUCH_JOB = Observed(state="unknown", reason="the engine has no job of this name")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that a training was handed to, or is about to be."""

    launcher: str
    name: str
    word: str
    """Drawn once a folder."""

    attempt: int
    """Counts the folder's submissions, from 1."""

    id: str | None
    """The engine's; None between the intent and the answer."""

    fingerprint: str
    """Of the training."""

    request: str
    """As `TrainingJob.request`."""

    submitted_at: str
    log: str
    """File name of the job's output, in the folder `launch`."""

    first_step: int = -1
    """Of the newest checkpoint when it was submitted; -1: there was none."""

    where: str | None = None
    """As `Launcher.where`; None in a note from before this was kept."""

    lost: int = 0
    """How many attempts in a row, up to this one's submission, ended without a new checkpoint."""

    state: JobState = "waiting"
    """When the engine was last asked."""

    reason: str = ""
    """The engine's words for it."""

    @property
    def in_words(self) -> str:
        """Which job it is: `slurm job 17`."""
        return f"{self.launcher} job {self.id or self.name}"

    @property
    def described(self) -> str:
        """Which job it is and how it was last seen: `slurm job 17, running on node1`."""
        return f"{self.in_words}, {describe_state(self.state, self.reason)}"

    def is_for(self, *, fingerprint: str, request: str) -> bool:
        """Whether it does what such a job asks for: one that trains anew does it too for who does not ask for that."""
        return self.fingerprint == fingerprint and request in ("", self.request)


class OtherJobError(UserError):
    """A job that does something else is at work in the experiment's folder."""


def describe_state(state: JobState, reason: str) -> str:
    """Return how a job is, in words: `waiting (Resources)`, `running on node1`."""
    word = state.replace("_", " ")
    if not reason:
        return word
    return f"{word} on {reason}" if state == "running" else f"{word} ({reason})"


def read_submission(folder: ExperimentFolder) -> Submission | None:
    """Return the newest note in `folder`; None if nothing was submitted there.

    Raises:
        UserError: the note is damaged, so that nobody can tell whether its job is at work.
        NewerFileError: only a newer version can read it.
    """
    try:
        return read_state(folder.launch, lambda value: Submission(**known_fields(Submission, value)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{folder.launch} is damaged ({error}); see with the engine's own command that no job of this training is "
            "at work, then remove the file"
        ) from error


@contextmanager
def only_follower(folder: ExperimentFolder, *, wait_seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the right to submit jobs for the experiment, and to write its note, during the block.

    Not the folder's own lock, which the job's trainer holds. Waits for those who hold it for an instant, to note how
    the job is.

    Raises:
        LockedError: another live process has it.
    """
    purpose = "submitting and following the training's job"
    with folder_lock(folder.jobs, purpose=purpose, wait_seconds=wait_seconds):
        yield


def ensure_submitted(
    folder: ExperimentFolder,
    launcher: Launcher,
    *,
    fingerprint: str,
    request: str,
    saved: Callable[[], int],
    command: Callable[[Submission], TrainingCommand],
    say: Say,
) -> Submission:
    """Return the one job that does what is asked for: the one at work, or a new one if there is none.

    The job may have been asked to train anew although `request` is empty; then the note has that request, and `command`
    is to heed it. To be called by the `only_follower`; `saved` returns the step of the newest checkpoint, -1 if there
    is none. A job that was submitted and has not ended is never submitted again, whatever happened to the process that
    did.

    Raises:
        OtherJobError: a job with other settings, or on another engine or cluster, is at work in the folder.
        UnreachableError: the engine does not answer, so it is unknown whether there is a job.
        LauncherError: the engine refuses the job.
    """
    note = read_submission(folder)
    wanted = note is not None and note.is_for(fingerprint=fingerprint, request=request)
    if note is not None:
        before = note
        note, seen = _sought(folder, note, launcher)
        if note != before:
            _write(folder, note)
        if seen is not None and seen.state in ALIVE:
            if not wanted:
                raise OtherJobError(_remedy(folder, note, "trains with other settings than the file has now"))
            say(f"Found {note.in_words} of this training; it is {describe_state(seen.state, seen.reason)}.")
            return note
        if wanted and note.id is None and _is_with(note, launcher):  # the intent stands; the engine has no such job
            return _submit(folder, dataclasses.replace(note, state="waiting", reason=""), launcher, command, say)
    intent = _intent(folder, note, launcher, fingerprint=fingerprint, request=request, first_step=saved())
    return _submit(folder, intent, launcher, command, say)


def submit_again(
    folder: ExperimentFolder,
    ended: Submission,
    launcher: Launcher,
    *,
    saved: int,
    command: Callable[[Submission], TrainingCommand],
    say: Say,
) -> Submission:
    """Submit the next attempt after `ended`, which is at its end; raises as `ensure_submitted`.

    `saved` is the step of the newest checkpoint, -1 if there is none: if it is the one that `ended` began with, that
    attempt counts as lost.
    """
    intent = _intent(folder, ended, launcher, fingerprint=ended.fingerprint, request=ended.request, first_step=saved)
    lost = 0 if saved > ended.first_step else ended.lost + 1
    return _submit(folder, dataclasses.replace(intent, lost=lost), launcher, command, say)


def require_no_job(folder: ExperimentFolder, launcher_of: Callable[[Submission], Launcher]) -> None:
    """Raise OtherJobError if a job that was submitted for the experiment is still at work; for who trains here.

    `launcher_of` returns the engine that a note's job was handed to.

    Raises:
        UnreachableError: its engine does not answer.
    """
    note = read_submission(folder)
    if note is None or not _may_live(note):
        return
    note = look_up(folder, note, launcher_of(note))
    if note.state in ALIVE:
        raise OtherJobError(_remedy(folder, note, f"is {describe_state(note.state, note.reason)}"))


def look_up(folder: ExperimentFolder, note: Submission, launcher: Launcher) -> Submission:
    """Return the note with what its engine says now; written to the folder, unless someone follows the job, and does.

    Raises:
        OtherJobError: the job was handed to another engine, and may be at work.
        UnreachableError: its engine does not answer.
    """
    news, seen = _sought(folder, note, launcher)
    if seen is None and _may_live(news):  # else the engine has refused it
        news = dataclasses.replace(news, state=_NO_SUCH_JOB.state, reason=_NO_SUCH_JOB.reason)
    with suppress(LockedError), only_follower(folder, wait_seconds=0):
        if news != note and read_submission(folder) == note:
            _write(folder, news)
    return news


def await_end(
    folder: ExperimentFolder, note: Submission, launcher: Launcher, *, seconds: float, every: float = 5.0
) -> Submission:
    """Return the note with how its job ended, or how it still is after `seconds`; looked up `every` so many seconds.

    A note of another job, which somebody submitted meanwhile, is left as it is.

    Raises:
        UnreachableError: the engine does not answer after `seconds` either.
        LauncherError: the engine refuses.
    """
    until = time.monotonic() + seconds
    while True:
        newest, is_late = read_submission(folder), time.monotonic() >= until
        try:
            note = look_up(folder, newest if newest is not None and newest.name == note.name else note, launcher)
        except UnreachableError:
            if is_late:
                raise
        else:
            if note.state not in ALIVE or is_late:
                return note
        time.sleep(every)


def note_state(folder: ExperimentFolder, note: Submission, seen: Observed) -> Submission:
    """Return the note with what its engine says now; written to the folder if it is news."""
    news = dataclasses.replace(note, state=seen.state, reason=seen.reason)
    if news != note:
        _write(folder, news)
    return news


def training_name(folder: ExperimentFolder, fingerprint: str) -> str:
    """Return what the names of the training's jobs begin with: letters, digits and `-`."""
    letters = re.sub(r"[^a-z0-9]+", "-", folder.root.name.lower())[:_NAME_LETTERS].strip("-")
    return "-".join(each for each in ("gpt", letters, fingerprint[:SHORT]) if each)


def log_of(folder: ExperimentFolder, note: Submission) -> Path:
    """Return the file of the job's output."""
    return folder.jobs / note.log


def tail(log: Path, lines: int) -> str:
    """Return the last lines of a job's output; empty while there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _may_live(note: Submission) -> bool:
    return note.state in (*ALIVE, "unknown")


def _is_with(note: Submission, launcher: Launcher) -> bool:
    return note.launcher == launcher.name and note.where in (None, launcher.where)


def _sought(folder: ExperimentFolder, note: Submission, launcher: Launcher) -> tuple[Submission, Observed | None]:
    """Return the note with its job's id and state, and how the job is; None if the engine never got it.

    The job is sought by its name: another cluster, or a controller that was set up anew, gives its id to others too.
    """
    if not _is_with(note, launcher):
        if _may_live(note):
            places = f"{_place(note.launcher, note.where)}, not to {_place(launcher.name, launcher.where)}"
            raise OtherJobError(_remedy(folder, note, f"was submitted to {places}, and may be at work"))
        return note, None
    try:
        found = launcher.find(note.name)
        if found is None and note.id is None:
            return note, None
        note = dataclasses.replace(note, id=note.id or found)
        assert note.id is not None
        seen = _NO_SUCH_JOB if found is None else launcher.state(note.id, name=note.name)
    except LauncherError as error:
        raise type(error)(f"{error}; {_gone(folder)}") from error
    return dataclasses.replace(note, state=seen.state, reason=seen.reason), seen


def _place(launcher: str, where: str | None) -> str:
    return f"{launcher} at {where}" if where else f"{launcher} here"


def _gone(folder: ExperimentFolder) -> str:
    return f"if that cluster is gone for good, remove {folder.launch}"


def _intent(
    folder: ExperimentFolder,
    before: Submission | None,
    launcher: Launcher,
    *,
    fingerprint: str,
    request: str,
    first_step: int,
) -> Submission:
    attempt = 1 if before is None else before.attempt + 1
    word = secrets.token_hex(3) if before is None else before.word
    name = f"{training_name(folder, fingerprint)}-{word}-{attempt}"
    return Submission(
        launcher=launcher.name,
        where=launcher.where,
        name=name,
        word=word,
        attempt=attempt,
        id=None,
        fingerprint=fingerprint,
        request=request,
        submitted_at=utc_now(),
        log=f"{name}.log",
        first_step=first_step,
    )


def _submit(
    folder: ExperimentFolder,
    intent: Submission,
    launcher: Launcher,
    command: Callable[[Submission], TrainingCommand],
    say: Say,
) -> Submission:
    given = launcher.find(intent.name)  # before the note: an engine that cannot be asked has no job to be followed
    _write(folder, intent)
    try:
        given = given or launcher.submit(command(intent))
    except UnreachableError:
        raise
    except LauncherError as error:
        with suppress(LauncherError):
            if launcher.find(intent.name) is None:
                _write(folder, dataclasses.replace(intent, state="failed", reason=str(error)))
        raise
    note = dataclasses.replace(intent, id=given)
    _write(folder, note)
    say(f"Submitted {note.in_words} ({note.name}); its output: {log_of(folder, note)}")
    return note


def _write(folder: ExperimentFolder, note: Submission) -> None:
    write_json(folder.launch, dataclasses.asdict(note))


def _remedy(folder: ExperimentFolder, note: Submission, what: str) -> str:
    return (
        f"{note.in_words} {what}: wait for its end, or stop it (`gpt-pipeline launch --stop`, which lets it save a "
        f"checkpoint), then run again; {_gone(folder)}"
    )

"""One job for a training, whatever is killed when."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpt_pipeline.errors import LockedError, UserError
from gpt_pipeline.launchers import submission
from gpt_pipeline.launchers.protocol import LauncherError, Observed, TrainingCommand, UnreachableError
from gpt_pipeline.launchers.submission import (
    OtherJobError,
    Submission,
    await_end,
    ensure_submitted,
    look_up,
    only_follower,
    read_submission,
    require_no_job,
    submit_again,
    tail,
)
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline_tests.crashing import Killed

FINGERPRINT = "a" * 64


@dataclass
class Engine:
    """An engine in memory; `killed` names the point in `submit` at which the submitting process dies."""

    name: str = "slurm"
    where: str = ""
    killed: str = ""
    away: bool = False
    jobs: dict[str, tuple[str, Observed]] = field(default_factory=dict)

    def check(self) -> str:
        return "there"

    def submit(self, command: TrainingCommand) -> str:
        if self.killed == "before":
            raise Killed
        job_id = str(len(self.jobs) + 1)
        self.jobs[job_id] = (command.name, Observed(state="running", reason="node1"))
        if self.killed == "after":
            raise Killed
        return job_id

    def find(self, name: str) -> str | None:
        self._answer()
        return next((job_id for job_id, (known, _) in reversed(self.jobs.items()) if known == name), None)

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        self._answer()
        known, seen = self.jobs.get(job_id, (name, Observed(state="unknown")))
        return seen if name in (None, known) else Observed(state="unknown")

    def cancel(self, job_id: str, *, name: str | None = None) -> None:
        self.end(job_id, "cancelled")

    kill = cancel

    def end(self, job_id: str, state: str) -> None:
        self.jobs[job_id] = (self.jobs[job_id][0], Observed(state=state))

    def _answer(self) -> None:
        if self.away:
            raise UnreachableError("nobody there")


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    return ExperimentFolder(root=tmp_path / "My idea ÄÖ; rm -rf")


def command_of(folder: ExperimentFolder):
    def command(note: Submission) -> TrainingCommand:
        return TrainingCommand(
            name=note.name, job_file=folder.job, log_file=folder.jobs / note.log, nodes=1, processes=1
        )

    return command


def submit(
    folder: ExperimentFolder, engine: Engine, *, fingerprint: str = FINGERPRINT, request: str = "", saved: int = -1
) -> Submission:
    return ensure_submitted(
        folder,
        engine,
        fingerprint=fingerprint,
        request=request,
        saved=lambda: saved,
        command=command_of(folder),
        say=lambda _: None,
    )


def note_of_job(*, where: str) -> Submission:
    """Return the note of a job that was submitted to Ray there, and waits."""
    return Submission(
        launcher="ray",
        where=where,
        name="gpt-a-1",
        word="a",
        attempt=1,
        id="gpt-a-1",
        fingerprint=FINGERPRINT,
        request="",
        submitted_at="",
        log="a.log",
    )


def test_submission_asked_for_twice_is_one_job(folder: ExperimentFolder) -> None:
    engine = Engine()

    first, second = submit(folder, engine), submit(folder, engine)

    assert first.id == second.id == "1"
    assert len(engine.jobs) == 1


@contextmanager
def killed_at_writing(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Have the process die instead of writing the note for the `number`th time."""
    write, count = submission.write_json, iter(range(1, 100))

    def write_or_die(path: Path, value: object) -> None:
        if next(count) == number:
            raise Killed
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(submission, "write_json", write_or_die)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("number", [1, 2])
def test_submission_killed_at_a_note_leads_to_one_job(
    folder: ExperimentFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    engine = Engine()
    with killed_at_writing(monkeypatch, number):
        submit(folder, engine)

    note = submit(folder, engine)

    assert note.id == "1"
    assert len(engine.jobs) == 1
    assert submit(folder, engine).id == "1"


@pytest.mark.parametrize("point", ["before", "after"])
def test_submission_killed_in_the_engines_command_leads_to_one_job(folder: ExperimentFolder, point: str) -> None:
    engine = Engine(killed=point)
    with pytest.raises(Killed):
        submit(folder, engine)
    intent = read_submission(folder)
    assert intent is not None
    assert intent.id is None

    engine.killed = ""
    note = submit(folder, engine)

    assert note.name == intent.name
    assert len(engine.jobs) == 1


def test_submission_with_an_engine_that_does_not_answer_submits_nothing(folder: ExperimentFolder) -> None:
    engine = Engine(killed="after")
    with pytest.raises(Killed):
        submit(folder, engine)
    engine.away, engine.killed = True, ""

    with pytest.raises(
        UnreachableError, match=r"nobody there; if that cluster is gone for good, remove .*launch\.json"
    ):
        submit(folder, engine)

    assert len(engine.jobs) == 1


def test_submission_after_the_job_has_ended_is_the_next_attempt(folder: ExperimentFolder) -> None:
    engine = Engine()
    first = submit(folder, engine)
    engine.end("1", "failed")

    second = submit(folder, engine, saved=8)

    assert (second.attempt, second.id, second.first_step) == (2, "2", 8)
    assert second.name == first.name[:-1] + "2"


def test_submission_of_a_job_that_the_engine_forgot_is_the_next_attempt(folder: ExperimentFolder) -> None:
    engine = Engine()
    submit(folder, engine)
    engine.jobs.clear()

    assert submit(folder, engine).attempt == 2


@pytest.mark.parametrize("changed", [{"fingerprint": "b" * 64}, {"request": "anew"}])
def test_submission_of_something_else_beside_a_living_job_is_refused(
    folder: ExperimentFolder, changed: dict[str, str]
) -> None:
    engine = Engine()
    submit(folder, engine)

    with pytest.raises(OtherJobError, match=r"slurm job 1 trains with other settings.*--stop"):
        submit(folder, engine, **changed)

    engine.end("1", "cancelled")
    assert submit(folder, engine, **changed).id == "2"


def test_submission_that_asks_for_nothing_more_finds_the_job_that_trains_anew(folder: ExperimentFolder) -> None:
    engine = Engine()
    anew = submit(folder, engine, request="anew")

    assert submit(folder, engine) == dataclasses.replace(anew, state="running", reason="node1")
    with pytest.raises(OtherJobError):
        submit(folder, engine, request="another")


def test_submission_beside_another_launchers_job_is_refused(folder: ExperimentFolder) -> None:
    submit(folder, Engine())

    with pytest.raises(OtherJobError, match="slurm job 1"):
        submit(folder, Engine(name="other"))


def test_submission_beside_a_job_on_another_cluster_is_refused_until_that_has_ended(folder: ExperimentFolder) -> None:
    old, new = Engine(where="me@old"), Engine(where="me@new")
    note = submit(folder, old)

    with pytest.raises(OtherJobError, match=r"to slurm at me@old, not to slurm at me@new.*gone for good, remove"):
        submit(folder, new)

    old.end("1", "cancelled")
    assert look_up(folder, note, old).state == "cancelled"
    assert submit(folder, new).attempt == 2
    assert not any(name == note.name for name, _ in new.jobs.values())


def test_submission_takes_no_job_for_its_own_by_the_number_alone(folder: ExperimentFolder) -> None:
    engine = Engine()
    submit(folder, engine)
    engine.jobs = {"1": ("of somebody else", Observed(state="running"))}  # by a controller that was set up anew

    require_no_job(folder, lambda _: engine)
    assert submit(folder, engine).id == "2"


def test_job_that_is_looked_up_is_noted_only_while_nobody_follows_it(folder: ExperimentFolder) -> None:
    engine = Engine()
    note = submit(folder, engine)
    engine.end("1", "failed")

    with only_follower(folder):
        assert look_up(folder, note, engine).state == "failed"
        assert read_submission(folder) == note
    look_up(folder, note, engine)

    assert read_submission(folder) == dataclasses.replace(note, state="failed")


@dataclass
class Ending(Engine):
    """An engine whose jobs end when they have been looked at so many times more; `meanwhile` is done just before."""

    looks: int = 2
    meanwhile: Callable[[], object] = lambda: None

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        self.looks -= 1
        if self.looks == 0:
            self.meanwhile()
            self.end(job_id, "cancelled")
        return super().state(job_id, name=name)


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_job_that_was_asked_to_end_is_noted_at_its_end(folder: ExperimentFolder, name: str) -> None:
    engine = Ending(name=name, looks=3)
    note = submit(folder, engine)

    ended = await_end(folder, note, engine, seconds=60, every=0.01)

    assert ended == read_submission(folder) == dataclasses.replace(note, state="cancelled")


def test_job_that_does_not_end_in_time_stays_noted_as_at_work(folder: ExperimentFolder) -> None:
    engine = Engine()
    note = submit(folder, engine)

    assert await_end(folder, note, engine, seconds=0.05, every=0.01).state == "running"

    seen = read_submission(folder)
    assert seen is not None
    assert seen.state == "running"


@dataclass
class Silent(Engine):
    """An engine that does not answer when it is asked again so many times, and whose jobs have ended then."""

    silent: int = 2

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        self.silent -= 1
        if self.silent >= 0:
            raise UnreachableError("no answer")
        self.end(job_id, "cancelled")
        return super().state(job_id, name=name)


def test_engine_that_is_silent_while_a_job_ends_is_asked_again_until_the_time_is_up(folder: ExperimentFolder) -> None:
    engine = Silent()
    note = submit(folder, engine)
    engine.silent = 2
    assert await_end(folder, note, engine, seconds=60, every=0.01).state == "cancelled"
    engine.silent = 2
    with pytest.raises(UnreachableError):
        await_end(folder, note, engine, seconds=0, every=0.01)


def test_end_of_a_job_leaves_the_note_of_one_that_was_submitted_meanwhile(folder: ExperimentFolder) -> None:
    engine = Ending(looks=3)
    note = submit(folder, engine)
    engine.meanwhile = lambda: submit_again(
        folder, note, engine, saved=-1, command=command_of(folder), say=lambda _: None
    )

    assert await_end(folder, note, engine, seconds=60, every=0.01).state == "cancelled"

    seen = read_submission(folder)
    assert seen is not None
    assert (seen.attempt, seen.id, seen.state) == (2, "2", "waiting")


def test_end_of_a_job_is_noted_where_its_note_has_changed_since(folder: ExperimentFolder) -> None:
    engine = Ending(looks=2)
    note = submit(folder, engine)
    seen_by_another = dataclasses.replace(note, state="running", reason="node2")
    write_json(folder.launch, dataclasses.asdict(seen_by_another))

    await_end(folder, note, engine, seconds=60, every=0.01)

    assert read_submission(folder) == dataclasses.replace(note, state="cancelled")


def test_intent_that_the_engine_never_got_is_noted_as_unknown(folder: ExperimentFolder) -> None:
    engine = Engine(killed="before")
    with pytest.raises(Killed):
        submit(folder, engine)
    engine.killed = ""

    require_no_job(folder, lambda _: engine)

    seen = read_submission(folder)
    assert seen is not None
    assert (seen.id, seen.state) == (None, "unknown")
    assert submit(folder, engine).name == seen.name


def test_training_here_beside_a_living_job_is_refused(folder: ExperimentFolder) -> None:
    engine = Engine()
    require_no_job(folder, lambda _: engine)
    submit(folder, engine)

    with pytest.raises(OtherJobError, match="slurm job 1 is running on node1"):
        require_no_job(folder, lambda _: engine)

    engine.end("1", "failed")
    require_no_job(folder, lambda _: engine)


def test_submission_refused_by_the_engine_is_tried_again_under_the_same_name(folder: ExperimentFolder) -> None:
    class Refusing(Engine):
        def submit(self, command: TrainingCommand) -> str:
            raise LauncherError("no such partition")

    with pytest.raises(LauncherError):
        submit(folder, Refusing())
    refused = read_submission(folder)
    assert refused is not None

    assert submit(folder, Engine()).name == refused.name


def test_submission_refused_by_the_engine_leaves_the_way_to_another_cluster_open(folder: ExperimentFolder) -> None:
    class Refusing(Engine):
        def submit(self, command: TrainingCommand) -> str:
            raise LauncherError("no such partition")

    old, new = Refusing(where="me@old"), Engine(where="me@new")
    with pytest.raises(LauncherError):
        submit(folder, old)
    refused = read_submission(folder)
    assert refused is not None
    assert (refused.state, refused.reason) == ("failed", "no such partition")

    require_no_job(folder, lambda _: old)
    assert look_up(folder, refused, old) == refused
    note = submit(folder, new)

    assert (note.where, note.attempt, note.state) == ("me@new", 2, "waiting")


def test_submission_whose_answer_is_not_understood_is_not_taken_for_refused(folder: ExperimentFolder) -> None:
    class Mumbling(Engine):
        def submit(self, command: TrainingCommand) -> str:
            super().submit(command)
            raise LauncherError("sbatch answered 'welcome', need the id of a job")

    engine = Mumbling(where="me@old")
    with pytest.raises(LauncherError):
        submit(folder, engine)

    with pytest.raises(OtherJobError, match="may be at work"):
        submit(folder, Engine(where="me@new"))
    assert submit(folder, engine).id == "1"
    assert len(engine.jobs) == 1


@pytest.mark.parametrize("error", [LauncherError("sbatch is not installed here"), UnreachableError("nobody there")])
def test_submission_to_an_engine_that_cannot_be_asked_leaves_no_note(
    folder: ExperimentFolder, error: LauncherError
) -> None:
    class Absent(Engine):
        def _answer(self) -> None:
            raise error

    with pytest.raises(type(error), match=str(error)):
        submit(folder, Absent())

    assert read_submission(folder) is None
    require_no_job(folder, lambda _: Absent())
    assert submit(folder, Engine(where="me@login")).attempt == 1


def test_job_of_an_engine_that_is_not_installed_here_any_more_names_the_way_out(folder: ExperimentFolder) -> None:
    class Absent(Engine):
        def _answer(self) -> None:
            raise LauncherError("squeue is not installed here")

    note = submit(folder, Engine())

    with pytest.raises(LauncherError, match=r"squeue is not installed here; if that cluster .*remove .*launch\.json"):
        look_up(folder, note, Absent())
    with pytest.raises(LauncherError, match=r"remove .*launch\.json"):
        require_no_job(folder, lambda _: Absent())


def test_submission_again_counts_attempts_without_a_new_checkpoint(folder: ExperimentFolder) -> None:
    engine = Engine()
    note = submit(folder, engine, saved=4)

    def again(note: Submission, saved: int) -> Submission:
        return submit_again(folder, note, engine, saved=saved, command=command_of(folder), say=lambda _: None)

    second = again(note, 4)
    third = again(second, 4)
    fourth = again(third, 8)

    assert [each.lost for each in (note, second, third, fourth)] == [0, 1, 2, 0]
    assert fourth.attempt == 4


def test_job_name_has_letters_digits_and_dashes_only(folder: ExperimentFolder) -> None:
    name = submit(folder, Engine()).name

    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name.startswith("gpt-my-idea-rm-rf-aaaaaaaaaaaa-")
    assert len(name) <= 61  # with `-0`, a label of DNS


def test_job_names_of_copies_of_an_experiment_differ(tmp_path: Path) -> None:
    names = {submit(ExperimentFolder(root=tmp_path / copy / "same"), Engine()).name for copy in ("one", "two")}

    assert len(names) == 2


def test_note_that_is_damaged_is_named_with_its_remedy(folder: ExperimentFolder) -> None:
    submit(folder, Engine())
    folder.launch.write_text('{"launcher": "sl')

    with pytest.raises(UserError, match=r"launch\.json is damaged.*remove the file"):
        submit(folder, Engine())


def test_two_followers_of_one_training_are_refused(folder: ExperimentFolder) -> None:
    with (
        only_follower(folder),
        pytest.raises(LockedError, match="following the training's job"),
        only_follower(folder, wait_seconds=0.1),
    ):
        pass


def test_follower_waits_for_one_who_notes_how_the_job_is(folder: ExperimentFolder) -> None:
    noting = ExitStack()
    noting.enter_context(only_follower(folder))
    threading.Timer(0.3, noting.close).start()

    with only_follower(folder):
        pass


def test_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log, 3) == ""
    log.write_text("\n".join(map(str, range(100_000))))
    assert tail(log, 2) == "99998\n99999"

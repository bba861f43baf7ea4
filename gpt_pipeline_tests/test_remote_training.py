"""Following a job by what appears in the experiment's folder, on an engine in memory that runs no trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from gpt_pipeline.launchers.protocol import Observed, TrainingCommand, UnreachableError
from gpt_pipeline.launchers.submission import read_submission
from gpt_pipeline.orchestration.remote_training import MOST_LOST, Patience, train_remotely
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.folder_watch import Pulse
from gpt_pipeline.training.heartbeat import heartbeat_path
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.stopping import HANGS
from gpt_pipeline_tests.test_submission import Engine
from gpt_pipeline_tests.training_jobs import make_job, run

QUICK = Patience(look=0.01, ask=0.01, start=30.0, silent=0.2, stop=30.0)
SOON = dataclasses.replace(QUICK, start=0.3)
TRAIN = {"kind": "train", "step": 1, "tokens_seen": 64, "train_loss": 9.0, "tokens_per_second": 5.0, "mfu": None}
TRAIN |= {"learning_rate": 0.1, "gradient_norm": None, "memory_gb": None, "eta_seconds": 3.0}


@dataclasses.dataclass
class Acting(Engine):
    """An engine whose jobs do what `acts` says, in turn, each time that it is asked for their state."""

    acts: tuple[Callable[[], Observed | None], ...] = ()
    commands: list[TrainingCommand] = dataclasses.field(default_factory=list)
    cancelled: list[str] = dataclasses.field(default_factory=list)

    def submit(self, command: TrainingCommand) -> str:
        self.commands.append(command)
        self._left = list(self.acts)
        return super().submit(command)

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        if self.jobs[job_id][1].state == "running" and self._left:
            act = self._left.pop(0)
            self.jobs[job_id] = (self.jobs[job_id][0], act() or self.jobs[job_id][1])
        return super().state(job_id, name=name)

    def cancel(self, job_id: str, *, name: str | None = None) -> None:
        self.cancelled.append(job_id)
        super().cancel(job_id, name=name)

    kill = cancel


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    return make_job(tmp_path, hardware=HardwareConfig(device="cpu", launcher="slurm"))


class Told:
    """What the step would tell Dagster."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.jobs: list[str] = []


def train(job: TrainingJob, engine: Engine, *, patience: Patience = QUICK) -> Told:
    told = Told()
    train_remotely(
        job,
        engine,
        run_id="run",
        max_steps=12,
        receive=lambda message: told.messages.append(dict(message)),
        say=told.said.append,
        tell_job=told.jobs.append,
        patience=patience,
    )
    return told


def ends(state: str, **values: Any) -> Callable[[], Observed]:
    return lambda: Observed(state=state, **values)  # type: ignore[arg-type]


def beats(job: TrainingJob) -> Callable[[], None]:
    def beat() -> None:
        job.folder.root.mkdir(exist_ok=True)
        heartbeat_path(job.folder.root).write_text("{}")

    return beat


def writes(path: Path, text: str) -> Callable[[], None]:
    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    return write


def test_following_passes_on_what_the_trainer_writes_and_no_line_of_before(job: TrainingJob) -> None:
    metrics = job.folder.metrics
    old = {"kind": "event", "step": 0, "event": "stopped", "message": "of before"}
    writes(metrics, json.dumps(old) + "\n")()
    new = {"kind": "event", "step": 1, "event": "finished", "message": "It is done."}
    halves = json.dumps(TRAIN) + "\n" + json.dumps(new)[:10], json.dumps(new)[10:] + "\n"
    engine = Acting(acts=(*(writes(metrics, half) for half in halves), ends("succeeded")))

    told = train(job, engine)

    assert [each["text"] for each in told.messages if "of before" in each["text"]] == []
    assert told.messages[0]["text"].startswith("step 1/12  train_loss 9.0000")
    assert told.messages[-1]["text"] == "It is done."
    assert told.jobs == ["slurm job 1"]
    assert engine.commands[0].environment == {"GPT_PIPELINE_RUN": "run"}
    assert TrainingJob.read(engine.commands[0].job_file) == job


def test_following_a_trainer_that_refuses_its_job_fails_in_its_words(job: TrainingJob) -> None:
    def fails() -> Observed:
        note = read_submission(job.folder)
        assert note is not None
        writes(job.folder.jobs / note.log, "error: found 3, need 4; use 4\n```\n<img src=x> \x1b[2J\n")()
        return Observed(state="failed", exit_code=1)

    with pytest.raises(dg.Failure) as failure:
        train(job, Acting(acts=(fails,)))

    assert failure.value.description == "found 3, need 4; use 4"
    assert failure.value.allow_retries is False
    output = str(failure.value.metadata["output"].value)
    assert all(line.startswith("    ") for line in output.splitlines()), "a block that its text cannot end"
    assert "\x1b" not in output


@pytest.mark.parametrize("words", ["Segmentation fault", f"error: {HANGS} no progress for 600 s"])
def test_following_a_trainer_that_crashes_or_hangs_fails_so_that_a_retry_continues(
    job: TrainingJob, words: str
) -> None:
    def fails() -> Observed:
        note = read_submission(job.folder)
        assert note is not None
        writes(job.folder.jobs / note.log, f"{words}\n")()
        return Observed(state="failed", reason="FAILED, on node1", exit_code=139)

    with pytest.raises(dg.Failure) as failure:
        train(job, Acting(acts=(fails,)))

    description = failure.value.description or ""
    assert "slurm job 1 ended: failed (FAILED, on node1)" in description
    assert words in description
    assert failure.value.allow_retries


def test_following_a_silent_trainer_ends_its_jobs_and_gives_up_after_some_without_a_checkpoint(
    job: TrainingJob,
) -> None:
    engine = Acting(acts=(beats(job),))

    with pytest.raises(dg.Failure, match=rf"So did the {MOST_LOST - 1} before it, none with a new checkpoint"):
        train(job, engine)

    assert [name.rsplit("-", 1)[1] for name, _ in engine.jobs.values()] == ["1", "2", "3"]
    assert engine.cancelled == ["1", "2", "3"]


def test_following_a_job_whose_folder_nobody_else_sees_says_so_and_ends_it(job: TrainingJob) -> None:
    engine = Acting()

    with pytest.raises(dg.Failure, match=r"no sign of life of its trainer appeared in .*All nodes and this machine"):
        train(job, engine, patience=SOON)

    assert engine.cancelled == ["1"]
    assert len(engine.jobs) == 1


@pytest.mark.parametrize("seen", [True, False])
def test_following_a_silent_job_that_does_not_end_submits_nothing_beside_it(job: TrainingJob, seen: bool) -> None:
    class Hanging(Acting):
        def kill(self, job_id: str, *, name: str | None = None) -> None:
            self.cancelled.append(job_id)

    engine = Hanging(acts=(beats(job),) if seen else ())

    with pytest.raises(dg.Failure, match="does not end; nothing else is submitted") as failure:
        train(job, engine, patience=dataclasses.replace(SOON, stop=0.1))

    assert failure.value.allow_retries is False
    assert engine.cancelled == ["1"]
    assert len(engine.jobs) == 1


def test_following_a_silent_job_whose_engine_stops_answering_submits_nothing_beside_it(job: TrainingJob) -> None:
    class Leaving(Acting):
        def kill(self, job_id: str, *, name: str | None = None) -> None:
            self.away = True

    engine = Leaving(acts=(beats(job),))

    with pytest.raises(UnreachableError, match="nobody there"):
        train(job, engine, patience=dataclasses.replace(QUICK, stop=0.1))

    assert len(engine.jobs) == 1


def test_following_a_job_that_is_done_and_still_sends_waits_for_it(job: TrainingJob) -> None:
    def trains() -> None:
        run(job)

    engine = Acting(acts=(beats(job), trains, lambda: None, lambda: None, ends("succeeded")))

    train(job, engine, patience=SOON)

    assert engine.cancelled == []
    assert len(engine.jobs) == 1


def test_following_a_job_that_loses_its_nodes_submits_the_next_attempt(job: TrainingJob) -> None:
    engine = Acting(acts=(ends("timed_out", reason="NODE_FAIL"),))
    first = engine.submit

    def submit(command: TrainingCommand) -> str:
        if engine.jobs:
            engine.acts = (ends("succeeded"),)
        return first(command)

    engine.submit = submit  # type: ignore[method-assign]

    told = train(job, engine)

    assert told.jobs == ["slurm job 1", "slurm job 2"]
    assert any("ended early: timed out (NODE_FAIL)" in text for text in told.said)


def test_following_a_job_that_another_run_forced_submits_it_again_as_forced(job: TrainingJob) -> None:
    forced = dataclasses.replace(job, request="run 1")
    engine = Acting()

    def goes_away() -> None:
        engine.away = True

    engine.acts = (goes_away,)
    with pytest.raises(UnreachableError):
        train(forced, engine, patience=SOON)
    engine.away, engine.acts = False, (ends("succeeded"),)
    engine._left = [lambda: None, ends("timed_out", reason="NODE_FAIL")]

    train(job, engine)

    assert len(engine.jobs) == 2
    assert TrainingJob.read(job.folder.job) == forced


def test_following_a_job_whose_trainers_outlive_it_submits_the_next_when_they_have_left(job: TrainingJob) -> None:
    beat, left = heartbeat_path(job.folder.root), []

    def end() -> Observed:
        if len(engine.jobs) > 1:
            return Observed(state="succeeded")
        elsewhere = {"process": {"host": "node1", "pid": 1}, "run": "run", "step": 4}
        writes(beat, json.dumps(elsewhere))()
        threading.Timer(0.5, beat.unlink).start()
        return Observed(state="timed_out", reason="its driver was killed")

    class Asking(Acting):
        def submit(self, command: TrainingCommand) -> str:
            left.append(not beat.exists())
            return super().submit(command)

    engine = Asking(acts=(end,))

    train(job, engine)

    assert left == [True, True]


def test_following_a_job_that_somebody_cancels_fails_and_submits_nothing(job: TrainingJob) -> None:
    engine = Acting(acts=(ends("cancelled", reason="CANCELLED"),))

    with pytest.raises(dg.Failure, match="was cancelled, and not by this run") as failure:
        train(job, engine)

    assert failure.value.allow_retries is False
    assert len(engine.jobs) == 1


def test_following_with_an_engine_that_stays_away_gives_up_and_keeps_the_job(job: TrainingJob) -> None:
    engine = Acting()

    def goes_away() -> None:
        engine.away = True

    engine.acts = (goes_away,)

    with pytest.raises(UnreachableError):
        train(job, engine, patience=SOON)

    assert engine.cancelled == []
    engine.away = False
    engine._left = [lambda: None, lambda: None, ends("succeeded")]
    assert any("Found slurm job 1" in text for text in train(job, engine).said)
    assert len(engine.jobs) == 1


def test_following_with_an_engine_that_is_away_for_a_while_says_so_and_goes_on(job: TrainingJob) -> None:
    engine = Acting()
    answers = iter([None, UnreachableError("nobody there"), UnreachableError("nobody there"), "succeeded"])

    def state(job_id: str, *, name: str | None = None) -> Observed:
        answer = next(answers)
        if isinstance(answer, UnreachableError):
            raise answer
        return Observed(state=answer or "running")  # type: ignore[arg-type]

    engine.state = state  # type: ignore[method-assign]

    said = train(job, engine).said

    assert sum("nobody there" in text for text in said) == 1
    assert any("The engine answers again" in text for text in said)


def test_following_told_to_stop_asks_the_job_to_end_and_waits_for_it(job: TrainingJob) -> None:
    engine = Acting(acts=(lambda: os.kill(os.getpid(), signal.SIGTERM),))

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        train(job, engine)

    assert engine.cancelled == ["1"]
    note = read_submission(job.folder)
    assert note is not None
    assert note.state == "cancelled"


def test_pulse_is_timed_by_this_machines_clock_alone(job: TrainingJob) -> None:
    now = [100.0]
    pulse = Pulse(job.folder, clock=lambda: now[0])
    beats(job)()
    os.utime(heartbeat_path(job.folder.root), (10, 10))  # of a machine whose clock is wrong

    assert pulse.silence() == 0.0
    now[0] += 30
    assert pulse.silence() == 30.0
    assert pulse.was_felt

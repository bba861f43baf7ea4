"""What happens to a training when something around it breaks: memory, hangs, deaths."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.rollouts import Tally
from gpt_pipeline.storage.lock import folder_lock, is_locked
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.training.config import step_layout
from gpt_pipeline.training.device import CompiledModel, largest_proper_divisor
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.heartbeat import RUN_VARIABLE, heartbeat, read_heartbeat, trainer_state
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks, leave_process_group
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import COMPILING_SECONDS, EXIT_HUNG, OTHERS_SECONDS, StopFlag, Watchdog
from gpt_pipeline.training.update import Updater
from gpt_pipeline_tests.rl_jobs import make_rl_job
from gpt_pipeline_tests.training_jobs import CPU, Listener, T, make_job, trainer_command

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")


# Memory


@pytest.mark.parametrize(("number", "divisor"), [(1, None), (2, 1), (7, 1), (8, 4), (9, 3), (12, 6), (35, 7)])
def test_largest_proper_divisor_keeps_the_update_divisible(number, divisor):
    assert largest_proper_divisor(number) == divisor


@pytest.mark.parametrize("where", ["forward", "optimizer"])
def test_training_out_of_gpu_memory_names_the_micro_batch_to_try(tmp_path, monkeypatch, where):
    forward = LanguageModel.forward

    def full(self, ids, targets=None, weights=None, starts=None):
        if self.training:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, targets, weights, starts)

    def full_step(self, *arguments, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    if where == "forward":
        monkeypatch.setattr(LanguageModel, "forward", full)
    else:
        monkeypatch.setattr("gpt_pipeline.training.optimizer.Optimizer.step", full_step)
    job = make_job(tmp_path, training={"batch_size": 18, "micro_batch_size": 9})
    with pytest.raises(UserError, match=r"set training\.micro_batch_size: 3 .*\(an update keeps its 18 sequences"):
        run_job(job, Listener())


@pytest.mark.parametrize(
    ("keeps_little", "remedy"),
    [(False, r"set training\.gradient_checkpointing: true"), (True, r"lower data\.max_length or the model's size")],
)
def test_training_out_of_gpu_memory_with_one_sequence_says_what_else_helps(tmp_path, monkeypatch, keeps_little, remedy):
    def full(self, ids, targets=None, weights=None, starts=None):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LanguageModel, "forward", full)
    training = {"micro_batch_size": 1, "gradient_checkpointing": keeps_little}
    with pytest.raises(UserError, match=remedy):
        run_job(make_job(tmp_path, training=training), Listener())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_training_loss_that_is_not_finite_leaves_the_best_and_the_last_checkpoint(tmp_path, monkeypatch, value):
    job = make_job(tmp_path)
    forward = LanguageModel.forward
    calls = []

    def poisoned(self, ids, targets=None, weights=None, starts=None):
        loss = forward(self, ids, targets, weights, starts)
        calls.append(self.training)
        return loss * value if calls.count(True) > 12 else loss  # from update 7 on, estimates included

    monkeypatch.setattr(LanguageModel, "forward", poisoned)
    with pytest.raises(UserError, match=r"need finite numbers; the weights were not touched"):
        run_job(job, Listener())
    lines = read_metrics(job.folder.metrics)
    assert [line["event"] for line in lines if line["kind"] == "event"] == ["started", "not_finite"]
    assert max(line["step"] for line in lines) == 6
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)] == [4]


# Hangs


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        self.ended = threading.Event()
        """Set by a watchdog that gives up; it looks no more then."""

    def __call__(self) -> float:
        self.looks += 1
        return self.now

    def spend(self, seconds: float, *, at_once: float = 0.005) -> None:
        """Let so much time pass, a little at each look of whoever watches from another thread."""
        until = self.now + seconds
        while self.now < until:
            looks = self.looks
            self.now += at_once
            while self.looks == looks and not self.ended.is_set():
                time.sleep(0.0005)


def test_watchdog_allows_twenty_median_steps_where_steps_are_slow():
    clock = _Clock()
    watchdog = Watchdog(patience=600, say=lambda text: None, clock=clock)
    watchdog.beat(50_000)  # a resume: nothing is known of the steps before
    assert watchdog.allowed_seconds == 600
    for step in range(50_001, 50_006):
        clock.now += 100 if step != 50_003 else 5000  # one step with a validation
        watchdog.beat(step)
    assert watchdog.allowed_seconds == 2000


def test_watchdog_ends_a_hung_process_and_not_one_that_makes_progress():
    codes, said, clock = [], [], _Clock()

    def end(code: int) -> None:
        codes.append(code)
        clock.ended.set()

    with Watchdog(patience=0.4, say=said.append, clock=clock, end=end) as watchdog:
        clock.spend(0.6)  # before the first step it watches nothing
        for _ in range(30):
            watchdog.beat(1)  # between the batches of an estimate
            clock.now += 0.02
        assert codes == []
        clock.spend(0.6)
        assert clock.ended.wait(60)
    assert codes == [EXIT_HUNG]
    assert "after step 1" in said[0]


def test_watchdog_does_not_count_the_time_of_a_suspended_machine():
    clock = _Clock()
    ended = threading.Event()
    with Watchdog(patience=0.5, say=lambda text: None, clock=clock, end=lambda code: ended.set()) as watchdog:
        watchdog.beat(1)
        clock.now += 3600  # the lid was closed for an hour
        assert not ended.wait(0.2)


def test_watchdog_allows_what_is_granted_until_the_next_sign_of_work():
    clock = _Clock()
    with Watchdog(patience=0.1, say=lambda text: None, clock=clock, end=lambda code: clock.ended.set()) as watchdog:
        watchdog.beat(1)
        watchdog.goes_on(0.3)
        clock.spend(0.3)
        assert not clock.ended.is_set()
        watchdog.goes_on()
        clock.spend(0.09)
        assert not clock.ended.is_set()
        clock.spend(0.05)
        assert clock.ended.wait(60)


@pytest.fixture
def slowly(monkeypatch):
    """Have `run_job` watched by a clock of its own, with a patience of 0.1 s; the function spends 0.06 s on it."""
    clock = _Clock()
    watchdog = partial(Watchdog, clock=clock, end=lambda code: clock.ended.set())
    monkeypatch.setattr("gpt_pipeline.training.run.Watchdog", watchdog)
    yield partial(clock.spend, 0.06)
    assert not clock.ended.is_set()


def _slow(monkeypatch, where, name, spend, *, when=lambda *arguments: True):
    real = getattr(where, name)

    def slow(*arguments, **keywords):
        if when(*arguments):
            spend()
        return real(*arguments, **keywords)

    monkeypatch.setattr(where, name, slow)


@pytest.mark.parametrize("training", [True, False])
def test_update_or_estimate_in_many_slow_batches_is_no_hang(tmp_path, monkeypatch, slowly, training):
    _slow(monkeypatch, LanguageModel, "forward", slowly, when=lambda model, *_: model.training is training)
    job = make_job(tmp_path, training={"micro_batch_size": 1, "max_steps": 1, "warmup_steps": 0})
    assert run_job(job, Listener(), patience=0.1).finished


def test_rehearsal_of_slow_batches_is_no_hang(tmp_path, monkeypatch, slowly):
    monkeypatch.setattr(devices, "refuses_memory", lambda device: True)
    _slow(monkeypatch, LanguageModel, "forward", slowly)
    job = make_job(tmp_path, training={"max_steps": 1, "warmup_steps": 0})
    assert run_job(job, Listener(), patience=0.1).finished


def test_checkpoint_on_a_slow_disk_is_no_hang(tmp_path, monkeypatch, slowly):
    _slow(monkeypatch, torch, "save", lambda: [slowly() for _ in range(4)])
    monkeypatch.setattr("gpt_pipeline.training.trainer.SLOW_DISK", 1e4)  # bytes/s: a checkpoint here has 60 kB
    job = make_job(tmp_path, training={"max_steps": 3}, cadence={"save_every_n_iterations": 1})
    assert run_job(job, Listener(), patience=0.1).finished


def test_wait_for_another_process_at_a_boundary_or_between_batches_of_an_estimate_is_no_hang(
    tmp_path, monkeypatch, slowly
):
    _slow(monkeypatch, Ranks, "any", lambda: [slowly() for _ in range(4)])
    job = make_job(tmp_path, training={"max_steps": 2, "warmup_steps": 0})
    assert run_job(job, Listener(), patience=0.1).finished


def test_wait_for_another_process_in_the_first_updates_alone_may_take_long(tmp_path):
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    granted: list[float] = []
    try:
        job = make_job(tmp_path)
        layout = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=2)
        updater = Updater(
            make_model(job.model),
            job.training,
            layout=layout,
            compute=CPU,
            ranks=Ranks(world_size=2),
            goes_on=lambda seconds=0.0: granted.append(seconds),
        )
        ids = torch.zeros((layout.share, T), dtype=torch.int64)
        for step in range(3):
            updater.update(step, Batch(ids, ids))
    finally:
        leave_process_group()
    assert granted == [OTHERS_SECONDS] * 2 * 2 + [0.0] * 2  # before each update and after its one micro-batch


@pytest.mark.parametrize("slow", ["sampling", "comparing", "another process"])
def test_answers_that_are_sampled_or_compared_slowly_are_no_hang(tmp_path, monkeypatch, slowly, slow):
    monkeypatch.setattr("gpt_pipeline.training.rollout_feed.TOKENS_AT_ONCE", 40)
    if slow == "sampling":
        _slow(monkeypatch, LanguageModel, "forward_cached", slowly)
    elif slow == "comparing":  # without targets
        _slow(monkeypatch, LanguageModel, "forward", slowly, when=lambda *given: len(given) == 2)
    else:

        def is_tally(ranks, value):
            return value.shape == (len(Tally._fields),)

        _slow(monkeypatch, Ranks, "sum", lambda: [slowly() for _ in range(4)], when=is_tally)
    job = make_rl_job(tmp_path, training={"max_steps": 1, "warmup_steps": 0}, rl={"kl": 0.1})
    assert run_job(job, Listener(), patience=0.1).finished


def test_compiled_model_says_before_each_graph_how_long_it_may_take_to_compile():
    granted = []
    model = CompiledModel(torch.nn.Identity(), say=pytest.fail, goes_on=granted.append)
    model._compiled = [lambda *tensors: torch.zeros(())]
    ids = torch.zeros(2, 4)
    for weights in (None, None, ids):
        model(ids, ids, weights)
    with torch.no_grad():
        model(ids, ids, ids)
    assert granted == [COMPILING_SECONDS] * 3
    for length in range(100):  # answers of all lengths
        model(torch.zeros(2, length), None)
    assert len(granted) < 50


def test_watchdog_that_cannot_tell_anyone_ends_the_process_all_the_same(monkeypatch):
    monkeypatch.setattr("gpt_pipeline.training.stopping._SAY_SECONDS", 0.05)
    ended = threading.Event()
    block = threading.Event()
    with Watchdog(patience=0.1, say=lambda text: block.wait(30), end=lambda code: ended.set()) as watchdog:
        watchdog.beat(1)
        assert ended.wait(60)
    block.set()


@pytest.mark.slow
def test_trainer_process_that_hangs_shows_its_stacks_and_ends_for_a_restart(tmp_path):
    job = make_job(tmp_path)
    code = """
        import sys, time
        from pathlib import Path
        from gpt_pipeline.training.job import TrainingJob
        from gpt_pipeline.training.run import run_job
        from gpt_pipeline_tests.training_jobs import Listener

        def hang_in_this_function(step):
            if step == 6:
                time.sleep(600)

        run_job(TrainingJob.read(Path(sys.argv[1])), Listener(hang_in_this_function), patience=5.0)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), trainer_command(job)[-1]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == EXIT_HUNG, result.stderr
    assert "error: Training hangs: no progress for" in result.stderr
    assert "in hang_in_this_function" in result.stderr
    assert trainer_state(job.folder.root) == "died"
    assert not is_locked(job.folder.root)
    listener = Listener()
    assert run_job(job, listener).finished
    assert next(record["step"] for record in listener.records if record["kind"] == "train") in (5, 7)
    assert trainer_state(job.folder.root) == "none"


# Deaths


def test_heartbeat_tells_of_a_running_trainer_and_ends_with_it(tmp_path):
    job = make_job(tmp_path)
    seen = []

    def look(step: int) -> None:
        if step == 3:
            deadline = time.monotonic() + 60
            while read_heartbeat(job.folder.root) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append((trainer_state(job.folder.root), read_heartbeat(job.folder.root)))

    run_job(job, Listener(look), environment={RUN_VARIABLE: "run-7"})
    ((state, beat),) = seen
    assert state == "running"
    assert (beat.process, beat.run) == (ProcessId.here(), "run-7")
    assert beat.age_seconds < 60
    assert (trainer_state(job.folder.root), read_heartbeat(job.folder.root)) == ("none", None)


def test_heartbeat_goes_on_with_the_step(tmp_path):
    steps = iter(range(1000))
    with heartbeat(tmp_path, run="", step=lambda: next(steps), every=0.01):
        deadline = time.monotonic() + 60
        while (beat := read_heartbeat(tmp_path)) is None or beat.step < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_heartbeat_of_another_machine_is_running_until_it_is_old(tmp_path):
    with heartbeat(tmp_path, run="", step=lambda: 5):
        while read_heartbeat(tmp_path) is None:
            time.sleep(0.01)
        text = (tmp_path / "heartbeat.json").read_text()
    path = tmp_path / "heartbeat.json"
    path.write_text(text.replace(ProcessId.here().host, "elsewhere"))
    assert trainer_state(tmp_path) == "running"
    long_ago = time.time() - 300
    os.utime(path, (long_ago, long_ago))
    assert trainer_state(tmp_path) == "died"
    path.write_text("")  # what a power cut may leave
    assert trainer_state(tmp_path) == "none"


@posix_only
def test_trainer_process_killed_is_seen_to_have_died_and_its_successor_says_who_it_was(tmp_path):
    job = make_job(tmp_path, training={"max_steps": 100_000}, cadence={"save_every_n_iterations": 5})
    with subprocess.Popen(trainer_command(job), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 240
        while not list_checkpoints(job.folder.checkpoints) or read_heartbeat(job.folder.root) is None:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert trainer_state(job.folder.root) == "running"
        process = read_heartbeat(job.folder.root).process
        assert (process.pid, process.is_dead) == (child.pid, False)
        child.kill()
    assert process.is_dead
    assert trainer_state(job.folder.root) == "died"

    stop = StopFlag()
    stop.request(signal.SIGTERM)
    listener = Listener()
    run_job(job, listener, stop=stop)
    assert f"process {child.pid} on {process.host} (training test, since" in listener.messages[0]
    assert "ended without releasing it" in listener.messages[0]
    assert trainer_state(job.folder.root) == "none"
    listener = Listener()
    run_job(job, listener, stop=stop)
    assert not any("releasing it" in message for message in listener.messages)


def test_process_id_of_this_process_lives_and_others_are_told_apart():
    here = ProcessId.here()
    assert not here.is_dead
    assert ProcessId.from_text(dataclasses.asdict(here)) == here
    assert not dataclasses.replace(here, host="elsewhere", boot="other").is_dead  # nothing is known of it
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert dataclasses.replace(here, pid=child.pid, started="").is_dead


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_process_id_of_another_boot_or_start_is_dead():
    here = ProcessId.here()
    assert dataclasses.replace(here, boot="another").is_dead
    assert dataclasses.replace(here, started="1").is_dead
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not dataclasses.replace(here, pid=child.pid, started="").is_dead


def test_lock_taken_in_order_says_nothing(tmp_path):
    said = []
    for _ in range(2):
        with folder_lock(tmp_path, purpose="x", say=said.append):
            pass
    assert said == []

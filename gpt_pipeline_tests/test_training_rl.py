"""Trainings on sampled answers: what they reach, and that they do not depend on being stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.checkpoints.snapshot import Progress
from gpt_pipeline.errors import DataError, UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.rollouts import Tally
from gpt_pipeline.training.config import StepLayout
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import MetricsLog, Recorder, read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline.training.update import UpdateResult
from gpt_pipeline_tests.crashing import Killed
from gpt_pipeline_tests.rl_jobs import make_rl_job, write_prompts_stage
from gpt_pipeline_tests.training_jobs import Listener, run, trainer_command


def last_weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(list_checkpoints(job.folder.checkpoints)[-1].path).model)


def lines(job: TrainingJob, kind: str) -> list[dict]:
    return [record for record in read_metrics(job.folder.metrics) if record["kind"] == kind]


def unseconded(job: TrainingJob) -> list[dict]:
    timed = ("seconds", "time", "tokens_per_second", "eta_seconds", "memory_gb")
    kinds = lines(job, "train") + lines(job, "validation")
    return [{key: value for key, value in record.items() if key not in timed} for record in kinds]


def test_rl_of_a_bandit_reaches_the_optimum(tmp_path: Path) -> None:
    job = make_rl_job(tmp_path, training={"max_steps": 40, "learning_rate": 0.03}, cadence={"eval_freq": 40})
    run_job(job, Listener())
    before, after = lines(job, "validation")
    assert before["pass_at_1"] < 0.4
    assert before["pass_at_k"] > before["pass_at_1"]
    assert after["pass_at_1"] > 0.95
    assert after["error_rate"] == pytest.approx(1 - after["pass_at_1"])
    assert best_checkpoint(job.folder.checkpoints).step == 40
    first, last = lines(job, "train")[0], lines(job, "train")[-1]
    assert last["reward"] > 0.9 > first["reward"]
    assert last["entropy"] < first["entropy"]
    assert last["answer_tokens"] == pytest.approx(2, abs=0.3)  # the digit and the end
    assert last["ended"] > 0.9


def test_rl_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, parts = make_rl_job(tmp_path / "one"), make_rl_job(tmp_path / "two")
    run_job(whole, Listener())
    for step in (3, 8):
        stop = StopFlag()
        run_job(
            parts,
            Listener(lambda at, step=step, stop=stop: stop.set(signal.SIGTERM) if at == step else None),
            stop=stop,
        )
    run_job(parts, Listener())
    wanted, found = last_weights(whole), last_weights(parts)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert unseconded(whole) == unseconded(parts)


def test_rl_of_which_no_answer_is_better_than_another_leaves_the_weights(tmp_path: Path) -> None:
    write_prompts_stage(tmp_path / "prompts", expected="7")
    job = make_rl_job(tmp_path, training={"max_steps": 3, "weight_decay": 0.5, "average_weights": _mean()})
    run_job(job, Listener())
    start = load_checkpoint(Path(job.start_from.file)).model
    assert all(torch.equal(weight, start[name]) for name, weight in last_weights(job).items())
    (*_, last) = lines(job, "train")
    assert (last["step"], last["dropped_groups"], last["reward"], last["gradient_norm"]) == (3, 1.0, 0.0, 0.0)
    assert last["tokens_seen"] > 0


def _mean():
    from gpt_pipeline.training.config import AverageConfig

    return AverageConfig(decay=0.9)


def test_rl_line_has_the_distance_of_those_updates_where_it_was_measured(tmp_path: Path) -> None:
    layout = StepLayout(batch_size=1, micro_batch_size=1, max_length=1, world_size=1, max_steps=100_000)
    recorder = Recorder(
        Progress(),
        log=MetricsLog(tmp_path / "metrics.jsonl"),
        observer=Listener(),
        layout=layout,
        flops_per_token=1.0,
        peak_flops=None,
        peak_memory=lambda: None,
    )
    of_kept = Tally(groups=1, samples=2, reward=1, tokens=4, trained_tokens=4, distance=2)
    of_dropped = Tally(groups=1, dropped=1, samples=2, tokens=4)
    for step, tally in enumerate([of_kept, of_dropped, of_dropped], start=1):
        recorder.update(
            UpdateResult(
                step=step,
                train_loss=0.0,
                gradient_norm=0.0,
                learning_rate=0.1,
                tokens=4,
                figures=tally.figures(with_distance=True),
                loss_scale=None,
                skipped=False,
            )
        )
        if step > 1:
            recorder.flush()
    recorder.close()
    first, rest = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["updates"], first["distance"], first["reward"]) == (2, 0.5, 0.25)
    assert "distance" not in rest
    assert rest["reward"] == 0.0


@pytest.mark.slow
def test_rl_pays_for_its_distance_from_the_start(tmp_path: Path) -> None:
    free, bound = (
        make_rl_job(tmp_path / name, training={"max_steps": 25, "learning_rate": 0.03}, rl={"kl": kl})
        for name, kl in (("free", 1e-9), ("bound", 3.0))
    )
    run_job(free, Listener())
    run_job(bound, Listener())
    assert lines(free, "train")[0]["distance"] == pytest.approx(0, abs=1e-5)  # before the first update
    assert lines(bound, "validation")[-1]["pass_at_1"] < 0.7
    assert lines(free, "validation")[-1]["pass_at_1"] > 0.9


def test_rl_whose_start_weights_do_not_fit_beside_the_others_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LanguageModel.forward

    def bounded(self, ids, targets=None, *others):
        if targets is None:  # what the start weights are asked
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, targets, *others)

    monkeypatch.setattr(LanguageModel, "forward", bounded)
    monkeypatch.setattr(devices, "refuses_memory", lambda device: True)
    listener = Listener()
    with pytest.raises(UserError, match="the GPU's memory does not hold"):
        run_job(make_rl_job(tmp_path, rl={"kl": 0.1}), listener)
    assert listener.records == []


def test_rl_whose_answers_do_not_fit_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, append = make_rl_job(tmp_path, training={"micro_batch_size": 3}), KVCache.append

    def bounded(self, layer, k, v):
        keys, values = append(self, layer, k, v)
        if (len(keys), keys.size(2)) == (3, job.max_length):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return keys, values

    monkeypatch.setattr(KVCache, "append", bounded)
    monkeypatch.setattr(devices, "refuses_memory", lambda device: True)
    listener = Listener()
    with pytest.raises(UserError, match="the GPU's memory does not hold"):
        run_job(job, listener)
    assert listener.records == []


def test_rl_keeps_sampled_answers_with_their_rewards(tmp_path: Path) -> None:
    job = make_rl_job(tmp_path, training={"max_steps": 3})
    run_job(job, Listener())
    kept = [json.loads(line) for line in job.folder.samples.read_text().splitlines()]
    assert [line["step"] for line in kept] == [0] * 4 + [3] * 4
    assert kept[0]["expected"] == "1"
    for line in kept:
        for answer in line["answers"]:
            assert answer["reward"] == float(answer["ended"] and answer["text"] == "1")


def test_rl_killed_after_it_kept_answers_keeps_those_of_each_step_once(tmp_path: Path) -> None:
    cadence = {"eval_freq": 2, "save_every_n_iterations": 5}
    whole, killed = (
        make_rl_job(tmp_path / name, training={"max_steps": 8}, cadence=cadence) for name in ("one", "two")
    )
    run_job(whole, Listener())
    for step in (3, 7):  # of which the first has no checkpoint to go on from

        def fall(at: int, step: int = step) -> None:
            if at == step:
                raise Killed

        with pytest.raises(Killed):
            run_job(killed, Listener(fall))
    kept = killed.folder.samples.read_bytes()
    assert json.loads(kept.splitlines()[-1])["step"] == 6
    killed.folder.samples.write_bytes(kept + b'{"step": 8, "ques')  # torn off with its machine
    run_job(killed, Listener())
    assert killed.folder.samples.read_bytes() == whole.folder.samples.read_bytes()


def test_rl_in_micro_batches_gives_the_same_update(tmp_path: Path) -> None:
    whole = make_rl_job(tmp_path / "one", training={"max_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0})
    parts = make_rl_job(
        tmp_path / "two",
        training={"max_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0, "micro_batch_size": 5},
    )
    run_job(whole, Listener())
    run_job(parts, Listener())
    assert lines(whole, "train")[0]["gradient_norm"] == pytest.approx(
        lines(parts, "train")[0]["gradient_norm"], rel=1e-4
    )


def test_rl_continued_in_other_micro_batches_says_that_its_answers_may_differ(tmp_path: Path) -> None:
    job = make_rl_job(tmp_path, training={"max_steps": 4, "micro_batch_size": 6})
    run(job, stop_at=2)
    training = dataclasses.replace(job.training, micro_batch_size=8)
    cadence = dataclasses.replace(job.cadence, keep_last=5)
    messages = run(dataclasses.replace(job, training=training, cadence=cadence)).messages
    [warned] = [said for said in messages if said.startswith("Warning")]
    [free] = [said for said in messages if "to no effect" in said]
    assert "training.micro_batch_size: 6 -> 8" in warned
    assert "evaluation.keep_last: 3 -> 5" in free
    assert "micro_batch_size" not in free


def test_rl_without_its_prompts_says_what_to_do(tmp_path: Path) -> None:
    job = make_rl_job(tmp_path)
    (tmp_path / "prompts" / "manifest.json").unlink()
    with pytest.raises(DataError, match="materialize rl_prompts first"):
        run_job(job, Listener())


def test_rl_job_survives_its_file(tmp_path: Path) -> None:
    job = make_rl_job(tmp_path, rl={"kl": 0.5})
    job.write(tmp_path / "job.json")
    assert TrainingJob.read(tmp_path / "job.json") == job


@pytest.mark.slow
def test_rl_that_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = make_rl_job(tmp_path / "one"), make_rl_job(tmp_path / "two")
    whole, killed = (
        dataclasses.replace(job, cadence=dataclasses.replace(job.cadence, save_every_n_iterations=2, keep_last=9))
        for job in (whole, killed)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(trainer_command(whole), check=True, env=environment, stdout=subprocess.DEVNULL)
    for at in (3, 7):
        process = subprocess.Popen(trainer_command(killed), env=environment, stdout=subprocess.DEVNULL)
        while not any(record["step"] >= at for record in _trained(killed)):
            assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(trainer_command(killed), check=True, env=environment, stdout=subprocess.DEVNULL)
    wanted, found = last_weights(whole), last_weights(killed)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def _trained(job: TrainingJob) -> list[dict]:
    return lines(job, "train") if job.folder.metrics.is_file() else []


@pytest.mark.slow
def test_rl_on_two_processes_gives_the_update_of_one(tmp_path: Path) -> None:
    one, two = (
        make_rl_job(tmp_path / name, training={"max_steps": 2, "learning_rate": 1e-3}) for name in ("one", "two")
    )
    run_job(one, Listener())
    two.write(two.folder.job)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, "-m", "gpt_pipeline.training", str(two.folder.job)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    for alone, shared in zip(lines(one, "train"), lines(two, "train"), strict=True):
        for key in ("reward", "dropped_groups", "entropy", "answer_tokens", "gradient_norm", "train_loss"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6)
    for alone, shared in zip(lines(one, "validation"), lines(two, "validation"), strict=True):
        assert shared["pass_at_k"] == pytest.approx(alone["pass_at_k"])
    wanted, found = last_weights(one), last_weights(two)
    assert all(torch.allclose(wanted[name], found[name], atol=1e-5) for name in wanted)

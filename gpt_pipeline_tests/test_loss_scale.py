"""fp16 with loss scaling, on the CPU, where torch computes in float16 too."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.validation import token_losses
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.training import loss_scale
from gpt_pipeline.training.config import step_layout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.loss_scale import LossScale
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.update import NotFiniteError, Updater
from gpt_pipeline_tests.training_jobs import BATCH, VOCABULARY, T, make_job, run, trainer_command

FP16 = Compute(device=torch.device("cpu"), precision="fp16", compile=False, peak_flops=None)
FP32 = dataclasses.replace(FP16, precision="fp32")


def _updater(job, compute: Compute = FP16) -> Updater:
    torch.manual_seed(0)
    layout = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=1)
    return Updater(make_model(job.model), job.training, layout=layout, compute=compute, ranks=Ranks())


def _batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(*(torch.randint(0, VOCABULARY, (BATCH, T), generator=generator) for _ in range(2)))


def _weights(updater: Updater) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in updater.model.state_dict().items()}


def _train_lines(job) -> list[dict]:
    return [line for line in read_metrics(job.folder.metrics) if line["kind"] == "train"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_updates_in_fp16_are_those_of_fp32_but_for_rounding(tmp_path, optimizer):
    job = make_job(tmp_path, training={"optimizer": optimizer, "gradient_clip": 0.05})
    half, whole = _updater(job), _updater(job, FP32)
    for step in range(3):
        found, expected = (each.update(step, _batch(step)).result() for each in (half, whole))
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.02)  # unscaled, and above the clip
        assert found.gradient_norm > job.training.gradient_clip
        assert (found.loss_scale, found.skipped, expected.loss_scale) == (2.0**16, False, None)
    moved = _weights(whole)
    for name, weight in _weights(half).items():
        assert torch.linalg.vector_norm(weight - moved[name]) < 0.02 * torch.linalg.vector_norm(moved[name]) + 1e-3, (
            name
        )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_update_beyond_fp16_is_skipped_halves_the_scale_and_training_goes_on(tmp_path, optimizer):
    updater = _updater(make_job(tmp_path, training={"optimizer": optimizer}))
    updater.update(0, _batch(0)).result()
    before = _weights(updater)
    steps = [float(state["step"]) for state in updater.optimizer.state()["states"][0]["state"].values()]
    handle = updater.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.inf)
    beyond = updater.update(1, _batch(1))
    handle.remove()
    after = updater.update(2, _batch(2))  # begun before anybody has looked
    assert beyond.result().skipped
    assert beyond.result().loss_scale == 2.0**16
    assert updater.loss_scale is not None
    assert (after.result().skipped, after.result().loss_scale, float(updater.loss_scale.value)) == (False, 2**15, 2**15)
    assert any(not torch.equal(weight, before[name]) for name, weight in _weights(updater).items())
    made = [float(state["step"]) for state in updater.optimizer.state()["states"][0]["state"].values()]
    assert made == [step + 1 for step in steps]  # of three updates two count


def test_update_skipped_changes_neither_weights_nor_moments(tmp_path):
    updater = _updater(make_job(tmp_path))
    updater.update(0, _batch(0)).result()
    before, moments = _weights(updater), updater.optimizer.state()["states"][0]["state"][0]["exp_avg"].clone()
    updater.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.nan)
    assert updater.update(1, _batch(1)).result().skipped
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(updater).items())
    assert torch.equal(updater.optimizer.state()["states"][0]["state"][0]["exp_avg"], moments)


def test_gradient_that_no_scale_mends_stops_the_training(tmp_path):
    updater = _updater(make_job(tmp_path, training={"batch_size": 1, "micro_batch_size": 1}))
    before = _weights(updater)
    updater.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.nan)
    batch = Batch(*(part[:1] for part in _batch(0).tensors[:2]))
    assert updater.loss_scale is not None
    updater.loss_scale.value.fill_(2.0)
    assert updater.update(0, batch).result().skipped
    with pytest.raises(NotFiniteError, match=r"before update 2: .*precision: bf16 or fp32"):
        updater.update(1, batch).result()
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(updater).items())


def test_loss_beyond_fp16_stops_the_training_at_once(tmp_path):
    updater = _updater(make_job(tmp_path))
    with torch.no_grad():
        updater.model.transformer.h[0].mlp.c_fc.weight.fill_(1e6)  # infinite in fp16
    with pytest.raises(NotFiniteError, match=r"found loss (nan|inf)"):
        updater.update(0, _batch(0)).result()


def test_scale_doubles_after_enough_good_updates_and_stays_within_its_bounds(monkeypatch):
    monkeypatch.setattr(loss_scale, "_GROWTH_INTERVAL", 3)
    scale, good, bad = LossScale(torch.device("cpu")), torch.tensor(False), torch.tensor(True)
    seen = []
    for overflow in (good, good, good, good, good, bad, good, good, good):
        scale.update(overflow)
        seen.append(math.log2(scale.value))
    assert seen == [16, 16, 17, 17, 17, 16, 16, 16, 17]
    for _ in range(60):
        scale.update(good)
    assert scale.value == 2.0**32
    for _ in range(60):
        scale.update(bad)
    assert scale.value == 1.0


_SHORT = {"precision": "fp16", "batch_size": 2, "micro_batch_size": 1, "max_steps": 6}
_SELDOM = {"eval_freq": 6, "save_every_n_iterations": 6}


def test_training_in_fp16_stopped_and_resumed_equals_the_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "_FIRST", 2.0**22)  # beyond fp16: the first updates find the scale
    monkeypatch.setattr(loss_scale, "_GROWTH_INTERVAL", 2)
    job = make_job(tmp_path, training=_SHORT, cadence=_SELDOM)
    run(job)
    lines = _train_lines(job)
    skipped = sum(line["skipped_updates"] for line in lines)
    assert skipped > 0
    assert all((line["gradient_norm"] is None) == bool(line["skipped_updates"]) for line in lines)
    assert lines[-1]["loss_scale"] != lines[0]["loss_scale"]

    again = dataclasses.replace(job, experiment_folder=str(tmp_path / "again"))
    run(again, stop_at=3)
    run(again)
    keys = ("step", "train_loss", "gradient_norm", "loss_scale", "skipped_updates")
    assert [[line[key] for key in keys] for line in _train_lines(again)] == [[x[key] for key in keys] for x in lines]
    last, expected = (list_checkpoints(each.folder.checkpoints)[-1] for each in (again, job))
    assert last.weights_sha256 == expected.weights_sha256
    assert load_checkpoint(last.path).loss_scale == load_checkpoint(expected.path).loss_scale


def test_training_in_fp16_resumed_without_a_scale_begins_with_the_first(tmp_path):
    whole = make_job(tmp_path, training={**_SHORT, "precision": "fp32", "max_steps": 2}, cadence=_SELDOM)
    run(whole, stop_at=1)
    run(dataclasses.replace(whole, training=dataclasses.replace(whole.training, precision="fp16")))
    assert {line.get("loss_scale") for line in _train_lines(whole)} == {None, 2.0**16}


def test_model_trained_in_fp16_is_evaluated_and_writes_in_fp32(tmp_path):
    job = make_job(tmp_path, training={**_SHORT, "max_steps": 1}, cadence=_SELDOM)
    run(job)
    model = load_model(list_checkpoints(job.folder.checkpoints)[-1].path, device="cpu")[0]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert token_losses(model, torch.randint(0, VOCABULARY, (1, T + 1))).isfinite().all()
    [text] = generate(model, [[VOCABULARY - 1]], max_new_tokens=4, context_length=T)
    assert len(text.tokens) == 4


@pytest.mark.slow
def test_two_processes_in_fp16_skip_the_same_updates_as_one(tmp_path, monkeypatch):
    one = make_job(tmp_path, training={**_SHORT, "optimizer": "muon"}, cadence=_SELDOM)
    one = dataclasses.replace(one, model=dataclasses.replace(one.model, dropout=0.0))
    two = dataclasses.replace(one, experiment_folder=str(tmp_path / "two"))
    # What two processes average is twice as large in each. Their checkpoints keep a scale beyond fp16.
    for job, first in ((one, 2.0**22), (two, 2.0**21)):
        monkeypatch.setattr(loss_scale, "_FIRST", first)
        run(job, stop_at=1)
    run(one)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, *trainer_command(two)[1:]], env=environment, capture_output=True, check=True)
    found, expected = _train_lines(two), _train_lines(one)
    assert {line["skipped_updates"] for line in expected} == {0, 1}
    assert [line["skipped_updates"] for line in found] == [line["skipped_updates"] for line in expected]
    assert [2 * line["loss_scale"] for line in found] == [line["loss_scale"] for line in expected]
    assert [line["train_loss"] for line in found] == pytest.approx([x["train_loss"] for x in expected], rel=1e-3)

"""What happens between two looks at the device: deferred results, skipped updates, compiling, garbage."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import time

import pytest
import torch

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.config import step_layout
from gpt_pipeline.training.device import CompiledModel, Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.optimizer import Optimizer
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import NotFiniteError, Updater
from gpt_pipeline_tests.training_jobs import BATCH, VOCABULARY, Listener, T, make_job

CPU = Compute(device=torch.device("cpu"), compile=False, peak_flops=None)


def _updater(job, *, model: LanguageModel | None = None, compute: Compute = CPU, **changes) -> Updater:
    torch.manual_seed(0)
    plan = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=1)
    model = make_model(job.model) if model is None else model
    return Updater(model, job.training, layout=plan, compute=compute, ranks=Ranks(), **changes)


def _batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(*(torch.randint(0, VOCABULARY, (BATCH, T), generator=generator) for _ in range(2)))


def _numbers(job) -> list[tuple]:
    keys = ("kind", "step", "tokens_seen", "train_loss", "val_loss", "gradient_norm", "learning_rate")
    return [
        tuple(line.get(key) for key in keys) for line in read_metrics(job.folder.metrics) if line["kind"] != "event"
    ]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_training_that_looks_at_results_later_writes_and_trains_the_same(tmp_path, monkeypatch, in_flight):
    prompt = make_job(tmp_path)
    run_job(prompt, Listener())
    late = dataclasses.replace(prompt, experiment_folder=str(tmp_path / "late"))
    monkeypatch.setattr(Compute, "updates_in_flight", in_flight)
    run_job(late, Listener())
    assert _numbers(late) == _numbers(prompt)
    weights = [list_checkpoints(job.folder.checkpoints)[-1].weights_sha256 for job in (late, prompt)]
    assert weights[0] == weights[1]


def test_speed_counts_all_the_time_of_updates_that_are_looked_at_later(tmp_path, monkeypatch):
    job, forward, pause = make_job(tmp_path), LanguageModel.forward, 0.05

    def slow(self, *arguments):
        time.sleep(pause * self.training)  # as a GPU's queue that is full
        return forward(self, *arguments)

    monkeypatch.setattr(LanguageModel, "forward", slow)
    monkeypatch.setattr(Compute, "updates_in_flight", 1)
    run_job(job, Listener())
    lines = [line for line in read_metrics(job.folder.metrics) if line["kind"] == "train"]
    seconds = sum(line["updates"] * BATCH * T / line["tokens_per_second"] for line in lines)
    assert seconds >= 12 * BATCH // 2 * pause


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_update_that_is_not_finite_and_all_after_it_change_no_weight(tmp_path, optimizer):
    updater = _updater(make_job(tmp_path, training={"optimizer": optimizer}))
    updater.update(0, _batch(0)).result()
    before = {name: tensor.clone() for name, tensor in updater.model.state_dict().items()}
    moments = [s["exp_avg"].clone() for s in updater.optimizer.state()["states"][0]["state"].values()]

    handle = updater.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.inf)
    poisoned = updater.update(1, _batch(1))
    handle.remove()
    later = updater.update(2, _batch(2))  # begun before anybody has looked
    with pytest.raises(NotFiniteError, match=r"before update 2: found loss 6\.\d+ and gradient norm (nan|inf)"):
        poisoned.result()
    assert math.isfinite(later.result().train_loss)
    for name, tensor in updater.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    states = updater.optimizer.state()["states"][0]["state"].values()
    assert all(torch.equal(state["exp_avg"], moment) for state, moment in zip(states, moments, strict=True))
    assert {float(state["step"]) for state in states} == {1.0}


def test_training_that_learns_late_of_a_number_that_is_not_finite_names_its_step(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    monkeypatch.setattr(Compute, "updates_in_flight", 2)
    forward = LanguageModel.forward
    calls = []

    def poisoned(self, ids, targets=None, weights=None, starts=None):
        calls.extend([1] * self.training)
        return forward(self, ids, targets, weights, starts) * (
            math.nan if self.training and len(calls) == 9 else 1
        )  # update 5

    monkeypatch.setattr(LanguageModel, "forward", poisoned)
    with pytest.raises(NotFiniteError, match="before update 5: found loss nan"):
        run_job(job, Listener())
    (event,) = [line for line in read_metrics(job.folder.metrics) if line.get("event") == "not_finite"]
    assert (event["step"], event["tokens_seen"]) == (4, 4 * BATCH * T)
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)] == [4]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_divides_the_gradients_as_clipping_would(tmp_path, name):
    job = make_job(tmp_path, training={"optimizer": name})
    weights = []
    for in_the_step in (True, False):
        torch.manual_seed(0)
        model = make_model(job.model)
        optimizer = Optimizer(model, job.training)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) / (1 if in_the_step else 8)
        optimizer.step(0, 0.1, divisor=torch.tensor(8.0 if in_the_step else 1.0), skip=torch.tensor(0.0))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def _broken_forward(graph, inputs):
    from torch._dynamo.exc import TorchDynamoException  # the base of what torch's own compilers raise

    raise TorchDynamoException("no compiler here")


def _broken_backward(graph, inputs):
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(fw_compiler=lambda module, _: module.forward, bw_compiler=_broken_forward)(graph, inputs)


@pytest.mark.parametrize("backend", [_broken_forward, _broken_backward])
def test_model_that_does_not_compile_trains_as_it_is_and_says_so(tmp_path, monkeypatch, backend):
    job = make_job(tmp_path)
    plain = _updater(job)
    expected = [plain.update(step, _batch(step)).result().train_loss for step in range(2)]

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    said: list[str] = []
    updater = _updater(job, compute=dataclasses.replace(CPU, compile=True), say=said.append)
    found = [updater.update(step, _batch(step)).result().train_loss for step in range(2)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(said) == 1
    assert "no compiler here" in said[0]
    assert not updater.evaluator.is_compiled


def test_model_that_does_not_compile_on_a_gpu_takes_the_loss_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=_broken_forward))
    monkeypatch.setattr(Compute, "on_gpu", True)
    updater = _updater(make_job(tmp_path), compute=dataclasses.replace(CPU, compile=True), say=lambda _: None)
    assert updater.model.loss_piece is None
    updater.update(0, _batch(0))
    assert updater.model.loss_piece == dataclasses.replace(CPU, compile=False).loss_piece == 8192


def test_memory_that_is_full_while_the_model_compiles_is_no_reason_to_train_without(tmp_path, monkeypatch):
    def full(graph, inputs):
        raise torch.OutOfMemoryError("no memory to try kernels in")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=full))
    updater = _updater(make_job(tmp_path), compute=dataclasses.replace(CPU, compile=True), say=pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        updater.update(0, _batch(0))
    assert updater.evaluator.is_compiled


def test_compiled_model_does_not_hide_errors_of_the_model_itself():
    model = CompiledModel(torch.nn.Linear(2, 2), say=pytest.fail)
    with pytest.raises(TypeError):
        model(torch.zeros(1, 2), torch.zeros(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_training_leaves_the_garbage_collector_as_it_was(tmp_path, frozen):
    gc.unfreeze()
    if frozen:
        gc.freeze()
    try:
        run_job(make_job(tmp_path, training={"max_steps": 1}), Listener())
        assert gc.isenabled()
        assert (gc.get_freeze_count() > 0) is frozen
    finally:
        gc.freeze()  # as conftest.py has done

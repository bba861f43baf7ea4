"""Micro-batches found by trying: a CPU stands for a GPU whose memory holds so many sequences."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.costs import Precision
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.planning.memory import expected_micro_batch
from gpt_pipeline.training.config import TrainingConfig, cpu_micro_batch_size
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import Updater
from gpt_pipeline_tests.training_jobs import Listener, T, make_job, run


@pytest.fixture
def memory(monkeypatch):
    """Give this machine's CPU the ways of a GPU; the function sets how many tokens a forward pass may have, and how
    many of its billion bytes other programs hold."""
    most, others, sizes = [10**9], [0], []
    forward = LanguageModel.forward

    def bounded(self, ids, targets=None, weights=None, starts=None):
        sizes.append(len(ids))
        if ids.numel() > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, targets, weights, starts)

    def hold(tokens: int, held_by_others: int = 0) -> list[int]:
        most[0], others[0] = tokens, held_by_others
        sizes.clear()
        return sizes

    monkeypatch.setattr(LanguageModel, "forward", bounded)
    monkeypatch.setattr(devices, "refuses_memory", lambda device: True)
    monkeypatch.setattr(devices, "memory_of", lambda device: (10**9, 10**9))
    monkeypatch.setattr(devices, "held_by_others", lambda device: others[0])
    monkeypatch.setattr(devices, "name_of", lambda device: "a small GPU")
    return hold


def _job(folder, **training):
    return make_job(folder, training={"batch_size": 12, "max_steps": 2, "micro_batch_size": "auto", **training})


def _weights(job):
    return load_checkpoint(list_checkpoints(job.folder.checkpoints)[-1].path)


@pytest.mark.parametrize(("tokens", "size"), [(12 * T, 12), (11 * T, 6), (5 * T, 4), (3 * T, 3), (T, 1)])
def test_micro_batch_auto_is_the_largest_divisor_that_the_memory_holds(tmp_path, memory, tokens, size):
    memory(tokens)
    job = _job(tmp_path)
    run(job)
    assert json.loads(job.folder.micro_batch.read_text())["micro_batch_size"] == size


def test_micro_batch_auto_on_a_memory_that_holds_no_sequence_says_what_else_helps(tmp_path, memory):
    memory(T - 1)
    with pytest.raises(UserError, match=r"set training\.gradient_checkpointing: true"):
        run_job(_job(tmp_path), Listener())


def test_micro_batch_auto_is_remembered_and_found_anew_on_a_smaller_card(tmp_path, memory):
    memory(6 * T)
    job = _job(tmp_path)
    run(job, stop_at=1)
    seen = memory(6 * T)
    run(job)
    assert max(seen) == 6
    memory(3 * T)
    run(dataclasses.replace(job, training=dataclasses.replace(job.training, max_steps=3), fingerprint="b" * 64))
    assert json.loads(job.folder.micro_batch.read_text())["micro_batch_size"] == 3


@pytest.mark.slow
def test_micro_batch_auto_is_as_large_as_before_once_others_have_left_the_memory(tmp_path, memory):
    job, tried = _job(tmp_path, max_steps=8), []
    for stop_at, tokens, others in ((1, 12 * T, 0), (2, 2 * T, 700_000_000), (3, 12 * T, 10_000_000)):
        sizes = memory(tokens, others)
        listener = run(job, stop_at=stop_at)
        tried.append(max(sizes))
        assert any("other programs hold 0.7 GB more of it" in text for text in listener.messages) == (others > 10**8)
    assert tried == [12, 12, 12]
    assert json.loads(job.folder.micro_batch.read_text())["micro_batch_size"] == 12


@pytest.mark.slow
def test_micro_batch_auto_found_beside_others_is_found_anew_without_them(tmp_path, memory):
    job = _job(tmp_path, max_steps=8)
    memory(2 * T, 700_000_000)
    run(job, stop_at=1)
    sizes = memory(12 * T, 690_000_000)
    run(job, stop_at=2)
    assert max(sizes) == 2
    memory(12 * T)
    run(job, stop_at=3)
    assert json.loads(job.folder.micro_batch.read_text())["micro_batch_size"] == 12


def test_fixed_micro_batch_that_does_not_fit_fails_before_the_first_update(tmp_path, memory):
    memory(5 * T)
    listener = Listener()
    with pytest.raises(UserError, match=r"set training\.micro_batch_size: 3 "):
        run_job(_job(tmp_path, micro_batch_size=6), listener)
    assert listener.records == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rehearsal_changes_no_bit_of_a_training_or_of_its_resume(tmp_path, monkeypatch, optimizer):
    found, rehearsals = {}, []
    rehearse = Updater.rehearse

    def counted(self, batch):
        rehearsals.append(len(batch.inputs))
        rehearse(self, batch)

    monkeypatch.setattr(Updater, "rehearse", counted)
    for name in ("plain", "rehearsed"):
        if name == "rehearsed":
            monkeypatch.setattr(devices, "refuses_memory", lambda device: True)
        job = make_job(
            tmp_path,
            training={"optimizer": optimizer, "max_steps": 6},
            experiment_folder=str(tmp_path / name),
        )
        run(job, stop_at=3)
        run(job)
        found[name] = _weights(job)
    assert rehearsals == [2, 2]  # at the start and after the resume of the second
    one, other = found["plain"], found["rehearsed"]
    for key, value in one.model.items():
        assert torch.equal(value, other.model[key]), key
    assert repr(one.optimizer) == repr(other.optimizer)
    assert repr(one.random) == repr(other.random)


def test_micro_batch_auto_on_a_cpu_has_some_thousand_tokens():
    assert [cpu_micro_batch_size(share, max_length=512) for share in (1, 2, 3, 8)] == [1, 2, 1, 2]
    assert cpu_micro_batch_size(12, max_length=128) == 6
    assert cpu_micro_batch_size(8, max_length=4096) == 1


def test_plan_expects_of_auto_the_largest_divisor_that_the_estimate_says_fits(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text(
        "experiment_name: e\ndata: {num_samples: 100, max_length: 1024}\nmodel: {dropout: 0.0}\n"
        "training: {batch_size: 48, micro_batch_size: auto}\nstorage: {base_folder: s}\n"
    )
    config = load_experiment(file).config
    layout = config.step_layout(steps_per_epoch=1)
    gpu = Precision(cuda=True, bf16=True, compiled=False, loss_piece=8192)

    def expected(gigabytes: float) -> int:
        return expected_micro_batch(config, layout, precision=gpu, memory=round(gigabytes * 1e9))

    sizes = [expected(size) for size in (3, 6, 8, 12, 24, 80)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 48
    assert all(48 % size == 0 for size in sizes)
    assert expected_micro_batch(config, layout, precision=gpu, memory=None) == 48
    assert expected_micro_batch(config, layout, precision=replace(gpu, cuda=False, bf16=False), memory=None) == 1


def test_micro_batch_size_other_than_a_number_or_auto_is_refused():
    assert TrainingConfig(micro_batch_size="auto").given_micro_batch_size is None
    with pytest.raises(UserError, match="micro_batch_size: found 0"):
        TrainingConfig(micro_batch_size=0)

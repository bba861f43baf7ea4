"""Muon: equal to torch's, whatever is made orthogonal together, and no wait for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.config import MuonConfig, TrainingConfig
from gpt_pipeline.training.muon import momentum_at
from gpt_pipeline.training.optimizer import Optimizer
from gpt_pipeline_tests.training_jobs import make_job

_NO, _YES = torch.tensor(0.0), torch.tensor(1.0)
_VARIANTS = (MuonConfig(), MuonConfig(split_qkv=True))


def _model(architecture: Any = "gpt2") -> LanguageModel:
    torch.manual_seed(0)
    model: LanguageModel = make_model(
        ModelConfig(architecture=architecture, n_layer=2, n_head=2, n_embd=32, context_length=8, vocab_size=50)
    )
    return model


def _optimizer(model: LanguageModel, muon: MuonConfig, **changes: Any) -> Optimizer:
    return Optimizer(model, TrainingConfig(optimizer="muon", muon=muon, **changes))


def _give_gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _matrices(model: LanguageModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter, role in model.roles() if role == "matrix"}


def _torchs(model: LanguageModel) -> torch.optim.Optimizer:
    return torch.optim.Muon(_matrices(model).values(), lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


def _assert_same_way(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Assert that each matrix came the same way; batches may round bfloat16 another way than single products."""
    for name, before in start.items():
        way = (expected[name] - before).norm()
        assert (found[name] - expected[name]).norm() < 0.01 * way, name


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "nanochat"])
def test_muon_updates_as_torchs_and_continues_its_state(architecture):
    ours, theirs = _model(architecture), _model(architecture)
    start = {name: matrix.detach().clone() for name, matrix in _matrices(ours).items()}
    optimizer, reference = _optimizer(ours, MuonConfig()), _torchs(theirs)
    for seed in range(2):
        _give_gradients(theirs, seed)
        reference.step()
    state = {**optimizer.state(), "states": [optimizer.state()["states"][0], deepcopy(reference.state_dict())]}
    optimizer.restore(state)
    ours.load_state_dict(theirs.state_dict())
    for seed in range(2, 4):
        _give_gradients(theirs, seed)
        reference.step()
        _give_gradients(ours, seed)
        optimizer.step(seed, 0.1, divisor=_YES, skip=_NO)
    _assert_same_way(_matrices(ours), _matrices(theirs), start)
    momenta = [entry["momentum_buffer"] for entry in optimizer.state()["states"][1]["state"].values()]
    for found, expected in zip(momenta, reference.state_dict()["state"].values(), strict=True):
        torch.testing.assert_close(found, expected["momentum_buffer"])


@pytest.mark.parametrize("muon", _VARIANTS, ids=str)
def test_muon_update_that_is_skipped_changes_neither_weights_nor_state(muon):
    model = _model()
    optimizer = _optimizer(model, muon)
    _give_gradients(model, 0)
    optimizer.step(0, 0.1, divisor=_YES, skip=_NO)
    before = [parameter.clone() for parameter in model.parameters()]
    state = [value.clone() for entry in optimizer.state()["states"][1]["state"].values() for value in entry.values()]
    for value in (1.0, float("nan"), float("inf")):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step(1, 0.1, divisor=torch.tensor(value), skip=_YES)
    after = [value for entry in optimizer.state()["states"][1]["state"].values() for value in entry.values()]
    assert len(after) == len(state) == len(_matrices(model))
    for found, expected in zip([*model.parameters(), *after], [*before, *state], strict=True):
        assert torch.equal(found, expected)


class _Waits(TorchDispatchMode):
    """Remembers each time that the host reads a number which the device computes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("muon", _VARIANTS, ids=str)
def test_muon_update_does_not_wait_for_the_device(muon):
    model = _model()
    optimizer = _optimizer(model, muon)
    for step in range(2):
        _give_gradients(model, step)
        with _Waits() as waits:
            optimizer.step(step, 0.1, divisor=_YES, skip=_NO)
        assert waits.found == []


def _update(muon: MuonConfig, name: str, **changes: Any) -> Tensor:
    """Return what the first update, from random gradients, adds to the matrix whose name ends with `name`."""
    model = _model()
    optimizer = _optimizer(model, muon, **{"weight_decay": 0.0, **changes})
    [matrix] = [matrix for found, matrix in _matrices(model).items() if found.endswith(f"h.0.{name}")]
    before = matrix.detach().clone()
    _give_gradients(model, 0)
    optimizer.step(0, 1.0, divisor=_YES, skip=_NO)
    return matrix.detach() - before


def test_muon_with_split_qkv_makes_each_of_the_three_orthogonal():
    fused, split = (_update(MuonConfig(split_qkv=split), "attn.c_attn.weight") for split in (False, True))
    scale = 0.2 * 32**0.5
    for part in split.view(3, 32, 32) / scale:
        assert 0.3 < torch.linalg.svdvals(part)[0] < 1.3
    assert torch.linalg.svdvals(split / scale)[0] > 1.3  # together they are not
    assert torch.linalg.svdvals(fused / scale / 3**0.5)[0] < 1.3
    assert split.square().mean().sqrt() == pytest.approx(float(fused.square().mean().sqrt()), rel=0.1)


def test_momentum_rises_linearly_to_its_value():
    config = MuonConfig(momentum=0.95, momentum_warmup_steps=10)
    assert [momentum_at(step, config) for step in (0, 5, 10, 99)] == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert momentum_at(0, MuonConfig()) == 0.95


def test_details_of_muon_without_it_are_refused():
    with pytest.raises(
        ConfigError, match=r"muon\.split_qkv: found True, need no such key with training.optimizer=adamw"
    ):
        TrainingConfig(muon=MuonConfig(split_qkv=True))


def test_job_with_details_of_muon_is_read_as_it_was_written(tmp_path):
    job = make_job(tmp_path, training={"optimizer": "muon", "muon": MuonConfig(split_qkv=True, momentum=0.9)})
    job.write(tmp_path / "job.json")
    assert type(job).read(tmp_path / "job.json") == job
    assert dataclasses.asdict(job)["training"]["muon"]["split_qkv"] is True

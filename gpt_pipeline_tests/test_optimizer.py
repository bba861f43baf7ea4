"""The groups of parameters: their rates, and the numbers that checkpoints know them by."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.adamw import AdamW
from gpt_pipeline.training.config import LearningRateFactors, TrainingConfig
from gpt_pipeline.training.optimizer import Optimizer

_EVERY = list(itertools.product(("gpt2", "llama", "nanochat"), ("adamw", "muon"), (True, False)))
_FACTORS = LearningRateFactors(embedding=3.0, head=0.5, matrices=2.0, vectors=0.25)


def _model(architecture: Any, *, tie_weights: bool) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "vocab_size": 30}
    model: LanguageModel = make_model(ModelConfig(architecture=architecture, tie_weights=tie_weights, **shape))
    return model


def _two_groups(model: LanguageModel, optimizer: str) -> list[list[str]]:
    """Return the names of parameters as the first versions numbered them: what decays, then what does not; Muon's."""
    roles = [(name, role) for name, _, role in model.roles()]
    muon = [name for name, role in roles if role == "matrix" and optimizer == "muon"]
    decayed = [name for name, role in roles if role != "vector" and name not in muon]
    return [decayed + [name for name, role in roles if role == "vector"], *([muon] if muon else [])]


def _stepped(model: LanguageModel, config: TrainingConfig, rate: float = 0.01) -> Optimizer:
    """Return an optimizer after one update from gradients that depend on the parameter only."""
    optimizer = Optimizer(model, config)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step(0, rate, divisor=torch.tensor(1.0), skip=torch.tensor(0.0))
    return optimizer


@pytest.mark.parametrize(("architecture", "name", "tied"), _EVERY)
@pytest.mark.parametrize("factors", [LearningRateFactors(), _FACTORS], ids=["neutral", "factors"])
def test_optimizer_numbers_parameters_as_checkpoints_made_so_far_do(architecture, name, tied, factors):
    model = _model(architecture, tie_weights=tied)
    names = {id(parameter): found for found, parameter in model.named_parameters()}
    optimizer = Optimizer(model, TrainingConfig(optimizer=name, learning_rate_factors=factors))
    found = [[names[id(parameter)] for parameter in part] for part in optimizer.parameters]
    assert found == _two_groups(model, name)


def test_adamw_gives_parameters_and_state_of_torchs_class_to_the_bit() -> None:
    torch.manual_seed(0)
    weights, gradients = torch.randn(2, 5, 7), torch.randn(4, 2, 5, 7)
    gradients[1] = torch.nan  # of an update that is skipped
    ours, theirs = ([part.clone().requires_grad_() for part in weights] for _ in range(2))
    decays = (0.1, 0.0)
    groups = [
        [{"params": [p], "weight_decay": decay} for p, decay in zip(own, decays, strict=True)] for own in (ours, theirs)
    ]
    adamw = AdamW(groups[0], learning_rate=0.01)
    reference = torch.optim.AdamW(groups[1], lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for number, gradient in enumerate(gradients):
        for own in (ours, theirs):
            for p, part in zip(own, gradient, strict=True):
                p.grad = part.clone()
        divisor, skip = torch.tensor(1.7), torch.tensor(float(number == 1))
        reference.grad_scale, reference.found_inf = divisor, skip
        adamw.step(divisor=divisor, skip=skip)
        reference.step()
    assert all(map(torch.equal, ours, theirs))
    found, expected = adamw.state_dict(), reference.state_dict()
    assert [group["params"] for group in found["param_groups"]] == [each["params"] for each in expected["param_groups"]]
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert list(found["state"][number]) == list(state)
        assert all(torch.equal(found["state"][number][key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_with_other_groups_takes_over_the_state_of_each_parameter(name):
    model = _model("gpt2", tie_weights=False)
    state = deepcopy(_stepped(model, TrainingConfig(optimizer=name)).state())
    assert len(state["states"][0]["param_groups"]) == 2  # the layout of all checkpoints so far
    other = Optimizer(model, TrainingConfig(optimizer=name, learning_rate_factors=_FACTORS))
    assert len(other.state()["states"][0]["param_groups"]) > 2
    other.restore(state)
    for found, expected in zip(other.state()["states"], state["states"], strict=True):
        assert found["state"].keys() == expected["state"].keys()
        for number, values in expected["state"].items():
            assert all(torch.equal(found["state"][number][key], value) for key, value in values.items())


def _way(model: LanguageModel, config: TrainingConfig, rate: float) -> dict[str, Tensor]:
    """Return what the first update at `rate` adds to each parameter."""
    model = deepcopy(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _stepped(model, config, rate)
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("architecture", "name", "tied"), _EVERY)
def test_learning_rate_factors_multiply_the_rate_of_what_they_name(architecture, name, tied):
    model = _model(architecture, tie_weights=tied)
    found = _way(model, TrainingConfig(optimizer=name, learning_rate_factors=_FACTORS), 0.01)
    factor = {"embedding": 3.0, "head": 0.5, "matrix": 2.0, "vector": 0.25}
    at_rates = {value: _way(model, TrainingConfig(optimizer=name), 0.01 * value) for value in factor.values()}
    for parameter, _, role in model.roles():
        torch.testing.assert_close(found[parameter], at_rates[factor[role]][parameter], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_learning_rate_factor_that_is_no_factor_is_refused(value):
    with pytest.raises(ConfigError, match=r"head: found .*, need a finite number, 0 or above"):
        LearningRateFactors(head=value)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("scales", [True, False])
def test_rehearsal_of_an_optimizer_leaves_the_state_of_an_update_and_no_change(monkeypatch, name, scales):
    monkeypatch.setattr(devices, "scales_in_optimizer", lambda device: scales)
    model, config = _model("gpt2", tie_weights=True), TrainingConfig(optimizer=name)
    before = deepcopy(model.state_dict())
    optimizer = Optimizer(model, config)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.rehearse()
    stepped = _stepped(_model("gpt2", tie_weights=True), config)
    assert [_kept(part) for part in optimizer.state()["states"]] == [_kept(part) for part in stepped.state()["states"]]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _kept(state: dict[str, Any]) -> dict[int, dict[str, torch.Size]]:
    """Return what is kept of each parameter, and of which shape."""
    return {number: {key: value.shape for key, value in own.items()} for number, own in state["state"].items()}

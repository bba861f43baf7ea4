"""What a model costs against the model itself: its parameters, FLOPs, activations and optimizer state."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable
from functools import partial
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.model import loss
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import (
    Precision,
    activation_bytes,
    flops_per_token,
    loss_bytes,
    memory_need,
    optimizer_bytes,
    parameter_count,
)
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.rollouts import RecordedDraws, target_log_probabilities
from gpt_pipeline.training.config import OptimizerName, TrainingConfig
from gpt_pipeline.training.optimizer import Optimizer

_TINY = ModelConfig(n_layer=2, n_head=4, n_embd=64, context_length=256, dropout=0.0)
_EAGER = Precision(cuda=False, bf16=False, compiled=False, loss_piece=1024)
_ODD = [
    ModelConfig(n_layer=3, n_head=2, n_embd=8, context_length=13, qkv_bias=True),
    ModelConfig(n_layer=3, n_head=2, n_embd=8, context_length=13, mlp_width=20, tie_weights=False),
    ModelConfig(architecture="llama", n_layer=3, n_head=4, n_embd=24, n_kv_head=2),
    ModelConfig(architecture="llama", n_layer=2, n_head=2, n_embd=24, mlp_width=20, tie_weights=False),
    ModelConfig(architecture="nanochat", n_layer=3, n_head=4, n_embd=24, n_kv_head=1, mlp_width=30),
    ModelConfig(architecture="nanochat", n_layer=2, n_head=2, n_embd=24, tie_weights=False),
]
_BLOCKS: list[dict] = [
    {},
    {"mlp_width": 96},
    {"architecture": "llama"},
    {"architecture": "llama", "n_kv_head": 2, "tie_weights": False},
    {"architecture": "nanochat"},
    {"architecture": "nanochat", "n_kv_head": 1, "mlp_width": 96},
]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ModelConfig(), 124_412_160),
        (ModelConfig(qkv_bias=True), 124_439_808),
        (ModelConfig(tie_weights=False), 163_009_536),
    ],
)
def test_parameter_count_of_gpt2_is_the_known_one(config, count):
    assert parameter_count(config) == count


@pytest.mark.parametrize("config", _ODD)
def test_parameter_count_is_that_of_the_model_itself(config: ModelConfig) -> None:
    with torch.device("meta"):
        assert parameter_count(config) == make_model(config).num_parameters


def test_flops_per_token_of_gpt2_follow_palm():
    config = ModelConfig()
    products = 124_412_160 - 1024 * 768
    assert flops_per_token(config, max_length=1024) == pytest.approx(6 * products + 12 * 12 * 768 * 1024)
    untied = dataclasses.replace(config, tie_weights=False)
    assert flops_per_token(untied, max_length=1024) == pytest.approx(flops_per_token(config, max_length=1024))


@pytest.mark.parametrize("changes", [*_BLOCKS, {"tie_weights": False, "qkv_bias": True}])
def test_flops_are_those_that_torch_counts(changes: dict) -> None:
    config = dataclasses.replace(_TINY, **changes)
    with torch.device("meta"):
        model = make_model(config)
        ids = torch.zeros((2, 128), dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(ids, ids).backward()
    planned = 256 * flops_per_token(config, max_length=128)
    assert planned == pytest.approx(counted.get_total_flops(), rel=0.002)  # biases and norms count as matrices


def _bytes_kept(model: LanguageModel, ids: torch.Tensor, *, bf16: bool) -> int:
    """What autograd keeps of a forward pass, without parameters and without the loss's logits."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    logits = (ids.numel(), model.config.vocab_size)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if tensor.dim() and tensor.shape != logits and pointer not in own:
            kept[pointer] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model(ids, ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("dropout", "length"), [(0.0, 256), (0.1, 64), (0.1, 256), (0.1, 200)])
def test_activations_are_those_that_autograd_keeps(dropout: float, length: int, bf16: bool) -> None:
    _check_activations(dataclasses.replace(_TINY, dropout=dropout), length=length, bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("changes", _BLOCKS[1:])
def test_activations_of_each_architecture_are_those_that_autograd_keeps(
    changes: dict, dropout: float, bf16: bool
) -> None:
    _check_activations(dataclasses.replace(_TINY, dropout=dropout, vocab_size=500, **changes), length=200, bf16=bf16)


def _check_activations(config: ModelConfig, *, length: int, bf16: bool) -> None:
    model = make_model(config).train()
    found = _bytes_kept(model, torch.zeros((3, length), dtype=torch.int64), bf16=bf16)
    precision = dataclasses.replace(_EAGER, bf16=bf16)
    planned = activation_bytes(config, tokens=3 * length, max_length=length, precision=precision)
    assert planned == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("changes", _BLOCKS)
def test_activations_of_recomputed_blocks_are_their_inputs_and_those_of_one(changes: dict) -> None:
    config = dataclasses.replace(_TINY, vocab_size=500, n_layer=4, **changes)
    ids = torch.zeros((3, 200), dtype=torch.int64)
    model = make_model(config).train()
    kept = _bytes_kept(model, ids, bf16=False)
    model.recompute_blocks(True)
    forward = _bytes_kept(model, ids, bf16=False)  # the blocks' inputs, and what is kept outside of them
    of_blocks = kept - (forward - config.n_layer * ids.numel() * config.n_embd * 4)
    planned = activation_bytes(config, tokens=600, max_length=200, precision=_EAGER, recompute=True)
    assert planned == pytest.approx(forward + of_blocks / config.n_layer, rel=0.03)
    assert planned < 0.5 * kept


class _PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that lived together, of those made in the block; `known` were made before."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in (one for one in tree_iter(out) if isinstance(one, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("piece", "cuda"), [(None, False), (64, False), (64, True), (256, False)])
@pytest.mark.parametrize("soft_cap", [0.0, 15.0])
def test_loss_needs_the_memory_that_was_planned(
    monkeypatch: pytest.MonkeyPatch, soft_cap: float, piece: int | None, cuda: bool, bf16: bool
) -> None:
    if cuda:
        monkeypatch.setattr(loss, "_rows_at_a_time", len)  # as on a GPU
    else:
        monkeypatch.setattr(loss, "_CACHED_NUMBERS", 4000)  # far fewer rows than a piece, as with real vocabularies
    config = ModelConfig(architecture="nanochat", n_head=2, n_embd=32, vocab_size=4000, logit_soft_cap=soft_cap)
    x, head = torch.randn(256, 32, requires_grad=True), torch.randn(4000, 32, requires_grad=True)
    targets = torch.zeros(256, dtype=torch.int64)
    with _PeakBytes([x, head, targets]) as found:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            nats = loss.summed_loss(x, head, targets, padded_vocab_size=4000, piece=piece, soft_cap=config.soft_cap)
        nats.backward()
    precision = Precision(cuda=cuda, bf16=bf16, compiled=False, loss_piece=piece)
    planned = loss_bytes(config, tokens=256, precision=precision)
    elsewhere = 0 if piece else 4 * 32 * (4000 + 256)  # in a plan: the gradients of head and hidden states
    casts = 2 * 32 * (4000 + 256) if bf16 else 0  # of what the products read
    assert (0.4 if cuda else 0.6) * planned < found.peak < 1.02 * (planned + elsewhere + casts)


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("changes", [{}, {"architecture": "llama"}, {"architecture": "nanochat", "tie_weights": False}])
def test_optimizer_state_is_that_of_torch_after_a_step(changes: dict, optimizer: str) -> None:
    config = dataclasses.replace(_TINY, vocab_size=500, **changes)
    model = make_model(config)
    training = TrainingConfig(optimizer=optimizer)  # type: ignore[arg-type]
    made = Optimizer(model, training)
    model(torch.zeros((1, 8), dtype=torch.int64), torch.zeros((1, 8), dtype=torch.int64)).backward()
    made.step(0, 1e-3, divisor=torch.tensor(1.0), skip=torch.tensor(0.0))
    tensors = [
        value
        for state in made.state()["states"]
        for entry in state["state"].values()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    assert optimizer_bytes(config, training.optimizer) == sum(
        tensor.numel() * tensor.element_size() for tensor in tensors
    )


@pytest.mark.parametrize("architecture", ["gpt2", "nanochat"])
def test_update_of_muon_needs_the_memory_that_was_planned(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, n_layer=4, n_head=4, n_embd=64, vocab_size=100, context_length=16)
    training = TrainingConfig(optimizer="muon")
    model = make_model(config)
    made = Optimizer(model, training)
    ids = torch.zeros((1, 8), dtype=torch.int64)
    model(ids, ids).backward()
    step = partial(made.step, learning_rate=1e-3, divisor=torch.tensor(1.0), skip=torch.tensor(0.0))
    step(0)  # makes the state
    model(ids, ids).backward()
    states = [entry for state in made.state()["states"] for entry in state["state"].values()]
    kept = [value for entry in states for value in entry.values() if isinstance(value, torch.Tensor)]
    kept += [tensor for each in model.parameters() for tensor in (each, each.grad)]
    with _PeakBytes(kept) as found:
        step(1)
    planned = memory_need(
        config, optimizer=training.optimizer, micro_batch_size=1, max_length=8, precision=_EAGER
    ).update
    assert 0.7 * planned < found.peak < 1.02 * planned


def test_asking_the_start_weights_needs_the_memory_that_was_planned() -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=4000, context_length=64, tie_weights=False)
    model = make_model(config)
    ids = torch.zeros((8, 64), dtype=torch.int64)
    planned = {
        asked: memory_need(
            config, optimizer="adamw", micro_batch_size=1, max_length=64, precision=_EAGER, asked_tokens=asked
        )
        for asked in (0, 128)
    }
    with _PeakBytes(model.parameters()) as found:
        target_log_probabilities(model, ids, ids, at_once=128)
    assert 0.7 * planned[128].asking < found.peak < 1.1 * planned[128].asking
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    assert planned[128].state - planned[0].state == pytest.approx(weights, rel=0.01)  # without the vocabulary's padding
    assert planned[128].device - planned[0].device > planned[128].state - planned[0].state


@pytest.mark.parametrize("n_kv_head", [8, 2])
def test_sampling_needs_the_memory_that_was_planned(n_kv_head: int) -> None:
    config = ModelConfig(
        architecture="llama", n_layer=8, n_head=8, n_kv_head=n_kv_head, n_embd=64, vocab_size=200, context_length=256
    )
    model = make_model(config)
    planned = {
        rows: memory_need(config, optimizer="adamw", micro_batch_size=1, max_length=256, precision=_EAGER, sampled=rows)
        for rows in (0, 8)
    }
    draws = RecordedDraws([str(row) for row in range(8)], Sampling(), length=254)
    prompts = [[row, 1] for row in range(8)]
    with _PeakBytes(model.parameters()) as found:
        generate(model, prompts, max_new_tokens=254, context_length=256, batch_size=8, ends=(), draws=draws)
    assert 0.6 * planned[8].sampling < found.peak < 1.2 * planned[8].sampling
    assert planned[0].sampling == 0
    assert (
        dataclasses.replace(planned[8], activations=0, loss=0, update=0).device
        == planned[8].device - (planned[8].activations + planned[8].loss) + planned[8].sampling
    )


def test_memory_grows_with_the_micro_batch_but_not_its_state() -> None:
    small, large = (
        memory_need(_TINY, optimizer="adamw", micro_batch_size=size, max_length=128, precision=_EAGER)
        for size in (2, 8)
    )
    assert small.state == large.state == 16 * parameter_count(_TINY)
    assert large.device > small.device


def test_optimizer_that_no_one_has_costed_is_refused():
    with pytest.raises(ValueError, match="found 'lion'"):
        optimizer_bytes(_TINY, "lion")

"""Faster ways to the same numbers: the loss in pieces, products by another library, attention in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from gpt_pipeline.model import attention, linear, loss
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import CPU_ATTENTION_QUERIES, ModelConfig
from gpt_pipeline.model.dropout import Dropout, draw_kept

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")


def _loss_and_gradients(x: Tensor, weight: Tensor, targets: Tensor, *, piece: int | None) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    nats = loss.summed_loss(x, weight, targets, padded_vocab_size=128, piece=piece)
    (nats / len(targets)).backward()
    return [nats.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("cached", [1, 303, 10**6])
@pytest.mark.parametrize("piece", [1, 7, 20, 40])
def test_loss_in_pieces_has_the_loss_and_gradients_of_all_logits_at_once(monkeypatch, piece, cached):
    monkeypatch.setattr(loss, "_CACHED_NUMBERS", cached)
    torch.manual_seed(0)
    x, weight, targets = torch.randn(40, 16), torch.randn(101, 16), torch.randint(0, 101, (40,))
    found = _loss_and_gradients(x, weight, targets, piece=piece)
    expected = _loss_and_gradients(x, weight, targets, piece=None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expected[0], F.cross_entropy(x @ weight.t(), targets, reduction="sum"))


def test_loss_in_pieces_equals_the_plain_one_in_bf16():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(64, 32), 0.1 * torch.randn(500, 32), torch.randint(0, 500, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (_loss_and_gradients(x, weight, targets, piece=piece) for piece in (16, None))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-4)


def test_loss_in_pieces_without_gradients_is_the_same_number():
    model = make_model(ModelConfig(n_layer=1, n_head=1, n_embd=16, context_length=32)).eval()
    ids, targets = torch.randint(0, 50257, (2, 2, 32))
    whole = model(ids, targets).detach()
    for model.loss_piece in (None, 24):
        with torch.no_grad():
            torch.testing.assert_close(model(ids, targets), whole)


def test_model_with_its_loss_in_pieces_has_the_same_gradients_head_and_embedding_tied():
    torch.manual_seed(0)
    model = make_model(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, dropout=0.0))
    ids, targets = torch.randint(0, 50257, (2, 2, 32))
    gradients = []
    for piece in (None, 10):
        model.loss_piece = piece
        model.zero_grad()
        model(ids, targets).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@has_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_linear_by_onednn_equals_torchs_with_its_gradients(monkeypatch, bias):
    torch.manual_seed(0)
    layer = linear.Linear(48, 80, bias=bias)
    x = torch.randn(3, 40, 48, requires_grad=True)
    results = []
    for faster in (True, False):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda faster=faster: faster)
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        assert ("OneDnn" in y.grad_fn.next_functions[0][0].name()) == faster
        y.square().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@has_onednn
def test_linear_gives_no_gradient_that_nobody_wants(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    weight = torch.randn(5, 4, requires_grad=True)
    linear.linear(torch.randn(64, 4), weight.detach(), None)  # nothing to differentiate
    linear.linear(torch.randn(64, 4), weight).sum().backward()
    assert weight.grad is not None


def _attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> list[Tensor]:
    inputs = [one.clone().requires_grad_() for one in (q, k, v)]
    y = attention._causal_attention(*inputs, dropout=dropout)
    y.square().sum().backward()
    return [y.detach(), *(one.grad for one in inputs)]


def test_attention_in_blocks_equals_attention_at_once(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 300, 8)
    # A probability so small that no score of these is dropped, and yet the way of attention with dropout.
    found, expected = (_attend(q, k, v, dropout=dropout) for dropout in (1e-12, 0.0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_attention_in_blocks_drops_as_many_scores_as_asked_for():
    torch.manual_seed(0)
    # Scores alike and values 1: each output is the share kept / (1 - dropout), 1 on average.
    y, *_ = _attend(torch.zeros(1, 4, 512, 8), torch.zeros(1, 4, 512, 8), torch.ones(1, 4, 512, 8), dropout=0.25)
    assert y[:, :, 300:].mean().item() == pytest.approx(1.0, abs=0.01)
    assert y[:, :, 300:].std().item() == pytest.approx((0.25 / 0.75 / 400) ** 0.5, rel=0.2)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 1e-12])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2**16,), (2, 70_001)])
def test_masks_of_dropout_are_those_that_torch_draws_and_leave_its_generator_where_it_leaves_it(shape, rate):
    torch.manual_seed(3)
    found = draw_kept(shape, rate)
    after = torch.rand(3)
    torch.manual_seed(3)
    # What `bernoulli_` does with a number; its own path differs between builds of torch.
    assert torch.equal(found, torch.rand(shape, dtype=torch.float64) < 1 - rate)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_torchs_with_the_same_gradient_and_nothing_outside_training(dtype):
    layer, x = Dropout(0.3), torch.randn(7, 100, 50).to(dtype).requires_grad_()
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    results = []
    for drop in (layer.train(), torch.nn.Dropout(0.3)):
        x.grad = None
        torch.manual_seed(1)
        y = drop(x)
        y.float().square().sum().backward()
        results.append([y.detach(), x.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert 0.25 < (results[0][0] == 0).float().mean().item() < 0.35


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [5, CPU_ATTENTION_QUERIES, 300])
def test_attention_with_dropout_equals_torchs_with_the_same_masks(length, dtype):
    torch.manual_seed(0)
    inputs = [part.requires_grad_() for part in torch.randn(3, 2, 3, length, 8).to(dtype)]

    def gradients(y: Tensor) -> list[Tensor]:
        y.float().square().sum().backward()
        found = [y.detach(), *(part.grad for part in inputs)]
        for part in inputs:
            part.grad = None
        return found

    def torchs_own() -> Tensor:
        parts = []
        q, k, v = (part.float() for part in inputs)
        for start in range(0, length, CPU_ATTENTION_QUERIES):
            end = min(start + CPU_ATTENTION_QUERIES, length)
            visible = torch.ones(end - start, end, dtype=torch.bool).tril(start)
            scores = (q[:, :, start:end] @ k[:, :, :end].mT / 8**0.5).masked_fill(~visible, -torch.inf)
            parts.append(F.dropout(scores.softmax(3), 0.2) @ v[:, :, :end])
        return torch.cat(parts, 2).to(dtype)

    results = []
    for attend in (lambda: attention._causal_attention(*inputs, dropout=0.2), torchs_own):
        torch.manual_seed(5)
        results.append(gradients(attend()))
    for one, other in zip(*results, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(
            one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5 + 1e-3 * (dtype == torch.bfloat16)
        )

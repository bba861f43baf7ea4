"""Rows of several documents in a model: as if each document were there alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

ARCHITECTURES = ("gpt2", "llama", "nanochat")
T = 24


def tiny_model(architecture: str) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_layer=2,
        n_head=4,
        n_embd=32,
        vocab_size=100,
        context_length=T,
        dropout=0.0,
        **({} if architecture == "gpt2" else {"n_kv_head": 2}),
    )
    model = make_model(config)
    with torch.no_grad():  # nanochat's begin at zero, where attention does not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def starts_of(lengths: list[int]) -> Tensor:
    """The documents' beginnings in a row of T positions that they fill from its beginning on, padding behind them."""
    bounds = [0, *itertools.accumulate(lengths)]
    row = [begin for begin, end in itertools.pairwise(bounds) for _ in range(begin, end)]
    return torch.tensor(row + [len(row)] * (T - len(row)))


@pytest.fixture(params=ARCHITECTURES, scope="module")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param)


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


ROWS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=2), min_size=1, max_size=3)


@settings(max_examples=10)
@given(rows=ROWS, seed=st.integers(0, 9))
def test_packed_rows_loss_and_gradients_are_the_sums_over_documents_alone(
    model: LanguageModel, rows: list[list[int]], seed: int
) -> None:
    ids, targets = torch.randint(0, 100, (2, len(rows), T), generator=torch.Generator().manual_seed(seed))
    starts = torch.stack([starts_of(lengths) for lengths in rows])
    weights = torch.stack([torch.arange(T) < sum(lengths) for lengths in rows]).float()
    loss = model(ids, targets, weights, starts)
    loss.backward()
    packed = gradients(model)
    alone = torch.zeros(())
    for row, lengths in enumerate(rows):
        for end, length in zip(itertools.accumulate(lengths), lengths, strict=True):
            document = slice(end - length, end)
            alone = alone + model(ids[row : row + 1, document], targets[row : row + 1, document])
    alone.backward()
    torch.testing.assert_close(loss, alone, rtol=1e-4, atol=1e-3)
    for name, wanted in gradients(model).items():
        torch.testing.assert_close(packed[name], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_by_a_mask_are_those_of_each_document_in_turn(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    ids = torch.randint(0, 100, (2, T))
    starts = torch.stack([starts_of([5, 1, 12]), starts_of([T])])
    in_turn = model.hidden(ids, starts=starts)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(model.hidden(ids, starts=starts), in_turn, rtol=1e-4, atol=1e-4)


def test_packed_rows_of_one_document_are_rows_that_are_not_divided(model: LanguageModel) -> None:
    ids = torch.randint(0, 100, (2, T))
    whole = model.hidden(ids, starts=torch.zeros_like(ids))
    torch.testing.assert_close(whole, model.hidden(ids), rtol=1e-4, atol=1e-4)

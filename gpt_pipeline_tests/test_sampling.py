"""Tokens drawn by a key and a position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.sampling import Draws, Sampling, uniform
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig

CONTEXT = 16


def test_uniform_is_a_function_of_key_and_position_in_the_unit_interval() -> None:
    numbers = uniform("0/1/2", 10_000)
    np.testing.assert_array_equal(numbers[:7], uniform("0/1/2", 7))
    assert not np.intersect1d(numbers, uniform("0/1/3", 10_000)).size
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(), [0.1, 0.2, 0.3, 0.4]),
        (Sampling(temperature=0.5), [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Sampling(top_k=2), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(temperature=0.5, top_k=1), [0, 0, 0, 1]),
        (Sampling(top_p=0.39), [0, 0, 0, 1]),
        (Sampling(top_p=0.41), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(top_k=3, top_p=0.7), [0, 0, 3 / 7, 4 / 7]),
    ],
)
def test_sampling_draws_each_token_as_often_as_it_is_likely(sampling: Sampling, shares: list[float]) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(10_000, 4)
    evenly = torch.arange(10_000) / 10_000
    counts = torch.bincount(sampling.choose(logits, evenly), minlength=4)
    torch.testing.assert_close(counts / 10_000, torch.tensor(shares, dtype=torch.float32), atol=2e-4, rtol=0)


def test_sampling_never_draws_what_is_impossible() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    assert Sampling().choose(logits, torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 3, 3]


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("temperature", float("inf")), ("top_k", 0)])
def test_sampling_of_no_distribution_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        Sampling(**{key: value})


def test_drawn_text_depends_on_its_own_key_alone() -> None:
    torch.manual_seed(0)
    model = make_model(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=CONTEXT, vocab_size=60))
    prompts, keys = [[0, 3], [0, 3], [0, 7, 8, 9], [0, 3]], ["a", "b", "c", "a"]

    def drawn(order: list[int], batch_size: int) -> dict[int, tuple[int, ...]]:
        found = generate(
            model,
            [prompts[place] for place in order],
            max_new_tokens=9,
            context_length=CONTEXT,
            batch_size=batch_size,
            ends=(59,),
            draws=Draws([keys[place] for place in order], Sampling(), length=9),
        )
        return {place: each.tokens for place, each in zip(order, found, strict=True)}

    texts = drawn([0, 1, 2, 3], 4)
    assert texts[0] == texts[3] != texts[1]
    assert drawn([2, 1, 0, 3], 1) == texts
    assert drawn([3, 0, 2, 1], 2) == texts

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.evaluation.validation import validation_loss
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

T = 16
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=T, dropout=0.5)


class Tokens:
    """A stream held in memory."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = np.array(tokens, dtype=np.uint16)
        self.n_tokens = len(tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        assert start + length <= self.n_tokens
        return self.tokens[start : start + length]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.stack([self.read(start, length) for start in starts.tolist()])


def random_stream(n_tokens: int) -> Tokens:
    return Tokens(torch.randint(0, 50257, (n_tokens,), generator=torch.Generator().manual_seed(0)).tolist())


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return make_model(CONFIG)


@pytest.mark.parametrize("n_tokens", [2, T, T + 1, T + 2, 5 * T + 7])
def test_validation_loss_equals_the_sum_over_windows_by_hand(model: LanguageModel, n_tokens: int) -> None:
    stream = random_stream(n_tokens)
    model.eval()
    nats = 0.0
    for start in range(0, n_tokens - 1, T):
        window = torch.from_numpy(stream.tokens[start : start + T + 1].astype(np.int64))[None]
        nats += model(window[:, :-1], window[:, 1:]).item()
    found = validation_loss(model, stream, gpt2(), sequence_length=T, max_tokens=10**6)
    assert found.n_tokens == n_tokens - 1
    assert found.val_loss == pytest.approx(nats / (n_tokens - 1), rel=1e-6)


def test_validation_loss_is_the_same_at_any_batch_size_and_with_dropout_configured(model: LanguageModel) -> None:
    stream = random_stream(40 * T + 3)
    model.train()
    losses = [
        validation_loss(model, stream, gpt2(), sequence_length=T, max_tokens=10**6, batch_size=size).val_loss
        for size in (1, 3, 64)
    ]
    assert max(losses) - min(losses) < 1e-6


def test_validation_loss_reads_no_more_than_max_tokens(model: LanguageModel) -> None:
    stream = random_stream(10 * T)
    first = validation_loss(
        model, Tokens(stream.tokens[: 3 * T + 6].tolist()), gpt2(), sequence_length=T, max_tokens=10**6
    )
    assert validation_loss(model, stream, gpt2(), sequence_length=T, max_tokens=3 * T + 5) == first


def test_validation_loss_of_a_uniform_model_gives_known_perplexity_and_bits_per_byte() -> None:
    text = "Der Fluß fließt. 🙂 The river flows."
    uniform = make_model(CONFIG)
    torch.nn.init.zeros_(uniform.transformer.wte.weight)
    tokens = [EOT_TOKEN, *gpt2().encode(text), EOT_TOKEN]
    found = validation_loss(uniform, Tokens(tokens), gpt2(), sequence_length=T, max_tokens=10**6)
    assert found.perplexity == pytest.approx(50257, rel=1e-4)
    assert found.n_bytes == len(text.encode())
    assert found.val_bpb == pytest.approx((len(tokens) - 1) * math.log2(50257) / len(text.encode()), rel=1e-5)


def test_validation_loss_of_too_few_tokens_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="need at least 2"):
        validation_loss(model, Tokens([5]), gpt2(), sequence_length=T, max_tokens=100)


def test_token_lengths_add_up_to_any_text() -> None:
    text = "naïve — 漢字 \x00 \n\n\n 12345"
    assert gpt2().token_lengths[gpt2().encode(text)].sum() == len(text.encode())

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.evaluation.generate import Generation, generate, greedy
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

CONTEXT = 48
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=CONTEXT, dropout=0.1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A model that ends some texts: the weights are large, so that its choices are clear, and EOT is often near."""
    torch.manual_seed(3)
    model = make_model(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    return model


def without_cache(model: LanguageModel, prompt: list[int], steps: int) -> list[int]:
    """The plain loop: the whole text through the model for each token, the end kept."""
    model.eval()
    tokens = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == EOT_TOKEN:
            break
    return tokens[len(prompt) :]


def prompts(number: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (number,), generator=generator).tolist()
    return [[EOT_TOKEN, *torch.randint(0, 50256, (length,), generator=generator).tolist()] for length in lengths]


def zero(logits: Tensor) -> Tensor:
    return torch.zeros(logits.size(0), dtype=torch.long)


def test_generate_equals_the_plain_loop_without_cache(model: LanguageModel) -> None:
    for prompt in prompts(4):
        (found,) = generate(model, [prompt], max_new_tokens=12, context_length=CONTEXT)
        assert list(found.tokens) == without_cache(model, prompt, 12)[: len(found.tokens)]
        assert len(found.tokens) == 12


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_generate_in_batches_equals_one_by_one(model: LanguageModel, batch_size: int) -> None:
    asked = prompts(11)
    together = generate(model, asked, max_new_tokens=24, context_length=CONTEXT, batch_size=batch_size)
    alone = [generate(model, [prompt], max_new_tokens=24, context_length=CONTEXT)[0] for prompt in asked]
    assert together == alone


def test_generate_reads_a_prompt_that_comes_often_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = prompts(3)
    asked = [first, second, first, third, first, second]
    alone = [_drawn(model, [prompt], first_key=place)[0] for place, prompt in enumerate(asked)]
    read, through = [], model.forward_cached

    def counted(ids: Tensor, cache: KVCache) -> Tensor:
        read.append(ids.size(0))
        return through(ids, cache)

    monkeypatch.setattr(model, "forward_cached", counted)
    assert _drawn(model, asked, first_key=0) == alone
    assert len({text.tokens for text in alone}) == len(asked)  # each has draws of its own
    assert read[:2] == [3, 6]


def _drawn(model: LanguageModel, asked: list[list[int]], *, first_key: int) -> list[Generation]:
    """Sample behind the prompts, by draws that are named by numbers from `first_key` on."""
    draws = Draws([str(first_key + place) for place in range(len(asked))], Sampling(temperature=3.0), length=10)
    return generate(model, asked, max_new_tokens=10, context_length=CONTEXT, draws=draws)


def test_generate_stops_at_the_end_token_and_leaves_it_out(model: LanguageModel) -> None:
    prompt = prompts(1)[0]
    calls = 0

    def pick(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full((logits.size(0),), EOT_TOKEN if calls == 4 else 7)

    (found,) = generate(model, [prompt], max_new_tokens=20, context_length=CONTEXT, pick=pick)
    assert found.tokens == (7, 7, 7)
    assert found.ended


def test_generate_rows_that_end_at_different_times_equal_one_by_one(model: LanguageModel) -> None:
    def sometimes_end(logits: Tensor) -> Tensor:
        """Depends on the row's own logits only, and ends about every sixth text at each step."""
        chosen = greedy(logits)
        return torch.where(chosen % 6 == 0, EOT_TOKEN, chosen)

    asked = prompts(12, seed=5)
    options = {"max_new_tokens": 24, "context_length": CONTEXT, "pick": sometimes_end}
    together = generate(model, asked, batch_size=12, **options)
    alone = [generate(model, [prompt], **options)[0] for prompt in asked]
    assert together == alone
    assert {each.ended for each in together} == {True, False}


def test_generate_without_end_stops_at_max_new_tokens(model: LanguageModel) -> None:
    (found,) = generate(model, [[EOT_TOKEN, 5]], max_new_tokens=9, context_length=CONTEXT, pick=zero)
    assert found.tokens == (0,) * 9
    assert not found.ended


def test_generate_fills_the_context_and_no_more(model: LanguageModel) -> None:
    prompt = [EOT_TOKEN, *range(30)]
    (found,) = generate(model, [prompt], max_new_tokens=1000, context_length=CONTEXT, pick=zero)
    assert found.prompt_truncated
    assert len(found.tokens) == CONTEXT // 2
    short, long = generate(model, [[EOT_TOKEN], [EOT_TOKEN, *range(20)]], max_new_tokens=1000, context_length=CONTEXT)
    assert (len(short.tokens), len(long.tokens)) == (CONTEXT - 1, CONTEXT - 21)


def test_generate_from_a_long_prompt_keeps_its_end(model: LanguageModel) -> None:
    prompt = [EOT_TOKEN, *torch.randint(0, 50256, (200,), generator=torch.Generator().manual_seed(1)).tolist()]
    (long,) = generate(model, [prompt], max_new_tokens=8, context_length=CONTEXT)
    (cut,) = generate(model, [[EOT_TOKEN, *prompt[-(CONTEXT - 8) + 1 :]]], max_new_tokens=8, context_length=CONTEXT)
    assert long.tokens == cut.tokens
    assert (long.prompt_truncated, cut.prompt_truncated) == (True, False)


def test_generate_from_an_empty_prompt_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="found an empty prompt"):
        generate(model, [[1], []], max_new_tokens=8, context_length=CONTEXT)

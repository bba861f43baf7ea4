"""Texts that are written together: each as if it were alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.serving.batch import Batch, End, Event, Failure, Prompt, Text, Token
from gpt_pipeline.serving.engine import Engine, QueueFullError
from gpt_pipeline_tests.serving_models import CONTEXT, decided_model, endless_model

ARCHITECTURES = ("gpt2", "llama", "nanochat")
SMALL, END_TOKEN = 90, 0
MODELS = {name: decided_model(name, vocab_size=SMALL) for name in ARCHITECTURES}
ENDLESS = endless_model()


def text(prompt: Sequence[int], limit: int, **other: Any) -> tuple[Text, list[Event]]:
    events: list[Event] = []
    given = {"ends": frozenset({EOT_TOKEN}), "tell": events.append, **other}
    return Text(prompt=tuple(prompt), limit=limit, **given), events


def written(events: Sequence[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, SMALL - 1), min_size=1, max_size=30),
        st.integers(1, 16),
        st.sampled_from([None, Sampling(), Sampling(temperature=0.7, top_k=5), Sampling(top_p=0.8)]),
        st.integers(0, 9),  # the step at which it joins
        st.integers(0, 3),  # its seed
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=30)
@given(asked=requests, name=st.sampled_from(ARCHITECTURES))
def test_batch_of_mixed_texts_writes_each_as_if_it_were_alone(asked: list[Any], name: str) -> None:
    model, told = MODELS[name], []
    batch, waiting = Batch(model), []
    for prompt, limit, sampling, joins_at, seed in asked:
        one, events = text(prompt, limit, sampling=sampling, key=str(seed), ends={END_TOKEN})
        waiting.append((joins_at, one))
        told.append(events)
    for step in range(40):
        batch.advance([one for joins_at, one in waiting if joins_at == step])
    assert len(batch) == 0
    for (prompt, limit, sampling, _, seed), events in zip(asked, told, strict=True):
        draws = None if sampling is None else Draws([str(seed)], sampling, length=limit)
        given: dict[str, Any] = {"max_new_tokens": limit, "context_length": CONTEXT, "ends": [END_TOKEN]}
        (alone,) = generate(model, [prompt], draws=draws, **given)
        assert written(events) == list(alone.tokens)
        assert events[-1] == End(reason="stop" if alone.end is not None else "length")


def test_batch_text_leaves_before_the_next_token_once_it_is_cancelled() -> None:
    batch, (one, events), (other, _) = Batch(ENDLESS), text([1], 40), text([2], 40)
    batch.advance([one, other])
    batch.advance()
    one.cancelled = True
    batch.advance()
    assert len(batch) == 1
    assert len(written(events)) == 2


def test_batch_fills_the_context_to_its_last_position_beside_a_shorter_text() -> None:
    prompt = list(range(1, CONTEXT - 3))
    batch, (long, events), (short, others) = Batch(ENDLESS), text(prompt, CONTEXT - len(prompt)), text([5], 40)
    batch.advance([long, short])
    for _ in range(40):
        batch.advance()
    assert len(written(events)) == CONTEXT - len(prompt)
    assert len(written(others)) == 40


def test_batch_prompt_scores_and_logprobs_are_those_of_the_model() -> None:
    prompt = [EOT_TOKEN, 10, 20, 30, 40]
    one, events = text(prompt, 2, top=3, scores_prompt=True)
    batch = Batch(ENDLESS)
    batch.advance([one])
    batch.advance()
    first, *tokens = events
    assert isinstance(first, Prompt)
    whole = [*prompt, *written(events)]
    logs = ENDLESS(torch.tensor([whole]))[0].log_softmax(-1)
    scored = [*first.tokens, *(each for each in tokens if isinstance(each, Token))]
    assert scored[0] == Token(id=EOT_TOKEN)
    for place, token in enumerate(scored[1:]):
        assert token.id == whole[place + 1]
        assert token.logprob == pytest.approx(float(logs[place, token.id]), abs=1e-4)
        assert [id_ for id_, _ in token.top] == logs[place].topk(3).indices.tolist()
        assert dict(token.top)[token.top[0][0]] == pytest.approx(float(logs[place].max()), abs=1e-4)


def test_cache_of_rows_goes_on_as_each_row_in_its_own_cache() -> None:
    model = MODELS["llama"]
    prompts = [[1, 2, 3], [4] * 9, [7]]
    caches = [KVCache(model.config, capacity=20) for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        model.forward_cached(torch.tensor([prompt]), cache)
    rows = [(caches[1], 0), (caches[0], 0), (caches[2], 0), (caches[0], 0)]
    together = KVCache.of_rows(model.config, rows, room=5)
    logits = model.forward_cached(torch.tensor([[11], [12], [13], [14]]), together)
    order = [prompts[1], prompts[0], prompts[2], prompts[0]]
    for place, (prompt, token) in enumerate(zip(order, (11, 12, 13, 14), strict=True)):
        alone = model(torch.tensor([[*prompt, token]]))[0, -1]
        torch.testing.assert_close(logits[place], alone, atol=1e-4, rtol=1e-4)
    shorter = KVCache.of_rows(model.config, [(together, 2)], room=1)
    assert (shorter.length, shorter.padding) == (2, None)


def _ended(events: Sequence[Event]) -> bool:
    return any(isinstance(event, End | Failure) for event in events)


def test_engine_refuses_what_the_queue_does_not_hold_and_takes_it_once_others_are_cancelled() -> None:
    engine = Engine({"a": ENDLESS}, batch_size=1, queue_size=2)  # its thread does not run: nothing leaves the queue
    waiting = [text([1], 5)[0] for _ in range(2)]
    engine.submit("a", waiting)
    with pytest.raises(QueueFullError):
        engine.submit("a", [text([1], 5)[0]])
    waiting[0].cancelled = True
    engine.submit("a", [text([1], 5)[0]])


def test_engine_close_tells_all_texts_that_they_are_over() -> None:
    with Engine({"a": ENDLESS, "b": ENDLESS}, batch_size=1, queue_size=9) as engine:
        begun = threading.Event()
        first, events = text([1], 47)
        first.tell = lambda event: (events.append(event), begun.set())
        waiting, others = text([2], 5)
        engine.submit("a", [first, waiting])
        assert begun.wait(60)
        engine.close()
    assert _ended(events)
    assert _ended(others)
    late, told = text([3], 5)
    engine.submit("b", [late])
    assert isinstance(told[-1], Failure)


def test_engine_model_that_fails_loses_its_texts_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with Engine({"a": ENDLESS}, batch_size=4, queue_size=9) as engine:
        done = threading.Event()
        bad, events = text([60_000], 5)  # no such token: the embedding refuses it
        bad.tell = lambda event: (events.append(event), done.set())
        engine.submit("a", [bad])
        assert done.wait(60)
        assert isinstance(events[-1], Failure)
        again = threading.Event()
        good, others = text([1], 3)
        good.tell = lambda event: (others.append(event), _ended(others) and again.set())
        engine.submit("a", [good])
        assert again.wait(60)
    assert len(written(others)) == 3

"""Generate text from prompts, many at once, with the model's key-value cache.

Shapes: B batch, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.evaluation.sampling import Draws
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.row import Watch, unwatched

Pick = Callable[[Tensor], Tensor]
"""Chooses one token for each row of logits: [B, V] -> [B]."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the model generated after one prompt."""

    tokens: tuple[int, ...]
    """Without the prompt and without the token that ended it."""

    ended: bool
    """Whether the model ended it, rather than the limit."""

    prompt_truncated: bool
    """Whether the prompt lost its beginning so that it fits the context."""

    end: int | None = None
    """The token that ended it; None: none did."""


@dataclass(kw_only=True)
class _Sequence:
    """One prompt on its way to a `Generation`."""

    number: int
    """Of the prompt."""

    tokens: list[int]
    n_prompt: int
    limit: int
    """Tokens, prompt included, at which it is cut off."""

    prompt_truncated: bool
    end: int | None = None

    @property
    def finished(self) -> bool:
        return self.end is not None or len(self.tokens) >= self.limit


def greedy(logits: Tensor) -> Tensor:
    """Return the likeliest token of each row: [B, V] -> [B]."""
    return logits.argmax(dim=-1)


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    context_length: int,
    batch_size: int = 16,
    ends: Sequence[int] = (EOT_TOKEN,),
    pick: Pick = greedy,
    draws: Draws | None = None,
    watch: Watch = unwatched,
) -> list[Generation]:
    """Return what `model` generates after each prompt, in the order of the prompts.

    A text ends at one of `ends`, after `max_new_tokens`, or when prompt and answer fill `context_length`: at most
    the model's, and no more than it was trained at. Prompts are cut as in `fit_prompt`. None of this depends on the
    other prompts of a batch, so with `greedy`, or with `draws` in place of `pick`, neither does the text.

    Raises:
        ValueError: an empty prompt.
    """
    model.eval()
    sequences = [_start(number, prompt, max_new_tokens, context_length) for number, prompt in enumerate(prompts)]
    # Prompts of like length share a batch: less padding, and rows that end at about the same time.
    waiting = sorted(sequences, key=lambda sequence: len(sequence.tokens))
    while waiting:
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        _advance(model, batch, pick if draws is None else _pick_of(batch, draws), ends)
        waiting = [sequence for sequence in batch if not sequence.finished] + waiting
        watch(len(sequences) - len(waiting), len(sequences))
    return [_finish(sequence) for sequence in sequences]


def fit_prompt(prompt: Sequence[int], *, max_new_tokens: int, context_length: int) -> list[int]:
    """Return the prompt, without its beginning if it leaves no room to answer; `<|endoftext|>` in front is kept.

    Raises:
        ValueError: the prompt is empty.
    """
    if not prompt:
        raise ValueError("found an empty prompt, need at least <|endoftext|>")
    longest = longest_prompt(max_new_tokens=max_new_tokens, context_length=context_length)
    return list(prompt) if len(prompt) <= longest else [prompt[0], *prompt[len(prompt) - longest + 1 :]]


def longest_prompt(*, max_new_tokens: int, context_length: int) -> int:
    """Return how many tokens leave room to answer: `max_new_tokens`, at most half of the context."""
    return context_length - min(max_new_tokens, context_length // 2)


def next_tokens(model: LanguageModel, logits: Tensor, cache: KVCache, pick: Pick) -> Iterator[Tensor]:
    """Yield the tokens [B] behind the texts in `cache`, whose next logits are `logits` [B, V], until it is full."""
    while True:
        with torch.inference_mode():
            chosen = pick(logits)
        yield chosen
        if cache.length == cache.capacity:
            return
        with torch.inference_mode():
            logits = model.forward_cached(chosen[:, None], cache)


def _pick_of(batch: Sequence[_Sequence], draws: Draws) -> Pick:
    """Return what chooses by `draws` the next token of each text of the batch, as long as it is by then."""

    def pick(logits: Tensor) -> Tensor:
        lengths = [0 if each.finished else len(each.tokens) - each.n_prompt for each in batch]
        return draws.choose(logits, [each.number for each in batch], lengths)

    return pick


def _start(number: int, prompt: Sequence[int], max_new_tokens: int, context_length: int) -> _Sequence:
    tokens = fit_prompt(prompt, max_new_tokens=max_new_tokens, context_length=context_length)
    return _Sequence(
        number=number,
        tokens=tokens,
        n_prompt=len(tokens),
        limit=min(len(tokens) + max_new_tokens, context_length),
        prompt_truncated=len(tokens) < len(prompt),
    )


def _advance(model: LanguageModel, batch: list[_Sequence], pick: Pick, ends: Sequence[int]) -> None:
    """Generate until half of the batch is finished or the longest row fills the model's context.

    The rows that are left start again with what they have, in a fuller batch with less padding. At least one row
    finishes: the longest has the least room, and it is the first to meet either bound.
    """
    steps = max(sequence.limit - len(sequence.tokens) for sequence in batch)
    cache, logits = _read(model, [tuple(sequence.tokens) for sequence in batch], room=steps)
    for chosen in next_tokens(model, logits, cache, pick):
        for sequence, token in zip(batch, chosen.tolist(), strict=True):
            _append(sequence, token, ends)
        if sum(not sequence.finished for sequence in batch) <= len(batch) // 2:
            break


def _read(model: LanguageModel, texts: Sequence[tuple[int, ...]], *, room: int) -> tuple[KVCache, Tensor]:
    """Return a cache of `texts` with `room` for more, and the logits [B, V] behind each; equal ones are read once."""
    device, different = model.head_weight.device, list(dict.fromkeys(texts))
    longest = max(map(len, different))
    padding = torch.tensor([longest - len(text) for text in different], device=device)
    capacity = min(longest + room, model.config.context_length)
    cache = KVCache(model.config, capacity=capacity, padding=padding if bool(padding.any()) else None)
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in different], device=device)
    with torch.inference_mode():
        logits = model.forward_cached(ids, cache)
        if len(different) == len(texts):
            return cache, logits
        rows = [different.index(text) for text in texts]
        return KVCache.of_rows(model.config, [(cache, row) for row in rows], room=room), logits[rows]


def _append(sequence: _Sequence, token: int, ends: Sequence[int]) -> None:
    if sequence.finished:
        return
    if token in ends:
        sequence.end = token
    else:
        sequence.tokens.append(token)


def _finish(sequence: _Sequence) -> Generation:
    return Generation(
        tokens=tuple(sequence.tokens[sequence.n_prompt :]),
        ended=sequence.end is not None,
        end=sequence.end,
        prompt_truncated=sequence.prompt_truncated,
    )

"""Texts of one model that are written together: each step is one forward pass for all of them.

A text joins between two steps and leaves when it is over. Its prompt is read by itself; then its keys and values move
into the cache of the others. What is drawn depends on its own key and place alone, so other texts change its logits
only by rounding.

Shapes: B texts, V vocabulary, T tokens of a prompt, C channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_pipeline.evaluation.sampling import Sampling, uniform
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.language_model import LanguageModel

Reason = Literal["stop", "length"]
_POSITIONS_AT_ONCE = 128  # of a prompt that is scored: their logits take 26 MB with GPT-2's vocabulary


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token, and, where it was asked for, how likely it was."""

    id: int
    logprob: float | None = None
    """Natural logarithm of the model's own probability, before temperature, top_k and top_p."""

    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place with their logprobs, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The tokens of a prompt, told before the first new one where its logprobs are asked for; the first has none."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True)
class End:
    """A text is over."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A text cannot be finished; says why."""

    reason: str


Event: TypeAlias = Token | Prompt | End | Failure


@dataclass(kw_only=True, eq=False)
class Text:
    """One text to be written, and how."""

    prompt: tuple[int, ...]
    limit: int
    """New tokens at the most; prompt and text fit the context."""

    ends: frozenset[int]
    """The tokens that end it; they do not belong to it."""

    sampling: Sampling | None = None
    """None: always the likeliest token."""

    key: str = ""
    """Names the numbers by which tokens are drawn."""

    top: int | None = None
    """How many of the likeliest tokens are told with each; None: no logprobs."""

    scores_prompt: bool = False
    """Whether the tokens of the prompt are told too, with `top`."""

    tell: Callable[[Event], None]
    cancelled: bool = False
    """Set by whoever no longer wants it; it leaves before the next token."""

    over: bool = False
    new: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self.limit - len(self.new)

    @cached_property
    def draws(self) -> NDArray:  # type: ignore[type-arg]
        """A number in [0, 1) for each new token."""
        return uniform(self.key, self.limit)

    def end(self, event: End | Failure) -> None:
        """Tell the end, once."""
        if not self.over:
            self.over = True
            self.tell(event)


class Batch:
    """The texts that one model is writing."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._texts: list[Text] = []
        self._cache: KVCache | None = None

    def __len__(self) -> int:
        return len(self._texts)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def advance(self, new: Sequence[Text] = ()) -> None:
        """Let `new` texts join with their first token, then write a token of all others; tell each what it got."""
        before = [text for text in self._texts if not _is_gone(text)]
        if before:
            self._regroup([*self._places(before)])
            self._step()
        self._regroup([*self._places(text for text in self._texts if not _is_gone(text)), *self._read(new)])

    def fail(self, reason: str) -> None:
        """End all texts with a failure."""
        for text in self._texts:
            text.end(Failure(reason=reason))
        self._texts, self._cache = [], None

    def _places(self, texts: Iterable[Text]) -> Iterable[tuple[Text, KVCache, int]]:
        number = {id(text): place for place, text in enumerate(self._texts)}
        assert self._cache is not None or not self._texts
        return [(text, self._cache, number[id(text)]) for text in texts if self._cache is not None]

    def _regroup(self, rows: Sequence[tuple[Text, KVCache, int]]) -> None:
        """Have the cache hold these rows and no others."""
        texts = [text for text, _, _ in rows]
        if texts == self._texts and self._has_room():
            return
        self._texts = texts
        room = max((text.room for text in texts), default=0)
        places = [(cache, row) for _, cache, row in rows]
        self._cache = KVCache.of_rows(self._model.config, places, room=room) if places else None

    def _has_room(self) -> bool:
        return self._cache is None or self._cache.length < self._cache.capacity

    def _step(self) -> None:
        assert self._cache is not None
        ids = torch.tensor([[text.new[-1]] for text in self._texts], device=self._model.head_weight.device)
        _give(self._texts, self._model.forward_cached(ids, self._cache))

    def _read(self, texts: Sequence[Text]) -> list[tuple[Text, KVCache, int]]:
        """Read prompts and write their first token; one that several texts share is read once."""
        shared: dict[tuple[int, ...], list[Text]] = defaultdict(list)
        for text in texts:
            if not text.cancelled:
                shared[text.prompt].append(text)
        rows = []
        for prompt, readers in shared.items():
            try:
                cache, logits = self._read_prompt(prompt, readers)
                _give(readers, logits.expand(len(readers), -1))
            except Exception:
                for text in texts:  # they are not among those of the batch yet
                    text.end(Failure(reason="the model failed"))
                raise
            rows += [(text, cache, 0) for text in readers if not _is_gone(text)]
        return rows

    def _read_prompt(self, prompt: tuple[int, ...], readers: Sequence[Text]) -> tuple[KVCache, Tensor]:
        """Return the cache of a prompt and the logits [1, V] behind it; tell its tokens to those who ask for them."""
        cache = KVCache(self._model.config, capacity=len(prompt))
        hidden = self._model.hidden_cached(torch.tensor([prompt], device=self._model.head_weight.device), cache)
        asking = [text for text in readers if text.scores_prompt]
        if asking:
            told = Prompt(tokens=self._scored(prompt, hidden[0], top=max(text.top or 0 for text in asking)))
            for text in asking:
                text.tell(told)
        return cache, self._model.logits(hidden[:, -1])

    def _scored(self, prompt: tuple[int, ...], hidden: Tensor, *, top: int) -> tuple[Token, ...]:
        """Return the tokens of a prompt with their logprobs, by its hidden states [T, C]."""
        scored = [Token(id=prompt[0])]
        for start in range(0, len(prompt) - 1, _POSITIONS_AT_ONCE):
            ids = prompt[start + 1 : start + 1 + _POSITIONS_AT_ONCE]
            scored += _tokens(self._model.logits(hidden[start : start + len(ids)]), ids, top=top)
        return tuple(scored)


def _is_gone(text: Text) -> bool:
    return text.over or text.cancelled


def _give(texts: Sequence[Text], logits: Tensor) -> None:
    """Choose the next token of each text by its row of `logits` [B, V], and tell it, or the end."""
    going = [place for place, text in enumerate(texts) if text.room > 0]
    chosen = _chosen(texts, logits)
    told = _told(texts, logits, chosen)
    for place, text in enumerate(texts):
        if place not in going:  # nothing was asked for but the prompt
            text.end(End(reason="length"))
        elif chosen[place] in text.ends:
            text.end(End(reason="stop"))
        else:
            text.new.append(chosen[place])
            text.tell(told[place])
            if text.room == 0:
                text.end(End(reason="length"))


def _chosen(texts: Sequence[Text], logits: Tensor) -> list[int]:
    alike: dict[Sampling, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        if text.sampling is not None and text.room > 0:
            alike[text.sampling].append(place)
    chosen = logits.argmax(dim=-1)
    for sampling, places in alike.items():
        drawn = [float(texts[place].draws[len(texts[place].new)]) for place in places]
        chosen[places] = sampling.choose(logits[places], torch.tensor(drawn, device=logits.device))
    return [int(token) for token in chosen.tolist()]


def _told(texts: Sequence[Text], logits: Tensor, chosen: Sequence[int]) -> list[Token]:
    told = [Token(id=token) for token in chosen]
    asking = [place for place, text in enumerate(texts) if text.top is not None]
    if asking:
        top = max(texts[place].top or 0 for place in asking)
        for place, token in zip(
            asking, _tokens(logits[asking], [chosen[each] for each in asking], top=top), strict=True
        ):
            told[place] = Token(id=token.id, logprob=token.logprob, top=token.top[: texts[place].top])
    return told


def _tokens(logits: Tensor, ids: Sequence[int], *, top: int) -> list[Token]:
    """Return the tokens `ids` with their logprobs in the rows of `logits` [B, V], and the `top` likeliest of each."""
    logs = logits.float().log_softmax(dim=-1)
    own = logs.gather(-1, torch.tensor(ids, device=logs.device)[:, None])[:, 0].tolist()
    likeliest = logs.topk(top, dim=-1)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [
        Token(id=id_, logprob=value, top=tuple(zip(places, values, strict=True)))
        for id_, value, (places, values) in zip(ids, own, pairs, strict=True)
    ]

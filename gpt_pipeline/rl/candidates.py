"""Questions with a check, from the documents: a fixed choice on each side of the split, training and held-out."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.files import with_columns
from gpt_pipeline.data.documents.split import read_side
from gpt_pipeline.data.documents.stage import document_files
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.answers import encode_prompt
from gpt_pipeline.evaluation.questions import COLUMNS, question_of
from gpt_pipeline.rl.prompts import Prompt
from gpt_pipeline.rl.rewards import Question, reward_for
from gpt_pipeline.storage.manifest import StageResult

_BATCH_ROWS = 2048  # some 6 MB of text
_SPARE = 2  # chosen for each one wanted, since some turn out too long, or stand on both sides

Documents = Sequence[tuple[StageResult, DataConfig]]
"""The finished documents of each part of the data, and its block."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Questions whose answers can be judged."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    left_out: Mapping[str, int]
    """Training-side documents that are no candidates, by the reason."""


def choose_candidates(documents: Documents, tokenizer: Tokenizer, *, count: int, seed: int, longest: int) -> Candidates:
    """Return up to `count` questions of each side, those of `longest` tokens at most that the seed puts first.

    None stands on both sides, or twice on one. Memory is bounded by `count`; the held-out side is read twice.
    """
    left_out: Counter[str] = Counter()
    held_out = _First(limit=_SPARE * count, seed=seed)
    for prompt in _asked(documents, held_out=True, left_out=Counter()):
        held_out.add(prompt)
    training = _First(limit=_SPARE * count, seed=seed, watched=frozenset(held_out.kept))
    for prompt in _asked(documents, held_out=False, left_out=left_out):
        training.add(prompt)
    unseen = [asked for key, asked in held_out.in_order() if key not in training.met]
    # What one part of a mix holds out, another may train on.
    asked_there = {
        key
        for prompt in _asked(documents, held_out=True, left_out=Counter())
        if (key := training.key(prompt)) in training.kept
    }
    allowed = [asked for key, asked in training.in_order() if key not in asked_there]
    left_out["held_out_too"] += len(asked_there)
    return Candidates(
        training=_fitting(allowed, tokenizer, longest, count, left_out),
        held_out=_fitting(unseen, tokenizer, longest, count, Counter()),
        left_out=dict(+left_out),
    )


def first_candidates(documents: Documents, tokenizer: Tokenizer, *, longest: int, among: int) -> Candidates:
    """Return the first question of each side, by the rules of `choose_candidates` for each, if there is one.

    For a look at whether there are any: it ends there, and after the first `among` documents of each part. Whether the
    same question is asked elsewhere too is left open.
    """
    left_out: Counter[str] = Counter()
    training = _asked(documents, held_out=False, left_out=left_out, among=among)
    held_out = _asked(documents, held_out=True, left_out=Counter(), among=among)
    return Candidates(
        training=_fitting(training, tokenizer, longest, 1, left_out),
        held_out=_fitting(held_out, tokenizer, longest, 1, Counter()),
        left_out=dict(left_out),
    )


def has_a_check(documents: pa.RecordBatch, data: DataConfig) -> bool:
    """Whether one of the documents, of any side and length, asks what can be judged."""
    rows = with_columns(documents, COLUMNS).to_pylist()
    return has_questions(data) and any(_checkable(row, data.template) is not None for row in rows)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    id: str
    text: str
    """The document up to where the model takes over."""

    question: Question


@dataclass(kw_only=True)
class _First:
    """The first questions by the hash of seed and text, one for each text: of two, the one of the smaller id."""

    limit: int
    seed: int
    watched: frozenset[bytes] = frozenset()
    met: set[bytes] = field(default_factory=set)
    """Those of `watched` that were added."""

    kept: dict[bytes, _Asked] = field(default_factory=dict)

    def key(self, asked: _Asked) -> bytes:
        return hashlib.blake2b(f"{self.seed}\n{asked.text}".encode(), digest_size=16).digest()

    def add(self, asked: _Asked) -> None:
        key = self.key(asked)
        if key in self.watched:
            self.met.add(key)
        same = self.kept.get(key)
        if same is None or asked.id < same.id:
            self.kept[key] = asked
        if len(self.kept) > 2 * self.limit:  # now and then, so that each costs O(log n) on average
            self.kept = dict(self.in_order())

    def in_order(self) -> list[tuple[bytes, _Asked]]:
        return heapq.nsmallest(self.limit, self.kept.items(), key=lambda item: item[0])


def _asked(
    documents: Documents, *, held_out: bool, left_out: Counter[str], among: int | None = None
) -> Iterator[_Asked]:
    """Yield the questions of one side that have a check, counting the others by reason; `among` as in `read_side`."""
    for stage, data in documents:
        if not has_questions(data):
            left_out["asks_nothing"] += int(stage.manifest.facts.get("documents", 0))
            continue
        side = read_side(document_files(stage), COLUMNS, data, held_out=held_out, batch_rows=_BATCH_ROWS, among=among)
        for batch in side:
            for row in batch.to_pylist():
                asked = _checkable(row, data.template)
                if asked is None:
                    left_out["no_check"] += 1
                else:
                    yield asked


def _checkable(row: Mapping[str, Any], template: str) -> _Asked | None:
    found = question_of(row, template)
    reward = reward_for(found.last_query, found.expected)
    if reward is None:
        return None
    question = Question(
        query=found.last_query,
        expected=found.expected,
        with_reasoning=found.with_reasoning,
        is_conversation=bool(found.turns) and not found.form.has_marks,
        template=template,
        reward=reward,
    )
    return _Asked(id=found.synth_id, text=found.prompt, question=question)


def _fitting(
    asked: Iterable[_Asked], tokenizer: Tokenizer, longest: int, count: int, left_out: Counter[str]
) -> tuple[Prompt, ...]:
    """Return the first `count` of at most `longest` tokens."""
    found: list[Prompt] = []
    for each in asked:
        if len(found) == count:
            break
        tokens = encode_prompt(each.text, tokenizer)
        if len(tokens) > longest:
            left_out["too_long"] += 1
        else:
            found.append(Prompt(id=each.id, tokens=tuple(tokens), question=each.question))
    return tuple(found)

"""The questions that a training by rewards samples answers to, as they are kept. Imports no torch and no pyarrow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.data.config import PLAIN
from gpt_pipeline.rl.rewards import Question
from gpt_pipeline.storage.atomic import known_fields, read_json, write_json
from gpt_pipeline.storage.manifest import StageResult, finished, not_finished, verify

TRAINING, HELD_OUT = "prompts.json", "held_out.json"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question, as the model is given it."""

    id: str
    """Of its document."""

    tokens: tuple[int, ...]
    question: Question
    pass_rate: float | None = None
    """Share of the start weights' sampled answers that have a reward; None: not measured."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Prompt:
        """Return what `dataclasses.asdict` gave."""
        fields = known_fields(cls, value)
        question = Question(**known_fields(Question, fields["question"]))
        return cls(**{**fields, "tokens": tuple(fields["tokens"]), "question": question})


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The questions of one training."""

    training: tuple[Prompt, ...]
    """Which the start weights answer sometimes right and sometimes wrong."""

    held_out: tuple[Prompt, ...]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write the questions to `path`, atomically."""
    write_json(path, [{**dataclasses.asdict(prompt), "question": _as_json(prompt.question)} for prompt in prompts])


def _as_json(question: Question) -> dict[str, Any]:
    """Return a question as JSON values; the template came later, and is left out where it is the plain one."""
    value = dataclasses.asdict(question)
    return {name: each for name, each in value.items() if name != "template" or each != PLAIN}


def read_prompts(folder: Path, fingerprint: str) -> PromptSet:
    """Return the questions of the finished stage in `folder`.

    Raises:
        DataError: the stage is not finished there.
        DamagedFileError: a file is not what the manifest says.
    """
    stage = finished(folder, fingerprint)
    if stage is None:
        raise not_finished("rl_prompts", folder)
    return prompts_of(stage)


def prompts_of(stage: StageResult) -> PromptSet:
    """Return the questions of a finished stage; raises DamagedFileError as `read_prompts`."""
    verify(stage)
    training, held_out = (tuple(map(Prompt.from_json, read_json(stage.folder / name))) for name in (TRAINING, HELD_OUT))
    return PromptSet(training=training, held_out=held_out)


def prompts_at(step: int, *, available: int, count: int, seed: int) -> list[int]:
    """Return which of `available` prompts the update after `step` updates samples: `count` of them.

    All come once, in an order that the seed chooses, before any comes again in another order.
    """
    import numpy as np  # which the definitions, for whom the rest of this file is, do without

    first = step * count
    epochs = range(first // available, (first + count - 1) // available + 1)
    order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(available) for epoch in epochs])
    begin = first - epochs[0] * available
    return [int(number) for number in order[begin : begin + count]]

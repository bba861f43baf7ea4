"""Answers sampled from the present weights, and what each of their tokens is to weigh in the loss.

Shapes: N texts, L most tokens of an answer, B rows, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.generate import Generation, generate
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.prompts import Prompt
from gpt_pipeline.rl.rewards import reward_of


def _nobody_waits() -> None:
    """Nobody waits for a sign that work goes on."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer that the model sampled."""

    tokens: tuple[int, ...]
    """With the token that ended it, if one did."""

    ended: bool
    text: str
    reward: float
    log_probabilities: NDArray[np.float32]
    """Of each token, under the model's own distribution (temperature 1, all tokens), in nats."""


Group = tuple[Prompt, list[Sample]]
"""A question and the answers to it."""


class Rows(NamedTuple):
    """Sequences to train on, padded on the right with the token 0 and the weight 0."""

    inputs: NDArray[np.int64]
    """[B, T]."""

    targets: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RolloutSampler:
    """What answers are sampled by, whatever the weights."""

    config: RlConfig
    tokenizer: Tokenizer
    context_length: int
    """Tokens of prompt and answer together."""

    batch_size: int
    """Texts that are continued together."""

    def sample(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        names: Sequence[str],
        *,
        goes_on: Callable[[], None] = _nobody_waits,
    ) -> list[Group]:
        """Return `samples_per_prompt` answers to each prompt.

        `names` name the draws of each prompt: the same name, the same numbers. `goes_on` is called with each token.
        """
        config = self.config
        keys = [f"{name}/{sample}" for name in names for sample in range(config.samples_per_prompt)]
        sampling = Sampling(temperature=config.temperature, top_k=config.top_k)
        draws = RecordedDraws(keys, sampling, length=config.max_new_tokens, goes_on=goes_on)
        asked = [prompt for prompt in prompts for _ in range(config.samples_per_prompt)]
        generations = generate(
            model,
            [prompt.tokens for prompt in asked],
            max_new_tokens=config.max_new_tokens,
            context_length=self.context_length,
            batch_size=self.batch_size,
            ends=self.tokenizer.ends,
            draws=draws,
        )
        samples = list(map(self._judged, asked, generations, draws.log_probabilities))
        size = config.samples_per_prompt
        return [(prompt, samples[size * place : size * (place + 1)]) for place, prompt in enumerate(prompts)]

    def _judged(self, prompt: Prompt, generation: Generation, log_probabilities: NDArray[np.float32]) -> Sample:
        end = () if generation.end is None else (generation.end,)
        tokens, text = (*generation.tokens, *end), self.tokenizer.decode(generation.tokens)
        return Sample(
            tokens=tokens,
            ended=generation.ended,
            text=text,
            reward=reward_of(prompt.question, text, generation.ended),
            log_probabilities=log_probabilities[: len(tokens)],
        )


class RecordedDraws(Draws):
    """Draws that note how likely each token was."""

    def __init__(
        self, keys: Sequence[str], sampling: Sampling, *, length: int, goes_on: Callable[[], None] = _nobody_waits
    ) -> None:
        super().__init__(keys, sampling, length=length)
        self._goes_on = goes_on
        self.log_probabilities = np.full((len(keys), length), np.nan, np.float32)
        """Of the token at each position of each text, in nats [N, L]; NaN where there is none."""

    def choose(self, logits: Tensor, prompts: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return a token [B] for each row of `logits` [B, V], as `Draws.choose`."""
        self._goes_on()
        chosen, probability = self.draw(logits, prompts, positions)
        if self.sampling.is_plain:
            likely = probability.clamp_min(torch.finfo(probability.dtype).tiny).log()
        else:
            logits = logits.float()
            likely = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=1)
        found = likely.cpu().numpy()
        places = list(prompts), list(positions)
        noted = self.log_probabilities[places]  # a text that is finished is drawn on, at its first position again
        self.log_probabilities[places] = np.where(np.isnan(noted), found, noted)
        return chosen


def advantages_of(samples: Sequence[Sample]) -> NDArray[np.float64] | None:
    """Return by how much the reward of each answer is above the mean of them all; None where all have the same.

    It is not divided by the standard deviation, which would give a question that is nearly always, or hardly ever,
    answered right a greater weight than others (Liu et al. 2025, "Understanding R1-Zero-like training").
    """
    rewards = np.array([sample.reward for sample in samples])
    return None if np.ptp(rewards) == 0 else rewards - rewards.mean()


def kept_answers(groups: Sequence[Group]) -> Iterator[tuple[Prompt, Sample, float]]:
    """Yield the answers to the questions that were answered differently well, each with its advantage."""
    for prompt, samples in groups:
        advantages = advantages_of(samples)
        if advantages is not None:
            yield from (
                (prompt, sample, float(advantage)) for sample, advantage in zip(samples, advantages, strict=True)
            )


def rows_of(answers: Sequence[tuple[Prompt, Sample, float]]) -> Rows:
    """Return the answers behind their prompts as sequences; each of their tokens weighs the answer's advantage.

    With no answer it is one sequence without weight, so that each process has something to compute.
    """
    texts = [[*prompt.tokens, *sample.tokens] for prompt, sample, _ in answers] or [[0, 0]]
    shape = len(texts), max(map(len, texts)) - 1
    rows = Rows(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32))
    for row, text in enumerate(texts):
        rows.inputs[row, : len(text) - 1] = text[:-1]
        rows.targets[row, : len(text) - 1] = text[1:]
    for row, (prompt, sample, advantage) in enumerate(answers):
        rows.weights[row, _answer_of(prompt, sample)] = advantage
    return rows


def subtract_distance(
    rows: Rows, answers: Sequence[tuple[Prompt, Sample, float]], reference: NDArray[np.float32], kl: float
) -> float:
    """Take `kl` times the log of the ratio of present to start probability from each token's weight.

    `reference` [B, T] are the log-probabilities of the targets under the start weights. Returns the sum of the logs, of
    which the mean over tokens estimates the distance from the start weights in nats.
    """
    total = 0.0
    for row, (prompt, sample, _) in enumerate(answers):
        place = _answer_of(prompt, sample)
        ratio = sample.log_probabilities - reference[row, place]
        rows.weights[row, place] -= kl * ratio
        total += float(ratio.sum())
    return total


def _answer_of(prompt: Prompt, sample: Sample) -> slice:
    """Return where in a row of targets the tokens of the answer stand."""
    return slice(len(prompt.tokens) - 1, len(prompt.tokens) - 1 + len(sample.tokens))


@torch.no_grad()  # type: ignore[untyped-decorator]
def target_log_probabilities(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    at_once: int,
    goes_on: Callable[[], None] = _nobody_waits,
) -> Tensor:
    """Return the log-probability of each target [B, T] in nats; the logits of about `at_once` tokens are in memory.

    `goes_on` is called after each of the passes that this takes.
    """
    model.eval()
    size = max(1, at_once // inputs.size(1))
    parts = []
    for some, wanted in zip(inputs.split(size), targets.split(size), strict=True):
        parts.append(model(some).float().log_softmax(-1).gather(2, wanted[:, :, None])[:, :, 0])
        goes_on()
    return torch.cat(parts)


class Tally(NamedTuple):
    """Sums over sampled answers, such as several processes add up."""

    groups: float = 0.0
    dropped: float = 0.0
    """Groups whose answers all have the same reward."""

    passed: float = 0.0
    """Groups with at least one reward above 0."""

    samples: float = 0.0
    reward: float = 0.0
    ended: float = 0.0
    tokens: float = 0.0
    nats: float = 0.0
    """Minus the log-probabilities of all tokens."""

    trained_tokens: float = 0.0
    """Tokens of the groups that are kept."""

    distance: float = 0.0
    """From the start weights, in nats, over the trained tokens; 0 where it is not measured."""

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Tally:
        """Return the sums over these answers."""
        samples = [sample for _, answers in groups for sample in answers]
        kept = [sample for _, sample, _ in kept_answers(groups)]
        return cls(
            groups=len(groups),
            dropped=sum(advantages_of(answers) is None for _, answers in groups),
            passed=sum(any(sample.reward > 0 for sample in answers) for _, answers in groups),
            samples=len(samples),
            reward=math.fsum(sample.reward for sample in samples),
            ended=sum(sample.ended for sample in samples),
            tokens=sum(len(sample.tokens) for sample in samples),
            nats=-math.fsum(float(sample.log_probabilities.sum()) for sample in samples),
            trained_tokens=sum(len(sample.tokens) for sample in kept),
        )

    def figures(self, *, with_distance: bool) -> dict[str, float]:
        """Return what is logged of an update; the distance where there are tokens that it was measured on."""
        return {
            "reward": self.reward / self.samples,
            "dropped_groups": self.dropped / self.groups,
            "answer_tokens": self.tokens / self.samples,
            "entropy": self.nats / max(self.tokens, 1),
            "ended": self.ended / self.samples,
            **({"distance": self.distance / self.trained_tokens} if with_distance and self.trained_tokens else {}),
        }

"""Batches of answers that the present weights sample, with their advantages as weights.

The gradient of the mean reward by one update on fresh samples (REINFORCE, Williams 1992) is that of the cross-entropy
of what was sampled, each token weighted by how much better its answer is than others to the same question.

Shapes: B sequences of this process, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_pipeline.errors import DiskFullError
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.config import TOKENS_AT_ONCE
from gpt_pipeline.rl.prompts import PromptSet, prompts_at
from gpt_pipeline.rl.rollouts import (
    Group,
    RolloutSampler,
    Tally,
    kept_answers,
    rows_of,
    subtract_distance,
    target_log_probabilities,
)
from gpt_pipeline.training.config import ERROR_RATE, PASSES, StepLayout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch, Rollout
from gpt_pipeline.training.metrics import MetricsLog, remove_lines_from
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.stopping import OTHERS_SECONDS, GoesOn, unheeded

_SHOWN_QUESTIONS = 8  # of the held-out ones, whose answers are kept at each measurement
_LOG_BYTES = 16 << 20  # kept of them in all: the first ones


@dataclass(kw_only=True)
class RolloutFeed:
    """Samples the answers of each update before it, on each process those to its own share of the questions."""

    model: LanguageModel
    """Whose weights are trained."""

    reference: LanguageModel | None
    """With the start weights; None where the distance from them costs nothing."""

    prompts: PromptSet
    sampler: RolloutSampler
    seed: int
    measured: int
    """Held-out questions that measure the training, at most."""

    compute: Compute
    ranks: Ranks
    samples_file: Path
    """Keeps answers to held-out questions, one question a line."""

    goes_on: GoesOn = unheeded
    """Called with each token that is sampled, and between passes through the start weights."""

    _has_kept: bool = field(default=False, init=False)

    def batch_at(self, step: int) -> Batch:
        """Return the batch of the update after `step` updates: a function of weights, seed and step."""
        config = self.sampler.config
        count, available = config.prompts_per_step, len(self.prompts.training)
        chosen = prompts_at(step, available=available, count=count, seed=self.seed)
        places = range(self.ranks.rank, count, self.ranks.world_size)
        prompts = [self.prompts.training[chosen[place]] for place in places]
        with self.compute.autocast():
            groups = self.sampler.sample(
                self.model,
                prompts,
                [f"{self.seed}/{step}/{place}" for place in places],
                goes_on=self.goes_on,
            )
        answers = list(kept_answers(groups))
        rows, tally = rows_of(answers), Tally.of(groups)
        if self.reference is not None and answers:
            log_ratios = subtract_distance(
                rows, answers, self._reference(self.reference, rows.inputs, rows.targets), config.kl
            )
            tally = tally._replace(distance=log_ratios)
        tally = self._summed(tally)
        inputs, targets, weights = (torch.from_numpy(part).to(self.compute.device) for part in rows)
        figures = tally.figures(with_distance=self.reference is not None)
        return Batch(inputs, targets, weights, rollout=Rollout(int(tally.tokens), int(tally.trained_tokens), figures))

    def measure(self, step: int, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return pass@1, what it lacks to 1, and pass@k on held-out questions; None if told to stop.

        What is drawn is the same each time, so that only the weights make a difference.
        """
        config, held_out = self.sampler.config, self.prompts.held_out[: self.measured]
        tally = Tally()
        for first in range(0, len(held_out), config.prompts_per_step):
            if should_stop():
                return None
            end = min(first + config.prompts_per_step, len(held_out))
            places = range(first + self.ranks.rank, end, self.ranks.world_size)
            with self.compute.autocast():
                groups = self.sampler.sample(
                    self.model,
                    [held_out[place] for place in places],
                    [f"{self.seed}/held-out/{place}" for place in places],
                    goes_on=self.goes_on,
                )
            tally = Tally(*map(sum, zip(tally, Tally.of(groups), strict=True)))
            if first == 0:
                self._keep(step, groups[:_SHOWN_QUESTIONS])
        total = self._summed(tally)
        right = total.reward / total.samples
        return {PASSES: right, "pass_at_k": total.passed / total.groups, ERROR_RATE: 1 - right}

    def rehearse(self) -> None:
        """Take the memory of as many answers as are ever sampled at once, all as long as can be, and then ask the start
        weights about as many tokens as they are ever asked about at once.
        """
        rows, length = self.sampler.batch_size, self.sampler.context_length
        cache = KVCache(self.model.config, capacity=length)
        cache.length = length - 1  # so that the last token sees, and a model with fewer heads of keys copies, all of it
        self.model.eval()
        with self.compute.autocast(), torch.inference_mode():
            self.model.forward_cached(torch.zeros((rows, 1), dtype=torch.int64, device=self.compute.device), cache)
        del cache
        if self.reference is not None:
            ids = np.zeros((max(1, TOKENS_AT_ONCE // length), length), np.int64)
            self._reference(self.reference, ids, ids)

    def in_words(self, layout: StepLayout) -> str:
        """Return how many answers to how many questions an update has."""
        config, available = self.sampler.config, len(self.prompts.training)
        return (
            f"{config.samples_per_prompt} answers to each of {config.prompts_per_step} questions a step, of "
            f"{available:,}, {layout.micro_batch_size} answers at a time"
        )

    def close(self) -> None:
        """Hold nothing."""

    def _reference(
        self, model: LanguageModel, inputs: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the log-probabilities [B, T] of `targets` under the start weights."""
        ids = (torch.from_numpy(part).to(self.compute.device) for part in (inputs, targets))
        with self.compute.autocast():
            found = target_log_probabilities(model, *ids, at_once=TOKENS_AT_ONCE, goes_on=self.goes_on)
        return np.asarray(found.cpu().numpy())

    def _summed(self, tally: Tally) -> Tally:
        """Return the sums over all processes; those whose answers end early wait for the others."""
        self.goes_on(OTHERS_SECONDS)
        total = Tally(*self.ranks.sum(torch.tensor(tally, dtype=torch.float64)).tolist())
        self.goes_on()
        return total

    def _keep(self, step: int, groups: Sequence[Group]) -> None:
        """Append the answers to these questions to the file, as far as it has room.

        Those of this step and later ones, which a training that was stopped or killed has lost, make way for them.
        """
        if not self.ranks.is_first:
            return
        if not self._has_kept:
            with suppress(DiskFullError):  # as below
                remove_lines_from(self.samples_file, step=step)
            self._has_kept = True
        log = MetricsLog(self.samples_file)
        try:
            for prompt, samples in groups:
                if self.samples_file.stat().st_size > _LOG_BYTES:
                    return
                answers = [{"text": each.text, "ended": each.ended, "reward": each.reward} for each in samples]
                question = {"id": prompt.id, "question": prompt.question.query, "expected": prompt.question.expected}
                with suppress(DiskFullError):  # checkpoints come first, and say that the disk is full
                    log.write({"step": step, **question, "answers": answers})
        finally:
            log.close()

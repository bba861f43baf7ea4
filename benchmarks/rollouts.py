"""Sampling answers for rewards: our batches with a key-value cache against one answer at a time, and its share of an
update's time.

All draw by the same numbers, and so write the same but for rounding: ours as the trainer does, all answers of an update
in batches; one answer at a time with a cache; and one at a time without, each token after the whole text so far
through the model, as loops are first written. In the last part our trainer's update follows on what was sampled, with
no question left out: a training that drops questions samples for a greater share of its time.

    python -m benchmarks.rollouts --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.contest import Contestant, Step, compete, describe_machine, print_table
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.prompts import Prompt
from gpt_pipeline.rl.rewards import Question
from gpt_pipeline.rl.rollouts import Group, RolloutSampler, rows_of
from gpt_pipeline.training.feed import Batch, Rollout

_OURS = "gpt_pipeline"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is sampled, the same for all."""

    model: ModelConfig
    rl: RlConfig
    prompt_tokens: int
    """Of the mean question; they differ in length by half of it either way."""

    at_once: int
    """Answers that our trainer continues together: its `micro_batch_size`."""

    threads: int | None

    @property
    def answers(self) -> int:
        """Of an update."""
        return self.rl.prompts_per_step * self.rl.samples_per_prompt

    @property
    def names(self) -> list[str]:
        """What the draws of each question are called."""
        return [f"benchmark/{place}" for place in range(self.rl.prompts_per_step)]

    def sampler(self) -> RolloutSampler:
        """Return what our trainer samples by."""
        context = self.model.context_length
        return RolloutSampler(config=self.rl, tokenizer=gpt2(), context_length=context, batch_size=self.at_once)

    def weights(self) -> LanguageModel:
        """Return a model with random weights."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return make_model(self.model).eval()

    def prompts(self) -> list[Prompt]:
        """Return questions of random tokens: speed does not depend on what they say."""
        generator = torch.Generator().manual_seed(1)
        low, high = self.prompt_tokens // 2, 3 * self.prompt_tokens // 2 + 1
        lengths = torch.randint(low, high, (self.rl.prompts_per_step,), generator=generator).tolist()
        question = Question(query="?", expected="1", with_reasoning=False, reward="number")
        ids = [torch.randint(0, EOT_TOKEN, (length,), generator=generator).tolist() for length in lengths]
        return [Prompt(id=str(each), tokens=(EOT_TOKEN, *own), question=question) for each, own in enumerate(ids)]


def make_ours(settings: Settings) -> Step:
    """Return a step that samples the answers of an update as our trainer does."""
    model, prompts, sampler = settings.weights(), settings.prompts(), settings.sampler()

    def sample() -> float:
        groups = sampler.sample(model, prompts, settings.names)
        return _mean_token([sample.tokens for _, samples in groups for sample in samples])

    return sample


def make_cached_loop(settings: Settings) -> Step:
    """Return a step that samples them one by one, with a cache."""
    model = settings.weights()

    def continued(prompt: tuple[int, ...]) -> Callable[[int | None], torch.Tensor]:
        cache = KVCache(model.config, capacity=model.config.context_length)
        return lambda token: model.forward_cached(torch.tensor([[*prompt] if token is None else [token]]), cache)

    return _one_by_one(settings, continued)


def make_plain_loop(settings: Settings) -> Step:
    """Return a step that samples them one by one, without a cache."""
    model = settings.weights()

    def continued(prompt: tuple[int, ...]) -> Callable[[int | None], torch.Tensor]:
        text = [*prompt]

        def following(token: int | None) -> torch.Tensor:
            text.extend(() if token is None else (token,))
            return model(torch.tensor([text]))[:, -1]

        return following

    return _one_by_one(settings, continued)


def _one_by_one(
    settings: Settings, continued: Callable[[tuple[int, ...]], Callable[[int | None], torch.Tensor]]
) -> Step:
    """Return a step that draws each answer's tokens from what `continued` gives behind its question."""
    prompts, length = settings.prompts(), settings.rl.max_new_tokens

    def written(prompt: Prompt, key: str) -> list[int]:
        draws, following = Draws([key], Sampling(), length=length), continued(prompt.tokens)
        tokens: list[int] = []
        while len(tokens) < length and tokens[-1:] != [EOT_TOKEN]:
            with torch.inference_mode():
                logits = following(tokens[-1] if tokens else None)
                tokens.append(int(draws.choose(logits, [0], [len(tokens)])))
        return tokens

    def sample() -> float:
        keys = [(prompt, name) for prompt, name in zip(prompts, settings.names, strict=True)]
        samples = range(settings.rl.samples_per_prompt)
        return _mean_token([written(prompt, f"{name}/{number}") for prompt, name in keys for number in samples])

    return sample


def _mean_token(answers: list[list[int]] | list[tuple[int, ...]]) -> float:
    """In place of a loss: by it the texts can be compared."""
    return statistics.fmean(token for answer in answers for token in answer)


def share_of_sampling(settings: Settings, updates: int) -> float:
    """Return the share of an update's time that our trainer samples for, the median of `updates`."""
    step = StepSettings(
        model=settings.model,
        sequences=settings.answers,
        micro_batch_size=settings.at_once,
        length=settings.model.context_length,
        precision="fp32",
        compile=False,
        threads=settings.threads,
    )
    updater, prompts, sampler = make_updater(step), settings.prompts(), settings.sampler()
    shares = []
    for number in range(updates + 1):  # the first one allocates
        began = time.perf_counter()
        groups = sampler.sample(updater.model, prompts, settings.names)
        sampled = time.perf_counter()
        updater.update(number, _batch_of(groups)).result()
        shares.append((sampled - began) / (time.perf_counter() - began))
    return statistics.median(shares[1:])


def _batch_of(groups: list[Group]) -> Batch:
    """Return the update's batch as if every other answer was right."""
    answers = [(prompt, each, 0.5 - number % 2) for prompt, samples in groups for number, each in enumerate(samples)]
    tokens = sum(len(sample.tokens) for _, sample, _ in answers)
    return Batch(*map(torch.from_numpy, rows_of(answers)), rollout=Rollout(tokens, tokens, {}))


def main() -> None:
    given = _options()
    settings = Settings(
        model=ModelConfig(
            n_layer=given.layers, n_head=given.width // 64 or 1, n_embd=given.width, context_length=256, dropout=0.0
        ),
        rl=RlConfig(prompts_per_step=given.prompts, samples_per_prompt=given.samples, max_new_tokens=given.new_tokens),
        prompt_tokens=given.prompt_tokens,
        at_once=given.at_once,
        threads=given.threads,
    )
    print(describe_machine())
    print(
        f"{given.samples} answers to each of {given.prompts} questions of about {given.prompt_tokens} tokens, "
        f"{given.new_tokens} tokens each; {given.layers} layers of width {given.width}, {given.at_once} at a time"
    )
    makers = {
        _OURS: make_ours,
        "one by one, cache": make_cached_loop,
        "one by one, no cache": make_plain_loop,
    }
    contestants = [Contestant(name=name, make=make, settings=settings) for name, make in makers.items()]
    times = compete(contestants, turns=given.turns, steps=1)
    print_table(times, tokens=settings.answers * given.new_tokens, ours=_OURS)
    print(f"\n{settings.answers / times[_OURS].median:,.2f} answers/s")
    for name in [*makers][1:]:
        print(f"RATIO to {name}: {times[name].median / times[_OURS].median:.1f} (target: at least 10)")
    share = share_of_sampling(settings, given.turns)
    print(f"sampling takes {share:.0%} of an update, if no question is left out of it")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Answering held-out questions: our batches with a key-value cache against the customary loop.

The other contestant is what tutorials do, and the pipeline's predecessor did: one question at a time, and for each new
token the whole text so far through the model, with the logits of every position. Both have the same weights and choose
the likeliest token, so they write the same; nobody ends early.

    python -m benchmarks.generation --threads 1
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.contest import Contestant, Step, compete, describe_machine, print_table
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

_OURS = "gpt_pipeline"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is answered, the same for both."""

    layers: int
    questions: int
    prompt_tokens: int
    """Of the mean question; they differ in length by half of it either way."""

    new_tokens: int
    threads: int | None

    def model(self) -> LanguageModel:
        """Return a GPT-2 of 124M parameters, unless `layers` says otherwise, with random weights."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return make_model(ModelConfig(n_layer=self.layers, qkv_bias=True)).eval()

    def prompts(self) -> list[list[int]]:
        """Return questions of random tokens: speed does not depend on what they say."""
        generator = torch.Generator().manual_seed(1)
        low, high = self.prompt_tokens // 2, 3 * self.prompt_tokens // 2 + 1
        lengths = torch.randint(low, high, (self.questions,), generator=generator).tolist()
        return [[EOT_TOKEN, *torch.randint(0, EOT_TOKEN, (n,), generator=generator).tolist()] for n in lengths]


def make_ours(settings: Settings) -> Step:
    """Return a step that answers all questions as an evaluation does."""
    model, prompts = settings.model(), settings.prompts()

    def answer() -> list[list[int]]:
        written = generate(model, prompts, max_new_tokens=settings.new_tokens, context_length=1024)
        return [list(each.tokens) for each in written]

    return _step(answer)


def make_plain_loop(settings: Settings) -> Step:
    """Return a step that answers them one by one, without a cache."""
    model, prompts = settings.model(), settings.prompts()

    def continued(prompt: list[int]) -> list[int]:
        tokens = list(prompt)
        for _ in range(settings.new_tokens):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        return tokens[len(prompt) :]

    return _step(lambda: [continued(prompt) for prompt in prompts])


def _step(answer: Callable[[], list[list[int]]]) -> Step:
    """Return `answer` as a step; in place of a loss it gives the mean token, by which the two can be compared."""
    return lambda: statistics.fmean(token for written in answer() for token in written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    settings = Settings(
        layers=given.layers,
        questions=given.questions,
        prompt_tokens=given.prompt_tokens,
        new_tokens=given.new_tokens,
        threads=given.threads,
    )
    print(describe_machine())
    print(
        f"{settings.questions} questions of about {settings.prompt_tokens} tokens, {settings.new_tokens} new ones each"
    )
    contestants = [
        Contestant(name=_OURS, make=make_ours, settings=settings),
        Contestant(name="one by one, no cache", make=make_plain_loop, settings=settings),
    ]
    times = compete(contestants, turns=given.turns, steps=1)
    print_table(times, tokens=settings.questions * settings.new_tokens, ours=_OURS)


if __name__ == "__main__":
    main()

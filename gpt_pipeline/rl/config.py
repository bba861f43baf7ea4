"""The `rl:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require

TOKENS_AT_ONCE = 2048
"""Whose logits are in memory together where the start weights are asked how likely they are; a whole row at least."""


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """How answers are sampled and rewarded, with `training.objective: rl` alone."""

    prompts_per_step: int = 16
    """Questions in one optimizer update, all ranks together."""

    samples_per_prompt: int = 8
    """Answers sampled to each question; their mean reward is the baseline of each."""

    max_new_tokens: int = 128
    """Maximum tokens of an answer; one that does not end by then has no reward."""

    temperature: float = 1.0
    """Divides the logits that answers are sampled by. The gradient is exact at 1, with `top_k: null`."""

    top_k: int | None = None
    """Sample among this many of the likeliest tokens; null: all."""

    kl: float = 0.0
    """Nats of reward that each nat of distance from the start weights costs, token by token; 0: none."""

    candidates: int = 512
    """Training-side questions that the start weights answer once, `samples_per_prompt` times each. Those they answer
    sometimes right and sometimes wrong are trained on. As many held-out ones at most measure the training."""

    def __post_init__(self) -> None:
        for key in ("prompts_per_step", "max_new_tokens", "candidates"):
            require(getattr(self, key) > 0, key, found=getattr(self, key), need="a whole number above 0")
        samples, top_k = self.samples_per_prompt, self.top_k
        need = "a whole number, 2 or above: an answer is judged beside others to the same question"
        require(samples > 1, "samples_per_prompt", found=samples, need=need)
        found = self.temperature
        require(0 < found < float("inf"), "temperature", found=found, need="a finite number above 0")
        require(top_k is None or top_k > 0, "top_k", found=top_k, need="a whole number above 0, or null")
        require(0 <= self.kl < float("inf"), "kl", found=self.kl, need="a finite number, 0 or above")

    def longest_question(self, max_length: int) -> int:
        """Return how many tokens a question may have that leaves room for an answer in a sequence of `max_length`."""
        return max_length - self.max_new_tokens

    def asked_tokens(self, row_length: int) -> int:
        """Return about how many tokens of rows of `row_length` the start weights are asked about at once; 0: none."""
        return max(TOKENS_AT_ONCE, row_length) if self.kl else 0

"""What an answer is worth: plain functions from (question, continuation, ended) to a number.

To add a reward: write such a function, add its name to `Reward` and to `REWARDS`, say in `reward_for` which questions
it judges, and raise `REWARDS_VERSION`, so that trainings by the rewards before it are not taken for new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpt_pipeline.data.config import PLAIN
from gpt_pipeline.data.formats.conversation import first_answer
from gpt_pipeline.data.formats.forms import FORMS
from gpt_pipeline.evaluation.choice import choice_match
from gpt_pipeline.evaluation.score import as_number, exact_match, numeric_match, split_answer

REWARDS_VERSION = "1"
_LONGEST_EXACT = 8  # words of an expected text; no one samples a longer one word for word

Reward = Literal["number", "option", "text"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a continuation is judged by."""

    query: str
    expected: str
    with_reasoning: bool
    """Whether the continuation is reasoning, then `A:` and the answer."""

    is_conversation: bool = False
    """Whether an answer also ends where the model begins the next message, as text."""

    template: str = PLAIN
    """Of the documents; see `data.formats.forms`."""

    reward: Reward


def reward_of(question: Question, continuation: str, ended: bool) -> float:
    """Return the reward of what a model wrote behind the question."""
    if question.is_conversation:
        continuation, goes_on = first_answer(continuation)
        ended = ended or goes_on
    return REWARDS[question.reward](question, continuation, ended)


def number(question: Question, continuation: str, ended: bool) -> float:
    """1 if the answer ended and its last number is the expected one."""
    return float(ended and bool(numeric_match(_answer(question, continuation), question.expected)))


def option(question: Question, continuation: str, ended: bool) -> float:
    """1 if the answer ended and takes the right one of the options."""
    answer = _answer(question, continuation)
    return float(ended and bool(choice_match(answer, query=question.query, expected=question.expected)))


def text(question: Question, continuation: str, ended: bool) -> float:
    """1 if the answer ended and is the expected text, up to case, punctuation, articles and white space."""
    return float(ended and exact_match(_answer(question, continuation), question.expected))


REWARDS: Mapping[Reward, Callable[[Question, str, bool], float]] = {"number": number, "option": option, "text": text}


def reward_for(query: str, expected: str) -> Reward | None:
    """Return the reward by which answers to a question are judged; None if none can tell right from wrong.

    As evaluations judge: the right option if there are options, else the right number, else the right text if it is
    short.
    """
    if choice_match(expected, query=query, expected=expected):
        return "option"
    if as_number(expected) is not None:
        return "number"
    return "text" if 0 < len(expected.split()) <= _LONGEST_EXACT else None


def _answer(question: Question, continuation: str) -> str:
    return split_answer(continuation, with_reasoning=question.with_reasoning, form=FORMS[question.template]).answer

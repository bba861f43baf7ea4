"""Score one answer: pure functions from text to numbers, independent of models and files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_pipeline.data.formats.forms import PLAIN, Form
from gpt_pipeline.evaluation.choice import choice_match, normalise

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
_CONSTRAINT_RESULT = re.compile(r"(?:^|[\s,;{\"'])result\"?\s*:\s*+(?:\"\s*+)?([^\s,;}\"']+(?:,\d{3})*)", re.IGNORECASE)
_RELATIVE_TOLERANCE = 1e-6  # 0.3333333 for a third is right, 0.33 is not


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated continuation, split into its parts."""

    reasoning: str
    """Empty if documents of this kind have none."""

    answer: str
    """Empty if the model wrote no answer part."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good one answer is. All numbers are in [0, 1]."""

    well_formed: bool
    """It ended by itself, with a non-empty answer and, if documents of this kind have one, a non-empty reasoning."""

    exact_match: bool
    """The answer is the expected text up to case, punctuation, articles and white space."""

    numeric_match: bool | None
    """The last number of the answer is the expected number; None if no number is expected."""

    choice_match: bool | None
    """The answer takes the right option; None if the question offers no options or the right one is ambiguous."""

    token_f1: float
    """Harmonic mean of precision and recall over words."""

    distinct_2: float | None
    """Share of different word pairs in the continuation; low means it repeats itself; None below 2 words."""

    @property
    def correct(self) -> bool:
        """The right option if there are options, else the right number if one is expected, else the right text."""
        verdicts = (self.choice_match, self.numeric_match, self.exact_match)
        return next(verdict for verdict in verdicts if verdict is not None)


def split_answer(generated: str, *, with_reasoning: bool, form: Form = PLAIN) -> Answer:
    """Split what a model generated after its prompt into reasoning and answer.

    With reasoning, the prompt ended in `Reasoning:` and the first `A:` paragraph starts the answer (in ChatML, in
    `<think>`, and what stands behind `</think>`). Without, the prompt ended in `A:` and everything is the answer.
    """
    if not with_reasoning:
        return Answer(reasoning="", answer=generated.strip())
    reasoning, _, answer = generated.partition(form.reasoned.rstrip(" "))  # an answer may start a line
    return Answer(reasoning=reasoning.strip(), answer=answer.strip())


def score_answer(
    generated: str, *, query: str, expected: str, ended: bool, with_reasoning: bool, form: Form = PLAIN
) -> Score:
    """Score one continuation against the expected answer; `ended`: the model stopped by itself."""
    parts = split_answer(generated, with_reasoning=with_reasoning, form=form)
    well_formed = ended and bool(parts.answer) and (bool(parts.reasoning) or not with_reasoning)
    return Score(
        well_formed=well_formed,
        exact_match=exact_match(parts.answer, expected),
        numeric_match=numeric_match(parts.answer, expected),
        choice_match=choice_match(parts.answer, query=query, expected=expected),
        token_f1=token_f1(parts.answer, expected),
        distinct_2=distinct_n(generated.split(), 2),
    )


def exact_match(answer: str, expected: str) -> bool:
    """Whether a non-empty `answer` is `expected`, both normalised."""
    return bool(answer.strip()) and normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 of the words of two normalised texts as bags, in [0, 1]; 0 if either has none."""
    found, wanted = normalise(answer).split(), normalise(expected).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def as_number(text: str) -> float | None:
    """Return the number that `text` is, or None if it is anything else. `$1,234.50`, `75 %` and `−3.` are numbers."""
    plain = _plain_minus(text).strip().strip("$€£%").strip().removesuffix(".")
    return _to_float(plain) if _NUMBER.fullmatch(plain) else None


def last_number(text: str) -> float | None:
    """Return the last number in `text`, or None. A hyphen inside a word or range is not a minus sign."""
    matches = list(_NUMBER.finditer(_plain_minus(text)))
    if not matches:
        return None
    last = matches[-1]
    digits = last.group()
    before = last.string[: last.start()][-1:]
    if digits[0] in "+-" and before and (before.isalnum() or before in ")]"):
        digits = digits[1:]
    return _to_float(digits)


def numeric_match(answer: str, expected: str) -> bool | None:
    """Whether the last number of `answer` is the number `expected` is; None if `expected` is not a number."""
    wanted = as_number(expected)
    if wanted is None:
        return None
    found = last_number(answer)
    return found is not None and math.isclose(found, wanted, rel_tol=_RELATIVE_TOLERANCE)


def distinct_n(words: Sequence[str], n: int) -> float | None:
    """Return the share of different n-grams among all n-grams (Li et al. 2016), or None if there is none."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def constraint_result(constraints: str | None) -> str | None:
    """Return the result that SYNTH's `constraints` state, as it is written there; None if it is not a number."""
    found = _CONSTRAINT_RESULT.search(constraints or "")
    if found is None:
        return None
    text = found.group(1)
    return text if as_number(text) is not None else None


def _plain_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _to_float(digits: str) -> float:
    return float(digits.replace(",", ""))

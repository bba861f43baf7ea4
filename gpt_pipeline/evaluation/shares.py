"""How far a share of a few right answers can be trusted, and whether two of them differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.evaluation.result import EvaluationResult, exercise_names, question_id

CHANCE = 0.05
"""Two results differ where chance alone would set them as far apart less often; intervals hold 1 - CHANCE."""

_Z = 1.959964  # the normal distribution's two-sided 95 % quantile


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `successes` among `total` independent trials, within [0, 1].

    The score interval of Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    JASA 22: unlike `share ± 2 standard errors` it holds for few trials and near 0 and 1. Without trials: (0, 1).

    Raises:
        ValueError: not 0 <= successes <= total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes={successes} must be from 0 to total={total}")
    if total == 0:
        return 0.0, 1.0
    middle = successes + _Z**2 / 2
    reach = _Z * math.sqrt(successes * (total - successes) / total + _Z**2 / 4)
    scale = total + _Z**2
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def sign_test(only_one: int, only_other: int) -> float:
    """Return how likely chance alone would split answers at least this unevenly, in [0, 1].

    Of two models that answered the same questions, `only_one` and `only_other` are how many each alone got right. What
    both got right or wrong tells nothing of their difference. The exact, two-sided form of McNemar (1947), "Note on the
    sampling error of the difference between correlated proportions or percentages", Psychometrika 12.
    """
    total = only_one + only_other
    tail = sum(math.comb(total, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / (1 << total))


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of answers, such as those that are right."""

    successes: int
    total: int
    """Answers of which it can be said; questions that expect no number are none of those for `numeric_match`."""

    @property
    def value(self) -> float:
        return self.successes / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        return wilson_interval(self.successes, self.total)

    def __str__(self) -> str:
        """`26 % (18–36 %)`, with the interval; no decimals, which few answers do not tell."""
        low, high = self.interval
        return f"{100 * self.value:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"


def share_of(answers: Iterable[Mapping[str, Any]], key: str) -> Share | None:
    """Return the share of an evaluation's answers for which `key` is true; None where it is none, or not recorded."""
    said = [answer[key] for answer in answers if isinstance(answer.get(key), bool)]
    return Share(successes=sum(said), total=len(said)) if said else None


def right_by_kind(result: EvaluationResult) -> dict[str, Share]:
    """Return the share of right answers by the name of their kind, as in the metric `correct/<name>`."""
    names = exercise_names(str(answer["exercise"]) for answer in result.answers)
    shares = {
        name: share_of([answer for answer in result.answers if answer["exercise"] == exercise], "correct")
        for exercise, name in names.items()
    }
    # Names that only a hash tells apart depend on the documents' kinds too: such a kind is left out.
    return {name: share for name, share in shares.items() if share is not None and f"correct/{name}" in result.metrics}


def within_noise(one: Iterable[Mapping[str, Any]], other: Iterable[Mapping[str, Any]], key: str) -> bool:
    """Whether chance explains by which of two evaluations does better at `key`, question by question.

    Paired, as both answered the same questions: that tells more than two intervals that overlap. It serves flags and
    figures such as the F1 of words alike, since only which answer is better counts. False where answers have no `key`.
    """
    values = {question_id(answer): answer.get(key) for answer in other}
    pairs = [(answer.get(key), values.get(question_id(answer))) for answer in one]
    known = [(mine, its) for mine, its in pairs if mine is not None and its is not None]
    better, worse = sum(mine > its for mine, its in known), sum(mine < its for mine, its in known)
    return bool(known) and sign_test(better, worse) >= CHANCE

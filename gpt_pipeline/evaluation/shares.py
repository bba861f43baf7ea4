"""How far a share of a few right answers can be trusted, and whether two of them differ by more than chance."""

from __future__ import annotations

import math

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

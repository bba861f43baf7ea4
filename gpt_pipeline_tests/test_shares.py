import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.evaluation.shares import sign_test, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_without_trials_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_interval_encloses_its_share_and_mirrors(right: int, wrong: int) -> None:
    low, high = wilson_interval(right, right + wrong)
    assert 0 <= low <= right / max(right + wrong, 1) + 1e-12
    assert right / max(right + wrong, 1) - 1e-12 <= high <= 1
    assert wilson_interval(wrong, right + wrong) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_narrows_with_more_trials() -> None:
    widths = [high - low for low, high in (wilson_interval(n // 4, n) for n in (4, 20, 84, 1000))]
    assert all(wider > narrower for wider, narrower in itertools.pairwise(widths))


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5)])
def test_wilson_interval_of_impossible_counts_is_refused(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"successes={successes}"):
        wilson_interval(successes, total)


def test_sign_test_equals_the_binomial_by_enumeration() -> None:
    for one, other in [(0, 0), (1, 0), (5, 0), (6, 0), (9, 2), (10, 2), (7, 7)]:
        flips = itertools.product((0, 1), repeat=one + other)
        as_uneven = [flip for flip in flips if abs(2 * sum(flip) - one - other) >= abs(one - other)]
        assert math.isclose(sign_test(one, other), len(as_uneven) / 2 ** (one + other))
        assert sign_test(one, other) == sign_test(other, one)

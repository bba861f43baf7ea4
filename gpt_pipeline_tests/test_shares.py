import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.evaluation.shares import share_of, sign_test, wilson_interval, within_noise


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


def answers(*correct: bool | None, f1: float = 0.0) -> list[dict[str, object]]:
    return [{"synth_id": str(n), "question": "?", "correct": each, "token_f1": f1} for n, each in enumerate(correct)]


def test_share_of_answers_counts_those_of_which_it_can_be_said() -> None:
    share = share_of(answers(True, None, False), "correct")
    assert share is not None
    assert (share.successes, share.total, share.value) == (1, 2, 0.5)
    assert share_of(answers(None), "correct") is None
    assert share_of([{}], "correct") is None


def test_within_noise_counts_the_questions_that_only_one_answers_better() -> None:
    both = [True] * 50
    assert within_noise(answers(*both, *[True] * 5), answers(*both, *[False] * 5), "correct")
    assert not within_noise(answers(*both, *[True] * 6), answers(*both, *[False] * 6), "correct")
    assert not within_noise(answers(*both, f1=0.5), answers(*both, f1=0.4), "token_f1")
    assert within_noise(answers(*both), answers(*both), "correct")
    assert not within_noise(answers(*both), answers(*both), "answer_loss")  # of which no answer tells

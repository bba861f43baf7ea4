from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.evaluation.choice import normalise
from gpt_pipeline.evaluation.score import (
    as_number,
    constraint_result,
    distinct_n,
    exact_match,
    last_number,
    numeric_match,
    score_answer,
    split_answer,
    token_f1,
)
from gpt_pipeline_tests.synth_rows import document_text

WORDS = st.text(alphabet="abc xyz0123.,-", min_size=1).filter(str.strip)


@given(WORDS, WORDS, WORDS)
def test_split_answer_of_a_document_returns_its_reasoning_and_answer(query: str, reasoning: str, answer: str) -> None:
    generated = document_text(query, reasoning, answer).removeprefix(f"Q: {query}\n\nReasoning:\n")
    parts = split_answer(generated, with_reasoning=True)
    assert (parts.reasoning, parts.answer) == (reasoning.strip(), answer.strip())


@given(WORDS, WORDS)
def test_split_answer_of_a_document_without_reasoning_returns_all_of_it(query: str, answer: str) -> None:
    generated = document_text(query, "", answer).removeprefix(f"Q: {query}\n\nA:")
    assert split_answer(generated, with_reasoning=False).answer == answer.strip()


@given(WORDS, WORDS)
def test_score_answer_of_the_reference_is_right_in_every_respect(reasoning: str, answer: str) -> None:
    generated = f"{reasoning}\n\nA: {answer}"
    score = score_answer(generated, query="Well?", expected=answer, ended=True, with_reasoning=True)
    assert score.well_formed
    assert score.exact_match
    assert score.correct
    assert score.token_f1 == 1


@pytest.mark.parametrize(
    ("generated", "ended", "with_reasoning"),
    [
        ("Two and two.\n\nA: 4", False, True),
        ("Two and two.", True, True),
        ("Two and two.\n\nA: ", True, True),
        ("\n\nA: 4", True, True),
        ("Two and two. A: 4", True, True),
        ("  ", True, False),
        ("4", False, False),
    ],
)
def test_score_answer_lacking_a_part_or_an_end_is_not_well_formed(
    generated: str, ended: bool, with_reasoning: bool
) -> None:
    assert not score_answer(
        generated, query="Well?", expected="4", ended=ended, with_reasoning=with_reasoning
    ).well_formed


def test_score_answer_counts_no_number_of_the_reasoning() -> None:
    score = score_answer("It is 42.", query="Well?", expected="42", ended=True, with_reasoning=True)
    assert score.numeric_match is False
    assert not score.correct


def test_score_answer_with_a_number_expected_goes_by_the_number_alone() -> None:
    score = score_answer("6*7\n\nA: The answer is 42.", query="Well?", expected="42", ended=True, with_reasoning=True)
    assert score.correct
    assert not score.exact_match


def test_score_answer_with_a_text_expected_goes_by_the_text() -> None:
    score = score_answer(
        "It flows there.\n\nA: the Danube!", query="Well?", expected="The Danube", ended=True, with_reasoning=True
    )
    assert score.numeric_match is None
    assert score.correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42.0),
        (" $1,234.50 ", 1234.5),
        ("75 %", 75.0),
        ("\N{MINUS SIGN}3.", -3.0),
        ("-0.5", -0.5),
        (".25", 0.25),
        ("1,23", None),
        ("42 apples", None),
        ("1e5", None),
        ("", None),
        ("Failed after maximum attempts", None),
    ],
)
def test_as_number_takes_a_number_and_nothing_else(text: str, number: float | None) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 cats and 4 dogs.", 4.0),
        ("10-5", 5.0),
        ("(10)-5", 5.0),
        ("minus: -5", -5.0),
        ("= -5", -5.0),
        ("$1,234,567.89.", 1234567.89),
        ("12,3456", 3456.0),
        ("\\boxed{18}", 18.0),
        ("none", None),
    ],
)
def test_last_number_finds_the_last(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**12), 10**12))
def test_numeric_match_accepts_a_number_in_any_writing(number: int) -> None:
    for writing in (f"{number}", f"So it is {number:,}.", f"{number}.00 in all"):
        assert numeric_match(writing, str(number)) is True
    assert numeric_match(f"{number + 1 + abs(number) // 1000}", str(number)) is False


@pytest.mark.parametrize(
    ("constraints", "number"),
    [
        ("result:82", "82"),
        ("Result: -3.5", "-3.5"),
        ("length:short; result:1,234", "1,234"),
        ('{"result": "7"}', "7"),
        ("result:Failed after maximum attempts", None),
        ("noresult:5", None),
        ("", None),
        (None, None),
    ],
)
def test_constraint_result_finds_the_number(constraints: str | None, number: str | None) -> None:
    assert constraint_result(constraints) == number


@given(st.text(), st.text())
def test_token_f1_is_symmetric_within_bounds_and_one_for_equal_bags(first: str, second: str) -> None:
    assert token_f1(first, second) == token_f1(second, first)
    assert 0 <= token_f1(first, second) <= 1
    assert not exact_match(first, second) or not normalise(first) or token_f1(first, second) == 1


def test_token_f1_of_half_the_words_is_two_thirds() -> None:
    assert math.isclose(token_f1("red", "red blue"), 2 / 3)


def test_exact_match_of_two_empty_texts_is_none() -> None:
    assert not exact_match("", "")
    assert not exact_match("+", "-")


@given(st.text())
def test_normalise_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert len(normalise(once)) <= len(once)


def test_distinct_n_falls_with_repetition() -> None:
    assert distinct_n(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(2 / 5)
    assert distinct_n(["a", "b", "c"], 2) == 1
    assert distinct_n(["a"], 2) is None


def test_constraint_result_in_a_text_of_many_blanks_takes_no_time() -> None:
    assert constraint_result(f"result:{' ' * 300_000}, result: 4") == "4"  # it took hours

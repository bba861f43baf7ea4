from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.data.sources.sample.articles import articles
from gpt_pipeline.data.sources.sample.reading import mcq
from gpt_pipeline.evaluation.choice import choice_match, chosen_option, options_of

RIVERS = {"A": "Rhine", "B": "Danube", "C": "Elbe"}


@pytest.mark.parametrize(
    "query",
    [
        "Which one flows there: the Rhine (A), the Danube (B) or the Elbe (C)? Help Mary.",
        "Which one flows there: the Rhine (A), the Danube (B), the Elbe (C)?",
        "Which one flows there?\nA) the Rhine\nB) the Danube\nC) the Elbe",
        "Which one flows there?\n(a) the Rhine\n(b) the Danube\n(c) the Elbe\nAnswer with a letter.",
        "Which one flows there?\n\nA. the Rhine\n\nB. the Danube\n\nC. the Elbe\n",
        "Which one flows there?\n- **A:** the Rhine\n- **B:** the Danube\n- **C:** the Elbe",
        "Which one flows there? A) the Rhine, B) the Danube, or C) the Elbe?",
        "Which one flows there? (A) the Rhine (B) the Danube (C) the Elbe",
    ],
)
def test_options_of_a_multiple_choice_question_are_found_in_many_writings(query: str) -> None:
    assert {letter: text.removeprefix("the ") for letter, text in options_of(query).items()} == RIVERS


@pytest.mark.parametrize(
    "query",
    [
        "What is (A) called?",
        "Who was J. B. Smith (B)?",
        "She bought 3 apples (at 2 a piece) and a pear. How much?",
        "B) second\nC) third",
        "See a) in the text.",
        "",
    ],
)
def test_options_of_other_questions_are_none(query: str) -> None:
    assert options_of(query) == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("B) the Danube", "B"),
        ("B. It flows there.", "B"),
        ("The answer is B.", "B"),
        ("Option A is too far west. The correct answer is **B**, since it flows there.", "B"),
        ("Not the Rhine (A) but the Danube (B): the answer is (B)", "B"),
        ("It is the Danube (B).", "B"),
        ("Danube", "B"),
        ("It is the danube!", "B"),
        ("A) the Rhine\nB) the Danube", None),
        ("The Rhine or the Danube", None),
        ("The answer is a river.", None),
        ("D", None),
        ("", None),
    ],
)
def test_chosen_option_is_the_one_an_answer_takes(answer: str, letter: str | None) -> None:
    assert chosen_option(answer, RIVERS) == letter


def test_chosen_option_prefers_the_longer_of_two_options_in_one_another() -> None:
    assert chosen_option("It is dark red.", {"A": "red", "B": "dark red"}) == "B"
    assert chosen_option("It is red.", {"A": "red", "B": "dark red"}) == "A"


def test_choice_match_of_a_question_without_a_clear_right_option_is_none() -> None:
    tasks = "Solve both.\na) x + 1 = 2\nb) y + 1 = 3"
    assert choice_match("1", query=tasks, expected="a) x = 1\nb) y = 2") is None
    assert choice_match("B", query="What is it?", expected="B") is None


@given(st.integers(0, 10_000))
def test_choice_match_of_the_samples_questions_knows_right_from_wrong(number: int) -> None:
    rng = Random(number)
    draft = mcq(rng, rng.choice(articles(0)))
    options = options_of(draft.query)
    assert len(options) == 3, draft.query
    for letter, text in options.items():
        for answer in (letter, text, f"The answer is {text} ({letter})."):
            assert choice_match(answer, query=draft.query, expected=draft.answer) is (letter == draft.answer)


MANY = 300_000  # a text of so many took hours, when each blank was sought from again


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("x" + "\n" * MANY + "B. y", "Which?\nA) red\nB) blue"),
        ("x" + "\n*_" * MANY + "(B) y", "Which?\nA) red\nB) blue"),
        ("blue", f"Which?\nA) red{' ' * MANY}wine\nB) blue"),
    ],
)
def test_choice_in_a_text_of_many_blanks_takes_no_time(answer: str, query: str) -> None:
    assert choice_match(answer, query=query, expected="B")

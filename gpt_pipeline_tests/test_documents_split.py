from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.formats.synth_text import SYNTH_COLUMNS
from gpt_pipeline_tests.synth_rows import article_key, document_text, prompt_text


def test_document_text_with_reasoning_has_three_parts() -> None:
    assert document_text("Why?", "Think.", "So.") == "Q: Why?\n\nReasoning:\nThink.\n\nA: So."


@pytest.mark.parametrize("reasoning", [None, "", " \n\t "])
def test_document_text_blank_reasoning_has_two_parts(reasoning: str | None) -> None:
    assert document_text("Why?", reasoning, "So.") == "Q: Why?\n\nA: So."


@given(query=st.text(), reasoning=st.text(min_size=1).filter(lambda text: bool(text.strip())), answer=st.text())
def test_prompt_text_is_the_beginning_of_the_document(query: str, reasoning: str, answer: str) -> None:
    assert document_text(query, reasoning, answer).startswith(prompt_text(query) + reasoning)


def test_article_key_without_url_is_the_row_itself() -> None:
    assert article_key("https://en.wikipedia.org/wiki/Moss", "id_1") == "https://en.wikipedia.org/wiki/Moss"
    assert article_key(None, "id_1") == article_key("", "id_1") == article_key("  ", "id_1") == "id_1"


def test_held_out_share_is_near_the_fraction() -> None:
    held_out = sum(is_held_out(f"article {i}", seed=3, fraction=0.1) for i in range(20_000))
    assert 1_850 < held_out < 2_150  # 0.1 +- 3.5 standard deviations


@given(article=st.text(), seed=st.integers(0, 2**31), fraction=st.floats(0.0, 0.5))
def test_held_out_article_stays_held_out_when_the_fraction_grows(article: str, seed: int, fraction: float) -> None:
    if is_held_out(article, seed=seed, fraction=fraction):
        assert is_held_out(article, seed=seed, fraction=min(1.0, 2 * fraction))
    assert not is_held_out(article, seed=seed, fraction=0.0)
    assert is_held_out(article, seed=seed, fraction=1.0)


def test_held_out_articles_differ_with_the_seed() -> None:
    sides = [[is_held_out(f"article {i}", seed=seed, fraction=0.5) for i in range(200)] for seed in (0, 1)]
    assert sides[0] != sides[1]


def test_held_out_choice_is_the_same_on_every_machine_and_version() -> None:
    held_out = [i for i in range(60) if is_held_out(f"article {i}", seed=0, fraction=0.1)]
    assert held_out == [2, 25, 34, 36, 48, 51]


def test_synth_columns_are_the_fourteen_of_the_dataset() -> None:
    assert len(set(SYNTH_COLUMNS)) == 14

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.formats.synth_text import FAILED_CONSTRAINT, SYNTH_COLUMNS, is_blank
from gpt_pipeline.data.sources.sample import file_name, write_file
from gpt_pipeline.data.sources.sample.articles import FACTS, VALUES, articles
from gpt_pipeline.data.sources.sample.languages import LANGUAGES, foreign_draft, roman
from gpt_pipeline.data.sources.sample.reading import mcq
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline_tests.synth_rows import article_key
from gpt_pipeline_tests.synth_rows import document_text as text_of

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """20,000 rows: two files, written as the demo's are."""
    files = write_sample(tmp_path_factory.mktemp("sample"), num_english=9000)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def english(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _is_usable(row)]


def _is_usable(row: Row) -> bool:
    blank = is_blank(row["query"]) or is_blank(row["synthetic_answer"])
    return row["language"] == "en" and not blank and row["constraints"] != FAILED_CONSTRAINT


def write_sample(folder: Path, *, num_english: int, seed: int = 0, rows_per_file: int = 10_000) -> list[Path]:
    """Write the sample's first files until they hold `num_english` usable rows."""
    files: list[Path] = []
    usable = 0
    while usable < num_english:
        number = len(files) + 1
        files.append(write_file(folder / file_name(number), number, seed=seed, n_rows=rows_per_file))
        usable += sum(map(_is_usable, pq.read_table(files[-1]).to_pylist()))
    return files


def _share(rows: list[Row], column: str, value: str | None) -> float:
    return sum(row[column] == value for row in rows) / len(rows)


def _reasoned(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not is_blank(row["synthetic_reasoning"])]


def test_sample_schema_is_that_of_synth(tmp_path: Path) -> None:
    (file,) = write_sample(tmp_path, num_english=1, rows_per_file=50)
    schema = pq.read_schema(file)
    assert tuple(schema.names) == SYNTH_COLUMNS
    assert [schema.field(name).type for name in SYNTH_COLUMNS[:-1]] == [pa.string()] * 13
    assert schema.field("words").type == pa.int64()
    assert all(field.nullable for field in schema)


def test_sample_file_has_one_row_group_and_the_asked_rows(tmp_path: Path) -> None:
    files = write_sample(tmp_path, num_english=120, rows_per_file=100)
    assert [file.name for file in files] == ["synth_001.parquet", "synth_002.parquet"]
    for file in files:
        metadata = pq.read_metadata(file)
        assert (metadata.num_rows, metadata.num_row_groups) == (100, 1)


@pytest.mark.parametrize("num_english", [1, 79, 300])
def test_sample_holds_at_least_the_english_documents_asked_for(tmp_path: Path, num_english: int) -> None:
    files = write_sample(tmp_path, num_english=num_english, rows_per_file=100)
    usable = [sum(_is_usable(row) for row in pq.read_table(file).to_pylist()) for file in files]
    assert sum(usable) >= num_english > sum(usable[:-1])


def test_sample_written_twice_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    first = write_sample(tmp_path / "first", num_english=300, rows_per_file=200)
    second = write_sample(tmp_path / "second", num_english=300, rows_per_file=200)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_sample_asked_for_more_documents_keeps_the_files_it_had(tmp_path: Path) -> None:
    few = write_sample(tmp_path / "few", num_english=100, rows_per_file=100)
    many = write_sample(tmp_path / "many", num_english=400, rows_per_file=100)
    assert len(many) > len(few)
    assert [file.read_bytes() for file in few] == [file.read_bytes() for file in many[: len(few)]]


def test_sample_with_another_seed_has_other_documents(tmp_path: Path) -> None:
    (first,) = write_sample(tmp_path / "0", num_english=1, seed=0, rows_per_file=100)
    (second,) = write_sample(tmp_path / "1", num_english=1, seed=1, rows_per_file=100)
    queries = [set(pq.read_table(file)["query"].to_pylist()) for file in (first, second)]
    assert len(queries[0] & queries[1]) < 10


def test_sample_languages_have_the_shares_of_synth(rows: list[Row]) -> None:
    assert _share(rows, "language", "en") == pytest.approx(0.808, abs=0.01)
    for code in ("de", "es", "fr", "pl", "it"):
        assert _share(rows, "language", code) == pytest.approx(0.032, abs=0.006)
    for code in ("nl", "la"):
        assert _share(rows, "language", code) == pytest.approx(0.016, abs=0.005)
    assert 0 < _share(rows, "language", None) < 0.004
    assert {row["language"] for row in rows} == {"en", None, *LANGUAGES}
    assert len(LANGUAGES) == 8


def test_sample_first_row_is_not_english(rows: list[Row]) -> None:
    assert rows[0]["language"] == "de"


def test_sample_ids_are_unique(rows: list[Row]) -> None:
    assert len({row["synth_id"] for row in rows}) == len(rows)


def test_sample_words_are_counted_before_anything_is_taken_away(english: list[Row]) -> None:
    for row in _reasoned(english):
        parts = (row["query"], row["synthetic_reasoning"], row["synthetic_answer"])
        assert row["words"] == sum(len(part.split()) for part in parts)


def test_sample_exercises_without_reasoning_have_an_empty_text_not_null(rows: list[Row]) -> None:
    whole = [row for row in rows if row["exercise"] in ("editing", "constrained writing")]
    assert whole
    assert _share(whole, "synthetic_reasoning", "") > 0.97  # the others had their reasoning taken away on purpose
    assert all(is_blank(row["synthetic_reasoning"]) for row in whole)


def test_sample_lacks_something_in_some_two_percent_of_rows(rows: list[Row]) -> None:
    lacking = [row for row in rows if is_blank(row["query"]) or is_blank(row["synthetic_answer"])]
    assert len(lacking) / len(rows) == pytest.approx(0.025 * 2 / 3, abs=0.005)
    found = {row[column] for row in lacking for column in ("query", "synthetic_answer") if is_blank(row[column])}
    assert found == {None, "", " \n"}


def test_sample_math_rows_have_no_article_and_a_number_to_check(rows: list[Row]) -> None:
    math = [row for row in rows if row["exercise"] == "math exercise"]
    assert all(row["query_seed_url"] is None and row["query_seed_text"] is None for row in math)
    assert all(re.fullmatch(r"result:(\d+|Failed after maximum attempts)", row["constraints"]) for row in math)
    assert 0 < _share(math, "constraints", FAILED_CONSTRAINT) < 0.03


def test_sample_math_answers_are_what_the_numbers_of_the_question_give(english: list[Row]) -> None:
    checked = Counter[str]()
    for row in _reasoned(english):
        if row["exercise"] != "math exercise":
            continue
        numbers = [int(number) for number in re.findall(r"\d+", row["query"])]
        a, b = numbers[0], numbers[-1]
        larger = max(a, b) if re.search(r"larger|more \w+\?", row["query"]) else min(a, b)
        right = {"addition": a + b, "subtraction": a - b, "doubling": 2 * a, "comparison": larger}[row["script"]]
        assert row["synthetic_answer"] == str(right)
        assert row["constraints"] == f"result:{right}"
        checked[row["script"]] += 1
    assert min(checked[script] for script in ("addition", "subtraction", "doubling", "comparison")) > 100


def test_sample_other_rows_share_their_article_and_its_text(english: list[Row]) -> None:
    seeded = [row for row in english if row["exercise"] != "math exercise"]
    texts: dict[str, set[str]] = {}
    for row in seeded:
        texts.setdefault(row["query_seed_url"], set()).add(row["query_seed_text"])
    assert all(len(found) == 1 for found in texts.values())
    assert len(seeded) / len(texts) > 10


def test_sample_answers_to_questions_about_a_text_stand_in_that_text(english: list[Row]) -> None:
    rag = [row for row in english if row["exercise"] == "rag"]
    assert len(rag) > 1000
    for row in rag:
        assert f" {row['synthetic_answer']}" in f" {row['query']}"
        assert row["synthetic_answer"] in row["query_seed_text"]


def test_mcq_letter_names_the_one_option_that_its_article_gives() -> None:
    rng = Random("mcq")
    letters = Counter[str]()
    for article in articles(0) * 3:
        draft = mcq(rng, article)
        words_of = {letter: word for word, letter in re.findall(r"(\w+) \(([ABC])\)", draft.query)}
        assert set(words_of) == {"A", "B", "C"}
        assert len(set(words_of.values())) == 3
        assert f"{words_of[draft.answer]} ({draft.answer})." in draft.reasoning
        if draft.script == "choice of a fact":
            assert words_of[draft.answer] in article.text
        letters[draft.answer] += 1
    assert min(letters.values()) > 0.8 * letters.total() / 3


def test_sample_uses_every_kind_of_exercise_and_every_template_family(english: list[Row]) -> None:
    exercises = Counter(row["exercise"] for row in english)
    assert set(exercises) == {
        "math exercise",
        "memorization",
        "rag",
        "mcq",
        "editing",
        "constrained writing",
        "creative writing",
    }
    assert min(exercises.values()) > 0.03 * len(english)
    assert len({(row["exercise"], row["script"]) for row in english}) > 20


def test_sample_documents_fit_the_demo_and_use_few_tokens(english: list[Row]) -> None:
    encoding = gpt2()
    texts = [text_of(row["query"], row["synthetic_reasoning"], row["synthetic_answer"]) for row in english[:4000]]
    tokens = encoding.encode_batch(texts)
    assert max(map(len, tokens)) < 80
    assert 40 < sum(map(len, tokens)) / len(tokens) < 60
    assert len({token for each in tokens for token in each}) < 1000


def test_sample_held_out_questions_are_hardly_ever_asked_in_training(english: list[Row]) -> None:
    held_out = [
        is_held_out(article_key(row["query_seed_url"], row["synth_id"]), seed=0, fraction=0.05) for row in english
    ]
    asked = {row["query"] for row, out in zip(english, held_out, strict=True) if not out}
    questions = [row["query"] for row, out in zip(english, held_out, strict=True) if out]
    assert len(questions) > 300
    assert sum(question in asked for question in questions) / len(questions) < 0.04


def test_sample_documents_are_hardly_ever_the_same(english: list[Row]) -> None:
    texts = {(row["query"], row["synthetic_reasoning"], row["synthetic_answer"]) for row in english}
    assert len(texts) > 0.97 * len(english)


def test_facts_name_only_words_that_every_article_has() -> None:
    names = set(articles(0)[0].words)
    for fact in (fact for facts in FACTS.values() for fact in facts):
        texts = (*fact.statements, *fact.questions, fact.aim, fact.finding)
        assert {field for text in texts for _, field, _, _ in Formatter().parse(text) if field} <= names
        assert all(f"{{{fact.field}}}" in text for text in (*fact.statements, fact.finding))
        assert fact.field in VALUES


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_foreign_drafts_in_each_language_are_filled_in_and_consistent(code: str) -> None:
    rng, language = Random(code), LANGUAGES[code]
    drafts = [foreign_draft(rng, language, name=language.names[0], town=language.towns[0]) for _ in range(200)]
    assert {draft.exercise for draft in drafts} == {
        "math exercise",
        "rag",
        "memorization",
        "editing",
        "constrained writing",
    }
    for draft in drafts:
        text = text_of(draft.query, draft.reasoning, draft.answer)
        assert "{" not in text
        assert text == text.strip()
        if draft.exercise == "rag":
            assert draft.answer in draft.query


@pytest.mark.parametrize(("number", "numeral"), [(5, "V"), (9, "IX"), (14, "XIV"), (30, "XXX"), (39, "XXXIX")])
def test_roman_gives_the_numeral(number: int, numeral: str) -> None:
    assert roman(number) == numeral

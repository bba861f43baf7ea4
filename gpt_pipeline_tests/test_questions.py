from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.formats.synth import DOCUMENT_SCHEMA
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation.questions import Question, cached_questions, held_out_questions
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult
from gpt_pipeline_tests.synth_rows import document_text, prompt_text

DATA = DataConfig(num_samples=1000, validation_fraction=0.2, seed=7)


def document(
    number: int, *, exercise: str = "qa", article: str | None = None, query: str | None = None, **parts: str
) -> dict[str, object]:
    query = query or f"Quéstion 🙂 {number}?"
    reasoning, answer = parts.get("reasoning", f"Because {number}."), parts.get("answer", f"It is {number}.")
    text = document_text(query, reasoning, answer)
    begin = len(prompt_text(query))
    return {
        "synth_id": f"s{number}",
        "exercise": exercise,
        "article": article or f"https://example.org/{number}",
        "constraints": parts.get("constraints"),
        "text": text,
        "query_start": 3,
        "query_end": 3 + len(query),
        "reasoning_start": begin if reasoning else None,
        "reasoning_end": begin + len(reasoning) if reasoning else None,
        "answer_start": len(text) - len(answer),
        "answer_bytes": len(answer.encode()),
    }


def stage(folder: Path, documents: Sequence[dict[str, object]], fingerprint: str = "e" * 64) -> StageResult:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "synth_en_samples_1000.parquet"
    pq.write_table(pa.Table.from_pylist(list(documents), schema=DOCUMENT_SCHEMA), path, row_group_size=97)
    record = FileRecord(size=path.stat().st_size, sha256="0" * 64)
    manifest = Manifest(stage="english_parquet", fingerprint=fingerprint, config={}, files={path.name: record})
    return StageResult(folder=folder, manifest=manifest, reused=False)


def ask(english: StageResult, count: int = 8, seed: int = 0, **changes: int) -> list[Question]:
    return held_out_questions(english, DATA, count=count, seed=seed, **changes)


def held_out(article: str) -> bool:
    return is_held_out(article, seed=DATA.seed, fraction=DATA.validation_fraction)


def an_article(*, side: str) -> str:
    return next(name for name in map(str, itertools.count()) if held_out(name) == (side == "held out"))


MIXED = [document(n, exercise=("qa", "math exercise", "editing")[n % 3 if n % 10 else 0]) for n in range(600)]


def test_questions_come_from_held_out_articles_only(tmp_path: Path) -> None:
    questions = ask(stage(tmp_path, MIXED), count=1000)
    assert {question.synth_id for question in questions} == {
        document["synth_id"] for document in MIXED if held_out(str(document["article"]))
    }


def test_questions_are_spread_over_exercises(tmp_path: Path) -> None:
    counts = Counter(question.exercise for question in ask(stage(tmp_path, MIXED), count=9))
    assert counts == {"qa": 3, "math exercise": 3, "editing": 3}


def test_questions_do_not_depend_on_batches_or_on_the_order_of_documents(tmp_path: Path) -> None:
    english = stage(tmp_path / "a", MIXED)
    expected = ask(english)
    assert ask(english, batch_rows=1) == expected
    assert ask(english, batch_rows=13) == expected
    assert ask(stage(tmp_path / "b", MIXED[::-1])) == expected


def test_questions_with_another_seed_differ(tmp_path: Path) -> None:
    english = stage(tmp_path, MIXED)
    assert {q.synth_id for q in ask(english, seed=1)} != {q.synth_id for q in ask(english, seed=2)}


def test_questions_of_more_count_contain_those_of_less(tmp_path: Path) -> None:
    english = stage(tmp_path, MIXED)
    assert ask(english, count=20)[:5] == ask(english, count=5)


def test_question_parts_are_the_documents_own(tmp_path: Path) -> None:
    article = an_article(side="held out")
    (question,) = ask(stage(tmp_path, [document(1, article=article, query="Wie groß?", constraints="result:82")]))
    assert question.prompt == prompt_text("Wie groß?")
    assert (question.query, question.reasoning, question.answer) == ("Wie groß?", "Because 1.", "It is 1.")
    assert question.expected == "82"
    assert question.answer_prompt == "Q: Wie groß?\n\nReasoning:\nBecause 1.\n\nA:"
    assert question.with_reasoning


def test_question_of_a_document_without_reasoning_asks_for_the_answer_at_once(tmp_path: Path) -> None:
    (question,) = ask(stage(tmp_path, [document(1, article=an_article(side="held out"), query="Edit!", reasoning="")]))
    assert question.prompt == question.answer_prompt == "Q: Edit!\n\nA:"
    assert question.expected == "It is 1."
    assert not question.with_reasoning


def test_question_that_stands_in_a_training_document_too_is_not_asked(tmp_path: Path) -> None:
    ours, theirs = an_article(side="held out"), an_article(side="training")
    documents = [
        document(1, article=ours, query="Leaked?"),
        document(2, article=theirs, query="Leaked?"),
        document(3, article=ours, query="Leaked? Not."),
    ]
    assert [question.synth_id for question in ask(stage(tmp_path, documents))] == ["s3"]


def test_question_of_two_held_out_documents_is_asked_once(tmp_path: Path) -> None:
    ours = an_article(side="held out")
    documents = [document(n, article=ours, query="Twice?", exercise=f"kind {n % 2}") for n in (3, 2, 1)]
    assert len(ask(stage(tmp_path, documents))) == 1


@pytest.mark.parametrize("count", [0, 5])
def test_questions_without_held_out_documents_are_none(tmp_path: Path, count: int) -> None:
    documents = [document(1, article=an_article(side="training"))]
    assert ask(stage(tmp_path, documents), count=count) == []


def test_cached_questions_are_not_read_from_the_documents_again(tmp_path: Path) -> None:
    english = stage(tmp_path / "english", MIXED)
    first = cached_questions(tmp_path / "questions", english, DATA, count=5, seed=0)
    (english.folder / next(iter(english.manifest.files))).unlink()
    assert cached_questions(tmp_path / "questions", english, DATA, count=5, seed=0) == first
    with pytest.raises(DamagedFileError, match="is missing"):
        cached_questions(tmp_path / "questions", english, DATA, count=6, seed=0)


def test_cached_questions_that_are_damaged_are_chosen_again(tmp_path: Path) -> None:
    english = stage(tmp_path / "english", MIXED)
    first = cached_questions(tmp_path / "questions", english, DATA, count=5, seed=0)
    (kept,) = (tmp_path / "questions").iterdir()
    kept.write_text('{"questions": ', encoding="utf-8")
    assert cached_questions(tmp_path / "questions", english, DATA, count=5, seed=0) == first

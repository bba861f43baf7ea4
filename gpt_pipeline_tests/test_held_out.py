from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.evaluation.held_out import cached_choice, choose_documents
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.test_questions import DATA, MIXED, stage

HELD_OUT = [
    each for each in MIXED if is_held_out(str(each["article"]), seed=DATA.seed, fraction=DATA.validation_fraction)
]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return stage(tmp_path_factory.mktemp("english"), MIXED)


def test_choose_documents_names_place_and_exercise_among_the_held_out(english: StageResult) -> None:
    choice = choose_documents(english, DATA, count=1000, seed=0)
    assert choice.available == len(HELD_OUT)
    assert [each.number for each in choice.documents] == list(range(len(HELD_OUT)))
    assert [each.exercise for each in choice.documents] == [each["exercise"] for each in HELD_OUT]


def test_choose_documents_spreads_them_over_exercises(english: StageResult) -> None:
    choice = choose_documents(english, DATA, count=9, seed=0)
    assert Counter(each.exercise for each in choice.documents) == {"qa": 3, "math exercise": 3, "editing": 3}


def test_choose_documents_depends_on_the_seed_and_not_on_batches(english: StageResult) -> None:
    first = choose_documents(english, DATA, count=9, seed=0)
    assert choose_documents(english, DATA, count=9, seed=0, batch_rows=7) == first
    assert choose_documents(english, DATA, count=9, seed=1) != first
    assert set(first.documents) <= set(choose_documents(english, DATA, count=30, seed=0).documents)


def test_choose_documents_of_none_still_counts_them(english: StageResult) -> None:
    assert choose_documents(english, DATA, count=0, seed=0).documents == ()
    assert choose_documents(english, DATA, count=0, seed=0).available == len(HELD_OUT)


def test_cached_choice_is_not_read_from_the_documents_again(tmp_path: Path) -> None:
    english = stage(tmp_path / "english", MIXED)
    first = cached_choice(tmp_path / "kept", english, DATA, count=9, seed=0)
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text("{", encoding="utf-8")
    assert cached_choice(tmp_path / "kept", english, DATA, count=9, seed=0) == first
    (english.folder / next(iter(english.manifest.files))).unlink()
    assert cached_choice(tmp_path / "kept", english, DATA, count=9, seed=0) == first


def test_chosen_documents_are_those_of_the_shards(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from gpt_pipeline.data.documents.stage import document_files

    data = DataConfig(num_samples=300, max_length=48, source="sample", validation_fraction=0.2)
    english = prepare_documents(data, prepare_raw(data, tmp_path), tmp_path)
    stream = open_shards(prepare_shards(data, english, tmp_path).folder).validation
    rows = [row for path in document_files(english) for row in pq.read_table(path).to_pylist()]
    rows = [row for row in rows if is_held_out(row["article"], seed=0, fraction=0.2)]
    choice = choose_documents(english, data, count=20, seed=0)
    assert len(choice.documents) == 20
    for each in choice.documents:
        start, answer = int(stream.document_starts[each.number]), int(stream.answer_starts[each.number])
        row = rows[each.number]
        before = gpt2().decode(stream.read(start + 1, answer - start - 1).tolist())
        assert row["exercise"] == each.exercise
        assert row["text"].startswith(before)
        assert before.endswith("A:")

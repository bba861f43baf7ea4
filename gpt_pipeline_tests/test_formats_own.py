"""Columns of one's own: filters, groups, kinds, questions with answers; and the files that a source names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.documents.files import read_documents
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import document_files, prepare_documents
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.evaluation.held_out import choose_documents
from gpt_pipeline.evaluation.questions import held_out_questions
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.synth_rows import document_text

PAIRS = [
    {"q": f"What is {n} + {n}?", "why": None if n % 2 else f"{n} and {n}.", "a": f"It is {2 * n}.", "r": 2 * n}
    for n in range(1, 41)
]
QUESTIONS = ColumnsConfig(question="q", reasoning="why", answer="a", result="r")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([*rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(source: Path | str, **changed: Any) -> DataConfig:
    values = {"format": "text", "validation_fraction": 0.3, "max_length": 16, "num_samples": "all", **changed}
    return DataConfig(source=str(source), **values)


def documents_of(config: DataConfig, data_folder: Path) -> StageResult:
    return prepare_documents(config, prepare_raw(config, data_folder), data_folder)


def column(stage: StageResult, name: str) -> list[Any]:
    batches = read_documents(document_files(stage), (name,), batch_rows=7)
    return [value for batch in batches for value in batch[name].to_pylist()]


@pytest.mark.parametrize("end", ["parquet", "jsonl"])
def test_filter_keeps_rows_by_value_and_by_bound_and_counts_the_others(tmp_path: Path, end: str) -> None:
    rows = [
        {"text": "a", "lang": "en", "meta": {"score": 3.0}},
        {"text": "b", "lang": "de", "meta": {"score": 9.0}},
        {"text": "c", "lang": "en", "meta": {"score": 2.5}},
        {"text": "d", "lang": "en", "meta": {"score": None}},
        {"text": "e", "lang": None, "meta": {"score": 4.0}},
        {"text": "f", "lang": "en", "meta": {"score": 12.0}},
    ]
    write(tmp_path / "own" / f"a.{end}", rows)
    config = config_of(tmp_path / "own", filter={"lang": "en", "meta.score": ">= 3"})
    stage = documents_of(config, tmp_path / "data")
    assert column(stage, "text") == ["a", "f"]
    assert stage.manifest.facts["dropped"] == {"filter lang": 2, "filter meta.score": 2}


def test_texts_of_windows_alone_are_refused_with_the_way_to_utf8(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.csv").write_bytes("text\nStraße\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"becomes one \(invalid_utf8: 1\); .*; save the files as UTF-8"):
        prepare_raw(config_of(tmp_path / "own"), tmp_path / "data")


def test_filter_that_keeps_nothing_says_why(tmp_path: Path) -> None:
    write(tmp_path / "own" / "a.jsonl", [{"text": "a", "lang": "en"}, {"text": "b", "lang": "de"}, {"text": ""}])
    with pytest.raises(ConfigError, match=r"no row in .* becomes one \(filter lang: 3\); look at.*compared as"):
        prepare_raw(config_of(tmp_path / "own", filter={"lang": "fr"}), tmp_path / "data")


def test_group_keeps_its_documents_on_one_side_and_kind_breaks_them_down(tmp_path: Path) -> None:
    rows = [
        {"text": f"page {n}", "book": f"book {n // 10}" if n < 90 else None, "area": "ab"[n % 2]} for n in range(100)
    ]
    write(tmp_path / "a.parquet", rows)
    config = config_of(tmp_path, group="book", kind="area")
    stage = documents_of(config, tmp_path / "data")
    groups = column(stage, "group")
    assert groups[:90] == [row["book"] for row in rows[:90]]
    assert groups[90:] == column(stage, "id")[90:]  # by themselves
    assert stage.manifest.facts["kinds"] == {"a": 50, "b": 50}
    shards = prepare_shards(config, stage, tmp_path / "data")
    held_out = sum(is_held_out(group, seed=0, fraction=0.3) for group in groups)
    assert shards.manifest.facts["validation_documents"] == held_out
    assert set(shards.manifest.facts["tokens_by_exercise"]) == {"a", "b"}
    assert {each.exercise for each in choose_documents(stage, config, count=8, seed=0).documents} == {"a", "b"}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_question_answer_documents_read_as_those_of_synth_and_are_asked(tmp_path: Path, name: str) -> None:
    write(tmp_path / "own" / name, [{"q": "No answer?", "why": None, "a": " ", "r": 1}, *PAIRS])
    config = config_of(tmp_path / "own", format="question_answer", columns=QUESTIONS, validation_fraction=0.3)
    stage = documents_of(config, tmp_path / "data")
    assert column(stage, "text") == [document_text(row["q"], row["why"], row["a"]) for row in PAIRS]
    assert column(stage, "expected") == [str(row["r"]) for row in PAIRS]
    assert stage.manifest.facts["dropped"] == {"no_answer": 1}
    questions = held_out_questions(stage, config, count=5, seed=0)
    assert len(questions) == 5
    for each in questions:
        row = next(row for row in PAIRS if row["q"] == each.query)
        assert (each.answer, each.expected, each.reasoning) == (row["a"], str(row["r"]), row["why"] or "")
    shards = open_shards(prepare_shards(config, stage, tmp_path / "data").folder)
    start, span = int(shards.train.document_starts[0]), shards.train.document_starts[1]
    text = gpt2().decode(shards.train.read(start + 1, int(span) - start - 1).tolist())
    answer = gpt2().decode(
        shards.train.read(int(shards.train.answer_starts[0]), int(span - shards.train.answer_starts[0])).tolist()
    )
    assert text.endswith(answer)
    assert answer.strip() in {row["a"] for row in PAIRS}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_question_answer_answers_that_are_numbers_are_written_as_such(tmp_path: Path, name: str) -> None:
    rows = [{"q": f"What is {n} + {n}?", "a": float(2 * n) if n % 2 else n + 0.5} for n in range(9)]
    write(tmp_path / "own" / name, rows)
    columns = ColumnsConfig(question="q", answer="a")
    stage = documents_of(config_of(tmp_path / "own", format="question_answer", columns=columns), tmp_path / "data")
    assert [text.rpartition("A: ")[2] for text in column(stage, "text")] == [f"{row['a']:g}" for row in rows]
    write(tmp_path / "other" / name, [{"q": "Which?", "a": {"text": "This."}}])
    other = config_of(tmp_path / "other", format="question_answer", columns=columns)
    with pytest.raises(DataError, match=r"\ba is .*; set data\.columns\.question and data\.columns\.answer"):
        documents_of(other, tmp_path / "data")


def test_texts_that_parquet_holds_as_bytes_are_documents_but_for_those_that_are_no_utf8(tmp_path: Path) -> None:
    write(
        tmp_path / "own" / "a.parquet", [{"text": text, "area": b"x"} for text in (b"One.", "Zwölf.".encode(), b"\xff")]
    )
    stage = documents_of(config_of(tmp_path / "own", kind="area"), tmp_path / "data")
    assert column(stage, "text") == ["One.", "Zwölf."]
    assert (stage.manifest.facts["dropped"], stage.manifest.facts["kinds"]) == ({"invalid_utf8": 1}, {"x": 2})


def test_source_is_looked_into_for_the_one_kind_of_file_that_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "own" / "data" / "train-00000-of-00002.parquet", [{"text": "a"}])
    write(tmp_path / "own" / "data" / "train-00001-of-00002.parquet", [{"text": "b"}])
    (tmp_path / "own" / "README.md").write_text("about", encoding="utf-8")
    (tmp_path / "own" / ".cache").mkdir()
    (tmp_path / "own" / ".cache" / "x.parquet").touch()
    assert column(documents_of(config_of(tmp_path / "own"), tmp_path / "data"), "text") == ["a", "b"]


def test_source_pattern_and_single_file_name_what_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", [{"text": "x"}])
    write(tmp_path / "b" / "y.jsonl", [{"text": "y"}])
    (tmp_path / "b" / "z.txt").write_text("z", encoding="utf-8")
    found = column(documents_of(config_of(tmp_path / "**" / "*.jsonl"), tmp_path / "data"), "text")
    assert found == ["x", "y"]
    assert column(documents_of(config_of(tmp_path / "b" / "z.txt"), tmp_path / "data"), "text") == ["z"]


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        (("a.csv", "b.jsonl"), ".", r"need files of one kind \(it holds csv, jsonl\); name them by a pattern"),
        (("a.bin",), ".", r"need files to read: parquet, JSON lines.*\(it holds a.bin\)"),
        (("a.zip",), "a.zip", r"/own holds a.zip\); unpack it"),
        (("a.bin",), ".", r"; unpack what it holds, or write it as one of these, or correct data"),
        ((), ".", r"\(it holds nothing\); put files there, or correct data"),
        ((), "gone", r"data\.source: found '.*gone', need a folder, a file or a pattern that exists"),
        (("a.csv",), "*.jsonl", r"need files to read: .* \(/.*/own holds a.csv\); correct the pattern"),
    ],
)
def test_source_without_files_to_read_says_what_there_is(
    tmp_path: Path, files: Sequence[str], source: str, said: str
) -> None:
    (tmp_path / "own").mkdir()
    for name in files:
        (tmp_path / "own" / name).write_text("text\nx\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        prepare_raw(config_of(tmp_path / "own" / source), tmp_path / "data")


def test_columns_missing_inside_another_name_those_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"meta": {"body": "x", "n": 1}}])
    config = config_of(tmp_path, columns=ColumnsConfig(text="meta.bodies"))
    with pytest.raises(DataError, match=r"lacks the column meta\.bodies; found meta, meta\.body, meta\.n; nearest"):
        prepare_raw(config, tmp_path / "data")


def test_files_that_are_empty_or_the_same_as_another_give_each_text_once(tmp_path: Path) -> None:
    texts = [{"text": f"Text {number}."} for number in range(5)]
    for name in ("a", "c"):
        write(tmp_path / "own" / f"{name}.jsonl", texts)
    for name in ("b", "d"):
        (tmp_path / "own" / f"{name}.jsonl").touch()
    stage = documents_of(config_of(tmp_path / "own"), tmp_path / "data")
    assert column(stage, "text") == [text["text"] for text in texts]
    raw = prepare_raw(config_of(tmp_path / "own"), tmp_path / "data").manifest.facts
    assert [(each["rows"], each["documents"], each["repeated"]) for each in raw["files"]] == [
        (5, 5, 0),
        (0, 0, 0),
        (5, 0, 5),
        (0, 0, 0),
    ]


def test_files_of_mixed_schemas_are_read_by_the_columns_that_they_share_or_named(tmp_path: Path) -> None:
    write(tmp_path / "own" / "a.parquet", [{"text": "One.", "n": 1}])
    write(tmp_path / "own" / "b.parquet", [{"other": [2], "n": "2", "text": "Two."}])
    assert column(documents_of(config_of(tmp_path / "own"), tmp_path / "data"), "text") == ["One.", "Two."]
    write(tmp_path / "own" / "c.parquet", [{"body": "Three.", "n": 3}])
    with pytest.raises(DataError, match=r"c\.parquet: lacks the column text; found body, n; set data\.columns\.text"):
        documents_of(config_of(tmp_path / "own"), tmp_path / "data")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"columns": ColumnsConfig(question="q")}, r"columns\.question: .* set data\.format: question_answer"),
        (
            {"format": "question_answer", "columns": ColumnsConfig(text="q")},
            r"columns\.text: .* set data\.format: text",
        ),
        ({"format": "synth", "group": "book"}, "group: found 'book', need none with data.format=synth"),
        ({"format": "synth", "kind": "area"}, "kind: "),
        ({"format": "question_answer", "split_text_at": "line"}, "split_text_at: "),
        ({"join_parts": True}, "join_parts: .* set data.format: chat"),
        ({"split_text_at": ""}, "split_text_at: found '', need `line` or a mark"),
        ({"filter": {"score": ">= many"}}, "filter.score: found '>= many', need a number behind >="),
        ({"source": "my texts"}, r"source: found 'my texts', need a dataset of the hub .*, a path such as \./my texts"),
        ({"source": "sample", "num_samples": 5}, "format: "),
        ({"subset": "en"}, r"subset: found 'en', need no such key with local files .*: only datasets of the hub have"),
        ({"source": "sample", "split": "test"}, r"(format|split): "),
        ({"source": "a/b", "split": " "}, "split: found ' ', need the name of a split, or null"),
    ],
)
def test_data_config_that_contradicts_itself_says_what_to_set(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        DataConfig(**{"num_samples": "all", "source": "./x", "format": "text", **changed})


def test_format_identity_of_what_is_not_set_stays_as_it_was() -> None:
    assert format_of(config_of("./x")).identity == {"format": "text", "columns": {"text": "text"}}
    assert format_of(DataConfig(num_samples=1)).identity == {}
    assert format_of(DataConfig(num_samples=1, filter={"exercise": "mcq"})).identity == {"filter": {"exercise": "mcq"}}

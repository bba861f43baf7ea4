"""Plain text from a column of one's own files: rules, stages, and what wrong input is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.documents.files import read_documents
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import document_files, find_documents, prepare_documents
from gpt_pipeline.data.formats.text import TextFormat
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.projects import TINY, TinyProject

BODY = TextFormat(column="body")


def write_texts(path: Path, texts: Sequence[str | None]) -> Path:
    """Write a file with two columns, `area` and `body`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"area": ["a"] * len(texts), "body": pa.array(texts, pa.string())}), path)
    return path


def texts(count: int, *, first: int = 0) -> list[str]:
    return [
        f"Number {number} follows {number - 1}, and then comes {number + 1}." for number in range(first, first + count)
    ]


def config_of(folder: Path, num_samples: int | str | None = "all", **changed: object) -> DataConfig:
    values = {"format": "text", "columns": ColumnsConfig(text="body"), "validation_fraction": 0.2, "max_length": 16}
    return DataConfig(num_samples=num_samples, local_dataset_path=str(folder), **{**values, **changed})  # type: ignore[arg-type]


def prepared(config: DataConfig, data_folder: Path) -> StageResult:
    return prepare_documents(config, prepare_raw(config, data_folder), data_folder)


def texts_in(stage: StageResult) -> list[str]:
    return [
        text
        for batch in read_documents(document_files(stage), ("text",), batch_rows=7)
        for text in batch["text"].to_pylist()
    ]


@pytest.mark.parametrize("near", [{}, {"near_duplicates": 0.9}], ids=["", "near"])
@pytest.mark.parametrize("key", ["kind", "group"])
def test_text_of_another_name_has_it_where_documents_are_called_by_it(
    tmp_path: Path, key: str, near: dict[str, object]
) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    own.mkdir()
    (own / "draft.txt").write_text("One\nTwo\nThree\n", encoding="utf-8")
    config = config_of(own, columns=ColumnsConfig(), split_text_at="line", **{key: "file"}, **near)
    found = []
    for name in ("draft.txt", "final.txt", "draft.txt"):
        next(own.iterdir()).rename(own / name)
        stage = prepared(config, data)
        batches = read_documents(document_files(stage), (key,), batch_rows=7)
        found.append({value for batch in batches for value in batch[key].to_pylist()})
    assert found == [{"draft.txt"}, {"final.txt"}, {"draft.txt"}]
    assert len([*(data / "parts").glob("documents-*")]) == 2


def test_text_that_a_filter_leaves_out_by_its_name_is_none_of_another_name(tmp_path: Path) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    own.mkdir()
    (own / "draft.txt").write_text("One\nTwo\nThree\n", encoding="utf-8")
    config = config_of(own, columns=ColumnsConfig(), split_text_at="line", filter={"file": "draft.txt"})
    assert texts_in(prepared(config, data)) == ["One", "Two", "Three"]
    (own / "draft.txt").rename(own / "final.txt")
    with pytest.raises(ConfigError, match=r"no row in .* becomes one"):
        prepared(config, data)


def test_text_of_another_name_is_read_once_where_nothing_is_called_by_it(tmp_path: Path) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    own.mkdir()
    (own / "draft.txt").write_text("One\nTwo\nThree\n", encoding="utf-8")
    config = config_of(own, columns=ColumnsConfig(), split_text_at="line")
    for name in ("draft.txt", "final.txt"):
        next(own.iterdir()).rename(own / name)
        prepared(config, data)
    assert len([*(data / "parts").iterdir()]) == 2  # the index and the documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_texts(tmp_path / "mine" / "a.parquet", texts(40))
    write_texts(tmp_path / "mine" / "b.parquet", [*texts(5), *texts(30, first=40)])  # five of them again
    return tmp_path / "mine"


def test_text_rows_without_text_or_with_too_much_are_dropped_and_counted() -> None:
    rows = pa.record_batch([pa.array(["x", None, " \n", "y" * (MAX_DOCUMENT_BYTES + 1), " é"])], names=["body"])
    selection = BODY.select(rows)
    documents = BODY.documents_of(selection)
    assert documents["text"].to_pylist() == ["x", " é"]
    assert selection.dropped == {"no_text": 2, "too_long": 1}
    assert len(set(documents["id"].to_pylist())) == 2
    assert documents["group"].to_pylist() == documents["id"].to_pylist()


def test_text_that_is_not_utf8_is_dropped_and_counted() -> None:
    letters = pa.py_buffer(b"ok\xff\xfeok")
    column = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), letters])
    selection = BODY.select(pa.record_batch([column], names=["body"]))
    assert selection.dropped == {"invalid_utf8": 1}
    assert BODY.documents_of(selection)["text"].to_pylist() == ["ok", "ok"]


@pytest.mark.parametrize("num_samples", ["all", None])
def test_text_whole_source_is_every_different_text_in_order(
    tmp_path: Path, folder: Path, num_samples: str | None
) -> None:
    stage = prepared(config_of(folder, num_samples), tmp_path / "data")
    assert texts_in(stage) == texts(70)
    assert stage.manifest.facts["dropped"] == {"repeated": 5}
    assert stage.folder.name.startswith("documents-")
    assert stage.fingerprint == find_documents(config_of(folder), tmp_path / "data").fingerprint  # type: ignore[union-attr]


def test_text_number_of_samples_takes_the_first_files_that_hold_them(tmp_path: Path, folder: Path) -> None:
    stage = prepared(config_of(folder, 10), tmp_path / "data")
    assert texts_in(stage) == texts(10)
    assert len(document_files(stage)) == 1


def test_text_other_column_is_another_stage_beside_the_first(tmp_path: Path, folder: Path) -> None:
    first, second = config_of(folder, 1), config_of(folder, 1, columns=ColumnsConfig(text="area"))
    assert texts_in(prepared(first, tmp_path / "data")) == texts(1)
    assert texts_in(prepared(second, tmp_path / "data")) == ["a"]
    assert find_documents(first, tmp_path / "data") is not None


def test_text_shards_hold_every_document_and_each_token_counts(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder)
    stage = prepare_shards(config, prepared(config, tmp_path), tmp_path)
    shards = open_shards(stage.folder)
    found = []
    for stream in (shards.train, shards.validation):
        assert (stream.answer_starts == stream.document_starts + 1).all()
        for start, end in zip(stream.document_starts, [*stream.document_starts[1:], stream.n_tokens], strict=True):
            found.append(gpt2().decode(stream.read(int(start) + 1, int(end - start - 1)).tolist()))
    assert sorted(found) == sorted(texts(70))
    assert find_shards(config, tmp_path) is not None
    assert [(each.stage, each.problem) for each in verify_data(config, tmp_path)] == [
        ("raw_files", None),
        ("documents", None),
        ("token_shards", None),
    ]


def test_text_missing_column_names_those_found_and_the_nearest(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, columns=ColumnsConfig(text="bodies"))
    with pytest.raises(
        DataError, match=r"a\.parquet: lacks the column bodies; found area, body; nearest: body; set data"
    ):
        prepare_raw(config, tmp_path / "data")


def test_text_column_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"need text columns, but body is int64; set data\.columns\.text"):
        list(read_rows(tmp_path / "a.parquet", BODY.columns))


def test_text_source_of_blank_texts_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "mine" / "a.parquet", [None, " "])
    with pytest.raises(ConfigError, match=r"data\.num_samples.*no row in .* becomes one"):
        prepare_raw(config_of(tmp_path / "mine"), tmp_path / "data")


def test_read_rows_long_texts_come_a_few_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    long = [rng.bytes(1 << 19).hex() for _ in range(80)]
    path = write_texts(tmp_path / "a.parquet", long)
    batches = list(read_rows(path, BODY.columns))
    assert max(batch.num_rows for batch in batches) < 40
    assert [text for batch in batches for text in batch["body"].to_pylist()] == long


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "sample", "local_dataset_path": None}, "format"),
        ({"format": "synth"}, r"columns\.text"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_data_config_that_contradicts_itself_names_the_key(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    values = {"num_samples": 5, "local_dataset_path": "x", "format": "text", "columns": ColumnsConfig(text="body")}
    with pytest.raises(ConfigError, match=f"^{said}: "):
        DataConfig(**{**values, **changed})  # type: ignore[arg-type]


def test_data_config_whole_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_samples: found 'all'.* source=sample"):
        DataConfig(num_samples="all", source="sample")


@pytest.mark.slow
def test_text_experiment_trains_and_is_evaluated_without_questions(tmp_path: Path, folder: Path) -> None:
    project = TinyProject(root=tmp_path)
    path = project.write_experiment("mine")
    data = "data: {source: sample, num_samples: 300, max_length: 32, validation_fraction: 0.1}"
    own = (
        "data: {local_dataset_path: ../mine, format: text, columns: {text: body}, num_samples: all, max_length: 16, "
        "validation_fraction: 0.2}"
    )
    assert data in TINY.format(name="mine", num_samples=300, max_steps=12, learning_rate=0.001)
    path.write_text(path.read_text(encoding="utf-8").replace(data, own), encoding="utf-8")
    assert load_experiment(path).config.data.columns.text == "body"
    said = project.run("run", str(path))
    assert "Everything is done." in said
    status = project.run("status", str(path))
    assert "raw_files" in status
    assert "documents" in status
    for output in (said, status):
        assert "english" not in output.lower()
        assert "synth" not in output.lower()
        assert "question" not in output.lower()
    (last, *_) = reversed(read_evaluations(project.experiment("mine").folder.evaluations))
    assert last.continuations
    assert f"{len(last.continuations)} texts continued" in said
    assert "Continuations" in project.experiment("mine").folder.report.read_text(encoding="utf-8")
    project.run("generate", str(path), "--prompt", "Number", "--max-new-tokens", "2")

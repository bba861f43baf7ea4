from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.synth import (
    COLUMNS,
    DOCUMENT_SCHEMA,
    SYNTH,
    count_english_rows,
    documents_of,
    select,
)
from gpt_pipeline.data.formats.synth_text import is_blank
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline_tests.synth_rows import SCHEMA, article_key, document_text, row, write_synth

_TEXT = st.one_of(st.none(), st.sampled_from(["", " \n\u2003", "é\u0301", "Q: <|endoftext|>"]), st.text(max_size=12))


def batch_of(*values: dict[str, Any]) -> pa.RecordBatch:
    columns = {name: pa.array([value[name] for value in values], pa.string()) for name in COLUMNS}
    return pa.record_batch(columns)


def with_bytes(batch: pa.RecordBatch, name: str, values: list[bytes]) -> pa.RecordBatch:
    """The batch with a text column of any bytes, as a parquet reader gives it."""
    raw = pa.array(values, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(values), raw.buffers())
    return batch.set_column(batch.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"language": "de"}, "language"),
        ({"language": None}, "language"),
        ({"language": "EN"}, "language"),
        ({"language": "de", "query": None}, "language"),
        ({"query": None}, "no_query"),
        ({"query": ""}, "no_query"),
        ({"query": " \n\t\u00a0\u3000"}, "no_query"),
        ({"synthetic_answer": None}, "no_answer"),
        ({"synthetic_answer": " "}, "no_answer"),
        ({"query": " ", "synthetic_answer": " "}, "no_query"),
        ({"constraints": "a; result:Failed after maximum attempts"}, "failed_constraint"),
        ({"synthetic_answer": "x" * MAX_DOCUMENT_BYTES}, "too_long"),
    ],
)
def test_select_row_without_what_a_document_needs_is_dropped_for_that(changed: dict[str, Any], reason: str) -> None:
    selection = select(batch_of(row(0), row(1, **changed), row(2)))
    assert selection.dropped == Counter({reason: 1})
    assert documents_of(selection)["synth_id"].to_pylist() == ["id_0", "id_2"]
    assert selection.positions.tolist() == [0, 2]


@pytest.mark.parametrize(
    "changed", [{"synthetic_reasoning": ""}, {"synthetic_reasoning": None}, {"constraints": "result:4"}]
)
def test_select_row_with_only_query_and_answer_is_kept(changed: dict[str, Any]) -> None:
    assert select(batch_of(row(1, **changed))).positions.tolist() == [0]


def test_select_rows_that_are_not_utf8_are_dropped_alone() -> None:
    good, bad = b"Why?", b"\xff\xfe"
    values = [good, bad, good, good, b"\xed\xa0\x80", good]  # the second bad one is a surrogate
    selection = select(with_bytes(batch_of(*(row(i) for i in range(6))), "query", values))
    assert selection.positions.tolist() == [0, 2, 3, 5]
    assert selection.dropped == Counter(invalid_utf8=2)


def test_select_nothing_kept_is_an_empty_batch() -> None:
    selection = select(batch_of(row(0, language="fr")))
    documents = documents_of(selection)
    assert (documents.num_rows, documents.schema) == (0, DOCUMENT_SCHEMA)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.tuples(_TEXT, _TEXT, _TEXT, _TEXT, _TEXT), max_size=6))
def test_documents_have_the_text_article_and_offsets_of_the_rules(values: list[tuple[str | None, ...]]) -> None:
    names = ("query", "synthetic_reasoning", "synthetic_answer", "query_seed_url", "synth_id")
    made = [row(i, **dict(zip(names, value, strict=True))) for i, value in enumerate(values)]
    kept = [value for value in made if not is_blank(value["query"]) and not is_blank(value["synthetic_answer"])]
    documents = documents_of(select(batch_of(*made))).to_pylist()
    assert len(documents) == len(kept)
    for document, value in zip(documents, kept, strict=True):
        query, reasoning, answer = value["query"], value["synthetic_reasoning"], value["synthetic_answer"]
        text = document["text"]
        assert text == document_text(query, reasoning, answer)
        assert document["article"] == article_key(value["query_seed_url"], value["synth_id"])
        assert text[document["query_start"] : document["query_end"]] == query
        assert text[document["answer_start"] :] == answer
        if is_blank(reasoning):
            assert document["reasoning_start"] is document["reasoning_end"] is None
        else:
            assert text[document["reasoning_start"] : document["reasoning_end"]] == reasoning


def test_count_english_rows_reads_the_language_alone(tmp_path: Path) -> None:
    path = write_synth(
        tmp_path / "a.parquet", [row(0), row(1, language="pl"), row(2, query=None), row(3, language=None)]
    )
    assert count_english_rows(path, path.name) == 2


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.large_binary()],
)
def test_read_rows_other_text_types_are_read_alike(tmp_path: Path, kind: pa.DataType) -> None:
    path = write_synth(tmp_path / "a.parquet", [row(i) for i in range(5)])
    table = pa.parquet.read_table(path)
    other = tmp_path / "b.parquet"
    fields = [field.with_type(kind) if field.type == pa.string() else field for field in table.schema]
    pa.parquet.write_table(table.cast(pa.schema(fields)), other)
    assert list(read_rows(other, SYNTH.columns)) == list(read_rows(path, SYNTH.columns))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>Too many requests</html>", "<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"", "0 bytes"),
    ],
)
def test_read_rows_file_that_is_not_parquet_is_named_with_its_beginning(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "synth_001.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"synth_001\.parquet.*not a readable parquet.*{said}"):
        list(read_rows(path, SYNTH.columns))


def test_read_rows_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_synth(tmp_path / "synth_001.parquet", [row(i) for i in range(1000)])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"synth_001\.parquet.*download it again"):
        list(read_rows(path, SYNTH.columns))


def test_read_rows_overwritten_pages_are_named(tmp_path: Path) -> None:
    path = write_synth(tmp_path / "synth_001.parquet", [row(i) for i in range(1000)])
    content = bytearray(path.read_bytes())
    content[4:3000] = b"\xff" * 2996
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"synth_001\.parquet: damaged"):
        list(read_rows(path, SYNTH.columns))


def test_read_rows_flipped_bit_that_the_file_itself_knows_of_is_named(tmp_path: Path) -> None:
    path = tmp_path / "synth_001.parquet"
    table = pa.Table.from_pylist([row(i) for i in range(1000)], schema=SCHEMA)
    settings = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pa.parquet.write_table(table, path, **settings)
    content = bytearray(path.read_bytes())
    content[content.index(str(row(500)["query"]).encode())] ^= 1  # another letter, still UTF-8
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"synth_001\.parquet: damaged .*CRC"):
        list(read_rows(path, SYNTH.columns))


def test_read_rows_column_of_the_same_name_twice_is_named(tmp_path: Path) -> None:
    table = pa.parquet.read_table(write_synth(tmp_path / "a.parquet", [row(0)]))
    path = tmp_path / "twice.parquet"
    pa.parquet.write_table(table.append_column("words", table["words"]), path)
    assert list(read_rows(path, SYNTH.columns))  # of a column that nobody reads
    pa.parquet.write_table(table.append_column("query", table["query"]), path)
    with pytest.raises(DataError, match=r"twice\.parquet: has the column query 2 times, need it once"):
        list(read_rows(path, SYNTH.columns))
    pa.parquet.write_table(table.append_column("language", table["language"]), path)
    with pytest.raises(DataError, match=r"twice\.parquet: has the column language 2 times"):
        count_english_rows(path, path.name)


def test_read_rows_missing_and_wrong_columns_are_named(tmp_path: Path) -> None:
    full = pa.parquet.read_table(write_synth(tmp_path / "a.parquet", [row(0)]))
    lacking, wrong = tmp_path / "lacking.parquet", tmp_path / "wrong.parquet"
    pa.parquet.write_table(full.drop_columns(["language", "synthetic_answer"]), lacking)
    with pytest.raises(
        DataError, match=r"lacking\.parquet: lacks the columns language, synthetic_answer; found synth_id"
    ):
        list(read_rows(lacking, SYNTH.columns))
    pa.parquet.write_table(full.set_column(4, "query", pa.array([7])), wrong)
    with pytest.raises(DataError, match=r"wrong\.parquet: .*query is int64"):
        list(read_rows(wrong, SYNTH.columns))


LANGUAGES = [row(n, language=("en", "de", "fr", "xx")[n % 4]) for n in range(40)]


def synth_of(folder: Path, **changed: Any) -> DataConfig:
    write_synth(folder / "synth_001.parquet", LANGUAGES)
    return DataConfig(num_samples="all", source=str(folder), **changed)


@pytest.mark.parametrize(
    ("languages", "kept"),
    [(("en",), 10), (("fr", "de"), 20), ("de", 10), ("all", 40), (("de", "none"), 10)],
)
def test_languages_decide_which_rows_become_documents_and_are_counted_beforehand(
    tmp_path: Path, languages: Any, kept: int
) -> None:
    config = synth_of(tmp_path / "own", languages=languages)
    path = tmp_path / "own" / "synth_001.parquet"
    assert format_of(config).count_rows(path, path.name) == kept
    told: list[str] = []
    raw = prepare_raw(config, tmp_path / "data")
    stage = prepare_documents(config, raw, tmp_path / "data", say=told.append)
    assert stage.manifest.facts["documents"] == kept
    assert stage.manifest.facts["languages"].keys() == {"en", "de", "fr", "xx"}  # up to the last document's row
    assert any("no row is in none; found: en" in line for line in told) == ("none" in languages)
    assert stage.manifest.stage == ("english_parquet" if languages == ("en",) else "documents")


def test_languages_leave_english_experiments_as_they_were_and_tell_others_apart() -> None:
    def identity(**changed: Any) -> Mapping[str, Any]:
        return format_of(DataConfig(num_samples=1, **changed)).identity

    assert identity() == identity(languages="en") == identity(languages=("en",)) == {}
    assert identity(languages=("fr", "de", "fr")) == identity(languages=("de", "fr")) == {"languages": ["de", "fr"]}
    assert identity(languages="all") == {"languages": None}


def test_languages_that_no_row_is_in_are_refused_with_those_found(tmp_path: Path) -> None:
    config = synth_of(tmp_path / "own", languages=("pl", "nl"))
    said = r"no row in .* becomes one \(language en: 10, language de: 10, language fr: 10, language xx: 10\); look at"
    with pytest.raises(ConfigError, match=said):
        prepare_raw(config, tmp_path / "data")
    path = tmp_path / "own" / "synth_001.parquet"
    assert format_of(config).count_dropped(path, path.name)["language de"] == 10


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "text", "languages": "de"}, r"languages: found 'de', need no such key with data.format=text"),
        ({"languages": ("all", "de")}, r"languages: .* or `all` alone"),
        ({"languages": " "}, r"languages: found ' ', need languages as SYNTH names them"),
    ],
)
def test_languages_that_mean_nothing_are_refused(changed: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DataConfig(num_samples=1, source="./own", **changed)

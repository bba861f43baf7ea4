from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.choice import REPEATED
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import document_files, documents_of_file, find_documents, prepare_documents
from gpt_pipeline.data.documents.tally import Tally
from gpt_pipeline.data.formats.synth import DOCUMENT_SCHEMA, SYNTH
from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.manifest import StageResult, record_file, verify
from gpt_pipeline_tests.synth_rows import document_text, row, rows, write_folder, write_synth


def config_of(folder: Path, num_samples: int | None) -> DataConfig:
    return DataConfig(num_samples=num_samples, local_dataset_path=str(folder))


def prepared(config: DataConfig, data_folder: Path, *, force: bool = False) -> StageResult:
    return prepare_documents(config, prepare_raw(config, data_folder), data_folder, force=force)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "synth", 10, 20, 30)


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 30, 48])
def test_english_file_has_the_first_documents_in_file_order(tmp_path: Path, folder: Path, num_samples: int) -> None:
    stage = prepared(config_of(folder, num_samples), tmp_path / "data")
    expected = [value for value in rows(60) if value["language"] == "en"][:num_samples]
    table = pa.concat_tables(pq.read_table(path) for path in document_files(stage))
    assert table.schema.equals(DOCUMENT_SCHEMA)
    assert table["synth_id"].to_pylist() == [value["synth_id"] for value in expected]
    assert table["text"].to_pylist() == [
        document_text(value["query"], value["synthetic_reasoning"], value["synthetic_answer"]) for value in expected
    ]


def test_english_facts_count_what_was_read_kept_and_dropped(tmp_path: Path) -> None:
    values = [
        row(0, language="de"),
        row(1, language=None),
        row(2, exercise="editing", synthetic_reasoning=""),
        row(3, query=None),
        row(4, synthetic_answer=" "),
        row(5, constraints="result:Failed after maximum attempts", query_seed_url=None),
        row(6, exercise=None),
        row(7, language="de"),  # behind the last document
    ]
    write_synth(tmp_path / "synth" / "synth_001.parquet", values)
    facts = prepared(config_of(tmp_path / "synth", None), tmp_path / "data").manifest.facts
    texts = ["Q: What is number 2?\n\nA: It is 2.", "Q: What is number 6?\n\nReasoning:\nCount to 6.\n\nA: It is 6."]
    assert facts["rows_read"] == 8
    assert facts["documents"] == 2
    assert facts["dropped"] == {"language": 3, "no_query": 1, "no_answer": 1, "failed_constraint": 1}
    assert facts["languages"] == {"en": 5, "de": 2, "null": 1}
    assert facts["exercises_read"] == {"memorization": 6, "editing": 1, "null": 1}
    assert facts["exercises"] == {"editing": 1, "null": 1}
    assert facts["examples"] == texts
    assert facts["text_bytes"] == sum(len(text) for text in texts)
    assert facts["rows_read"] == facts["documents"] + sum(facts["dropped"].values())


@pytest.mark.parametrize(("num_samples", "read"), [(1, 2), (2, 6)])
def test_facts_of_a_file_count_its_rows_up_to_the_last_document_taken_and_all_where_none_is_left(
    tmp_path: Path, num_samples: int, read: int
) -> None:
    values = [row(0, language="de"), row(1), row(2), row(3, query=None), row(4, language="de"), row(2)]
    write_synth(tmp_path / "synth" / "synth_001.parquet", values)
    facts = prepared(config_of(tmp_path / "synth", num_samples), tmp_path / "data").manifest.facts
    assert facts["rows_read"] == read == num_samples + sum(facts["dropped"].values())
    assert facts["dropped"].get("repeated", 0) == (read == 6)


@pytest.mark.parametrize("batch_rows", [1, 3, 10, 1000])
def test_english_documents_and_counts_do_not_depend_on_the_batch_size(folder: Path, batch_rows: int) -> None:
    def run(size: int) -> tuple[list[dict[str, object]], dict[str, object]]:
        tally = Tally()
        batches = documents_of_file(
            folder / "synth_003.parquet", SYNTH, 21, {REPEATED: np.array([2, 7])}, tally, batch_rows=size
        )
        return [value for batch in batches for value in batch.to_pylist()], tally.facts()

    assert run(batch_rows) == run(7)


def test_documents_left_out_of_a_whole_file_are_not_gone_through_for_each_batch(folder: Path) -> None:
    """Or else a file of many repeats takes time by their square: an hour for 20 million of them."""
    repeats, near = np.arange(21, 4_000_000, 2), np.array([2, 3, 22])  # the file has 24 documents
    path = folder / "synth_003.parquet"
    documents = documents_of_file(path, SYNTH, 21, {REPEATED: repeats, "near": near}, Tally(), batch_rows=4)
    rows = len(next(documents))
    tracemalloc.start()
    rows += sum(map(len, documents))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 19
    assert taken < repeats.nbytes / 16


def test_english_bytes_are_the_same_each_time(tmp_path: Path, folder: Path) -> None:
    stages = [prepared(config_of(folder, 30), tmp_path / name) for name in ("a", "b")]
    assert stages[0].manifest.files == stages[1].manifest.files
    verify(stages[0])


def test_english_row_groups_are_bounded(tmp_path: Path) -> None:
    write_synth(tmp_path / "synth" / "synth_001.parquet", [row(i) for i in range(4500)])
    stage = prepared(config_of(tmp_path / "synth", 4500), tmp_path / "data")
    metadata = pq.read_metadata(document_files(stage)[0])
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2000, 2000, 500]
    assert metadata.row_group(0).column(4).compression == "ZSTD"


def test_english_manifest_records_what_lies_on_disk(tmp_path: Path, folder: Path) -> None:
    stage = prepared(config_of(folder, 30), tmp_path / "data")
    assert stage.manifest.files == {path.name: record_file(path) for path in document_files(stage)}


def test_english_second_time_does_no_work_even_without_the_raw_files(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, 20)
    raw = prepare_raw(config, tmp_path / "data")
    first = prepare_documents(config, raw, tmp_path / "data")
    folder.rename(tmp_path / "unplugged")
    again, found = prepare_documents(config, raw, tmp_path / "data"), find_documents(config, tmp_path / "data")
    assert found is not None
    assert (first.reused, again.reused, found.reused) == (False, True, True)
    assert again.manifest == found.manifest == first.manifest


def test_english_other_number_of_samples_is_another_stage(tmp_path: Path, folder: Path) -> None:
    first = prepared(config_of(folder, 5), tmp_path / "data")
    second = prepared(config_of(folder, 6), tmp_path / "data")
    assert first.manifest.upstream == second.manifest.upstream  # both need one raw file
    assert first.fingerprint != second.fingerprint
    assert find_documents(config_of(folder, 5), tmp_path / "data") is not None


def test_english_lost_file_is_made_again_and_force_makes_it_anyway(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, 20)
    stage = prepared(config, tmp_path / "data")
    document_files(stage)[0].unlink()
    assert find_documents(config, tmp_path / "data") is None
    assert not prepared(config, tmp_path / "data").reused
    assert not prepared(config, tmp_path / "data", force=True).reused
    assert prepared(config, tmp_path / "data").reused


def test_english_damaged_file_fails_by_name_and_the_finished_ones_are_kept(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, 20)
    raw = prepare_raw(config, tmp_path / "data")
    second = folder / "synth_002.parquet"
    content, stat = second.read_bytes(), second.stat()
    second.write_bytes(b"x" * stat.st_size)
    os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"synth_002\.parquet"):
        prepare_documents(config, raw, tmp_path / "data")
    (made,) = (tmp_path / "data" / "parts").glob("english_documents-*/manifest.json")
    assert json.loads(made.read_text())["facts"]["documents"] == 8  # the first file's are kept
    assert list((tmp_path / "data").glob("english_parquet-*")) == []
    second.write_bytes(content)
    os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = made.stat().st_mtime_ns
    assert prepare_documents(config, raw, tmp_path / "data").manifest.facts["documents"] == 20
    assert made.stat().st_mtime_ns == before


def test_english_of_files_that_changed_since_is_refused_and_leaves_no_part_of_them(
    tmp_path: Path, folder: Path
) -> None:
    config = config_of(folder, 20)
    before = prepare_raw(config, tmp_path / "data")
    write_synth(folder / "synth_002.parquet", [row(i, synthetic_answer="Changed.") for i in range(500, 520)])
    prepare_raw(config, tmp_path / "data")
    with pytest.raises(DataError, match="missing or have changed"):
        prepare_documents(config, before, tmp_path / "data")
    (made,) = (tmp_path / "data" / "parts").glob("english_documents-*/manifest.json")
    assert json.loads(made.read_text())["facts"]["documents"] == before.manifest.facts["files"][0]["documents"]

from __future__ import annotations

from pathlib import Path

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import find_raw, prepare_raw
from gpt_pipeline.data.documents.stage import find_documents, prepare_documents
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline_tests.synth_rows import raw_paths, write_folder

CONFIG = DataConfig(num_samples=300, source="sample", max_length=64, validation_fraction=0.2)


def test_sample_is_written_and_holds_enough_documents(tmp_path: Path) -> None:
    assert find_raw(CONFIG, tmp_path) is None
    stage = prepare_raw(CONFIG, tmp_path)
    assert all(path.is_file() for path in raw_paths(CONFIG, stage).values())
    assert stage.manifest.facts["documents"] >= 300
    assert stage.fingerprint == prepare_raw(CONFIG, tmp_path / "anywhere").fingerprint


def test_sample_second_time_does_no_work_and_a_lost_file_is_written_again(tmp_path: Path) -> None:
    first, again = prepare_raw(CONFIG, tmp_path), prepare_raw(CONFIG, tmp_path)
    assert (first.reused, again.reused) == (False, True)
    next(iter(raw_paths(CONFIG, first).values())).unlink()
    assert find_raw(CONFIG, tmp_path) is None
    assert prepare_raw(CONFIG, tmp_path).manifest == first.manifest
    assert find_raw(CONFIG, tmp_path) is not None


def test_sample_goes_through_all_stages_and_each_is_found_again(tmp_path: Path) -> None:
    raw = prepare_raw(CONFIG, tmp_path)
    english = prepare_documents(CONFIG, raw, tmp_path)
    shards = prepare_shards(CONFIG, english, tmp_path)
    assert english.manifest.facts["documents"] == 300
    assert english.manifest.facts["languages"]["en"] < english.manifest.facts["rows_read"]
    found = [find(CONFIG, tmp_path) for find in (find_raw, find_documents, find_shards)]
    assert [stage and stage.manifest for stage in found] == [raw.manifest, english.manifest, shards.manifest]


def test_sample_named_together_with_a_folder_gives_way_to_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "synth", 10)
    config = DataConfig(num_samples=5, source="sample", local_dataset_path=str(folder))
    files = raw_paths(config, prepare_raw(config, tmp_path / "data"))
    assert files == {"synth_001.parquet": folder / "synth_001.parquet"}

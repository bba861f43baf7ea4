from __future__ import annotations

from pathlib import Path

from gpt_pipeline.orchestration.metadata import stage_metadata
from gpt_pipeline.storage.manifest import Manifest, StageResult

FACTS = {
    "rows_read": 9,
    "documents": 4,
    "languages": {"en": 6, "de": 2, "null": 1},
    "exercises_read": {"mcq": 6, "a|b\n": 3},
    "exercises": {"mcq": 4},
    "dropped": {"language": 3, "no_answer": 2},
}


def shown(facts: dict[str, object]) -> dict[str, str]:
    manifest = Manifest(stage="english_parquet", fingerprint="f", config={}, facts=facts)
    metadata = stage_metadata(StageResult(folder=Path("nowhere"), manifest=manifest, reused=False))
    return {name: getattr(value, "md_str", str(value)) for name, value in metadata.items()}


def test_english_metadata_shows_rows_in_and_documents_out_by_language_and_by_exercise() -> None:
    metadata = shown(FACTS)
    head = ["| | rows in | documents out | kept |", "|---|---:|---:|---:|", "| all | 9 | 4 | 44.44% |"]
    assert metadata["languages"].split("\n") == [
        *head,
        "| en | 6 | 4 | 66.67% |",
        "| de | 2 | 0 | 0.00% |",
        "| null | 1 | 0 | 0.00% |",
    ]
    assert metadata["exercises"].split("\n") == [*head, "| mcq | 6 | 4 | 66.67% |", r"| a\|b | 3 | 0 | 0.00% |"]
    assert "exercises_read" not in metadata


def test_metadata_shows_dropped_rows_with_their_shares() -> None:
    assert shown(FACTS)["dropped"].split("\n")[2:] == ["| language | 3 | 60.00% |", "| no_answer | 2 | 40.00% |"]


def test_metadata_of_raw_files_shows_the_size_of_the_files_and_not_of_the_notes_about_them() -> None:
    metadata = shown({"bytes": 2_500_000})
    assert metadata["megabytes"] == "2.5"
    assert "bytes" not in metadata

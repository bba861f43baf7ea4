from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.documents import index as document_index
from gpt_pipeline.data.documents.index import index_part, prepare_index, repeated_documents
from gpt_pipeline.data.formats.synth import SYNTH
from gpt_pipeline.data.formats.text import TextFormat
from gpt_pipeline.errors import UnreadableFileError
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.synth_rows import row, write_synth


def index_of(folder: Path, number: int, texts: list[int]) -> StageResult:
    path = folder / f"synth_{number:03d}.parquet"
    write_synth(
        path,
        [row(i, query="?", synthetic_reasoning="", synthetic_answer=f"It is {text}.") for i, text in enumerate(texts)],
    )
    return prepare_index(path, sha256_of(path), folder, SYNTH, seen=path.stat(), say=lambda line: None)


@settings(max_examples=25, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=1, max_size=4),
    bucket=st.sampled_from([1, 7, 100]),
)
def test_repeated_documents_are_those_that_stand_earlier(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], bucket: int
) -> None:
    folder = tmp_path_factory.mktemp("index")
    seen: set[int] = set()
    wanted = []
    for texts in files:
        wanted.append([i for i, text in enumerate(texts) if text in seen or text in texts[:i]])
        seen.update(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_index, "_BUCKET_DOCUMENTS", bucket)
        patch.setattr(document_index, "_SORTED_DOCUMENTS", bucket)
        indexes = [index_of(folder, number, texts) for number, texts in enumerate(files)]
        assert [rows.tolist() for rows in repeated_documents(indexes)] == wanted


@pytest.mark.parametrize("written", ['{"text": "another one"}\n', '{"text": "half of'])
def test_index_of_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, written: str) -> None:
    path, format = tmp_path / "a.jsonl", TextFormat(column="text")
    path.write_text('{"text": "one"}\n', encoding="utf-8")
    seen, sha256 = path.stat(), sha256_of(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(written)
    with pytest.raises(UnreadableFileError, match=r"a\.jsonl: changed while it was read; run again when nothing"):
        prepare_index(path, sha256, tmp_path, format, seen=seen, say=lambda line: None)
    assert index_part(sha256, tmp_path, format).find() is None


@pytest.mark.parametrize("at_a_time", [1, 7])
def test_index_sorted_a_range_at_a_time_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    texts = [*range(20), *range(10), *[5] * 10]
    whole = index_of(tmp_path / "whole", 1, texts).manifest
    monkeypatch.setattr(document_index, "_SORTED_DOCUMENTS", at_a_time)
    assert index_of(tmp_path / "ranges", 1, texts).manifest.files == whole.files
    assert whole.facts["documents"] == len(texts)


def test_repeated_documents_of_no_files_are_none() -> None:
    assert repeated_documents([]) == []

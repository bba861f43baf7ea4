"""Folders of many text files, read by lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.files import read_documents
from gpt_pipeline.data.documents.raw import RawStage, find_raw, known_raw, prepare_raw
from gpt_pipeline.data.documents.stage import document_files, find_documents, prepare_documents
from gpt_pipeline.data.sources import text_lists
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.errors import ConfigError, UnreadableFileError
from gpt_pipeline.storage.manifest import StageResult


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_lists, "_FILES", 3)
    folder = tmp_path / "own"
    for number in range(8):
        (folder / f"part {number % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"part {number % 2}" / f"{number}.txt").write_text(f"Text {number} é", encoding="utf-8")
    return folder


def config_of(own: Path, **changed: object) -> DataConfig:
    values = {"format": "text", "validation_fraction": 0.3, "max_length": 4, **changed}
    return DataConfig(num_samples="all", source=str(own), **values)  # type: ignore[arg-type]


def made(config: DataConfig, data_folder: Path) -> StageResult:
    return prepare_documents(config, prepare_raw(config, data_folder), data_folder)


def texts(stage: StageResult) -> list[str]:
    batches = read_documents(document_files(stage), ("text",), batch_rows=7)
    return [text for batch in batches for text in batch["text"].to_pylist()]


def test_text_lists_are_read_in_order_and_few_files_are_made_of_them(own: Path, tmp_path: Path) -> None:
    stage = made(config_of(own), tmp_path / "data")
    assert texts(stage) == [f"Text {number} é" for number in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert len(document_files(stage)) == 3


def test_text_lists_of_a_changed_or_new_file_make_the_stage_anew_and_of_a_touched_one_do_not(
    own: Path, tmp_path: Path
) -> None:
    config, data = config_of(own), tmp_path / "data"
    first = made(config, data)
    os.utime(own / "part 0" / "0.txt", ns=(1, 1))
    assert find_documents(config, data) is not None
    (own / "part 0" / "0.txt").write_text("Another text", encoding="utf-8")
    assert find_raw(config, data) is None
    second = made(config, data)
    assert texts(second)[0] == "Another text"
    assert second.fingerprint != first.fingerprint
    (own / "part 1" / "9.txt").write_text("Text 9", encoding="utf-8")
    assert texts(made(config, data))[-1] == "Text 9"


def test_text_lists_have_the_same_identity_wherever_the_files_lie(own: Path, tmp_path: Path) -> None:
    first = made(config_of(own), tmp_path / "data")
    own.rename(tmp_path / "elsewhere")
    assert find_documents(config_of(own), tmp_path / "data") is not None  # the folder is away, and cannot have changed
    assert made(config_of(tmp_path / "elsewhere"), tmp_path / "other").fingerprint == first.fingerprint


def test_text_lists_split_each_of_their_files_and_tell_them_apart(own: Path, tmp_path: Path) -> None:
    (own / "part 0" / "0.txt").write_text("One\nTwo\n", encoding="utf-8")
    stage = made(config_of(own, split_text_at="line", kind="file"), tmp_path / "data")
    assert texts(stage)[:3] == ["One", "Two", "Text 2 é"]
    assert stage.manifest.facts["kinds"]["part 0/0.txt"] == 2


def test_text_lists_whose_file_changes_while_it_is_read_name_it(own: Path, tmp_path: Path) -> None:
    config, data = config_of(own), tmp_path / "data"
    made(config, data)
    [path] = (data / "sources").glob("*/texts/texts-00001.textlist")
    (own / "part 0" / "2.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UnreadableFileError, match=r"2\.txt: has changed since its folder was listed; run again"):
        list(text_lists.listed_files(path))
    listed = text_lists.listed_files(path)
    next(listed)[1].write_text("x", encoding="utf-8")
    with pytest.raises(UnreadableFileError, match=r"0\.txt: changed while it was read; run again"):
        next(listed)
    assert any(found.is_damaged for found in verify_data(config, data))


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_text_lists_with_a_link_to_nowhere_stand_and_name_it_where_it_is_needed(own: Path, tmp_path: Path) -> None:
    config, data = config_of(own), tmp_path / "data"
    text, kept = own / "part 0" / "2.txt", tmp_path / "kept"
    text.rename(kept)
    text.symlink_to(kept)
    stage = made(config, data)
    kept.rename(tmp_path / "away")
    assert find_raw(config, data) is None
    known = known_raw(config, data)
    assert known is not None
    assert prepare_documents(config, known, data).fingerprint == stage.fingerprint
    with pytest.raises(ConfigError, match=r"found .*part 0/2\.txt.*broken links"):
        prepare_raw(config, data)
    [found] = [found for found in verify_data(config, data) if found.stage == "raw_files"]
    assert found.problem == "gone: part 0/2.txt; not needed, since what was made from it is finished"
    (tmp_path / "away").rename(kept)
    assert find_raw(config, data) == known


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
@pytest.mark.parametrize(
    ("link", "touched", "changed"),
    [("part 0/2.txt", "part 0/4.txt", "part 0/0.txt"), ("part 1/5.txt", "part 1/7.txt", "part 1/9.txt")],
)
def test_text_lists_with_a_link_to_nowhere_do_not_hide_what_has_changed_beside_it(
    own: Path, tmp_path: Path, link: str, touched: str, changed: str
) -> None:
    config, data = config_of(own), tmp_path / "data"
    made(config, data)
    (own / link).unlink()
    (own / link).symlink_to("nowhere")
    os.utime(own / touched, ns=(1, 1))
    assert find_documents(config, data) is not None
    (own / changed).write_text("Another text", encoding="utf-8")
    stage = RawStage(config=config, data_folder=data, is_needed=lambda: find_documents(config, data) is None)
    for force in (False, True):
        with pytest.raises(ConfigError, match=rf"found .*{link}.*broken links"):
            stage.plan(force=force, say=print)


def test_text_lists_of_which_two_processes_wrote_one_file_each_are_hashed_again(own: Path, tmp_path: Path) -> None:
    config, data = config_of(own), tmp_path / "data"
    made(config, data)
    [path] = (data / "sources").glob("*/texts/texts-00001.textlist")
    before = path.read_text(encoding="utf-8")
    (own / "part 0" / "2.txt").write_text("x", encoding="utf-8")
    assert find_raw(config, data) is None
    path.write_text(before, encoding="utf-8")  # the other process wrote last, what it had found first
    assert texts(made(config, data))[1] == "x"

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.choice import code_version
from gpt_pipeline.data.documents.raw import RawStage, files_of, find_raw, known_raw, left_out_of, prepare_raw
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.synth import RULE_VERSION
from gpt_pipeline.data.sources.folder import parquet_names
from gpt_pipeline.data.sources.record import FileFacts, SourceRecord, read_record
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.synth_rows import raw_paths, row, write_folder, write_synth
from gpt_pipeline_tests.test_formats_text import config_of, texts, write_texts


def local(folder: Path, num_samples: int) -> DataConfig:
    return DataConfig(num_samples=num_samples, local_dataset_path=str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files with 8, 16 and 24 documents."""
    return write_folder(tmp_path / "synth", 10, 20, 30)


def names(config: DataConfig, stage: StageResult) -> list[str]:
    return [path.name for path in raw_paths(config, stage).values()]


@pytest.mark.parametrize(("num_samples", "files"), [(1, 1), (8, 1), (9, 2), (24, 2), (25, 3), (48, 3)])
def test_raw_local_folder_takes_exactly_the_files_that_are_needed(
    tmp_path: Path, folder: Path, num_samples: int, files: int
) -> None:
    config = local(folder, num_samples)
    stage = prepare_raw(config, tmp_path / "data")
    assert names(config, stage) == ["synth_001.parquet", "synth_002.parquet", "synth_003.parquet"][:files]


def test_raw_local_folder_with_too_few_documents_says_how_many_there_are(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.num_samples: found 49, need at most 48"):
        prepare_raw(local(folder, 49), tmp_path / "data")


def test_raw_counts_are_on_record_under_the_checksums_of_all_files_up_to_each(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 48)
    stage = prepare_raw(config, tmp_path / "data")
    record = read_record(RawStage(config=config, data_folder=tmp_path / "data").record_folder)
    checksums, version = [sha256 for _, sha256 in stage.manifest.config["files"]], code_version(format_of(config))
    texts_of = ["\n".join([version, *checksums[:count]]) for count in (1, 2, 3)]  # as versions before had it
    assert record.new_documents == dict(
        zip([hashlib.sha256(each.encode()).hexdigest() for each in texts_of], [8, 16, 24], strict=True)
    )


def test_raw_second_time_does_no_work_and_needs_no_reading(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 20)
    first = prepare_raw(config, tmp_path / "data")
    for path in folder.iterdir():  # same size and time, other content: only a reader would notice
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again, found = prepare_raw(config, tmp_path / "data"), find_raw(config, tmp_path / "data")
    assert not first.reused
    assert found is not None
    assert again.reused
    assert again.manifest == found.manifest == first.manifest


def test_raw_growing_reads_only_the_files_that_are_new(tmp_path: Path, folder: Path) -> None:
    prepare_raw(local(folder, 8), tmp_path / "data")
    first = folder / "synth_001.parquet"
    stat = first.stat()
    first.write_bytes(b"x" * stat.st_size)
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    grown = prepare_raw(local(folder, 9), tmp_path / "data")
    assert [file["documents"] for file in grown.manifest.facts["files"]] == [8, 16]


def test_raw_identity_is_the_content_and_not_the_place(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    first = prepare_raw(local(folder, 20), tmp_path / "data")
    second = prepare_raw(local(copy, 20), tmp_path / "other data")
    assert first.fingerprint == second.fingerprint
    write_synth(copy / "synth_002.parquet", [])
    changed = prepare_raw(local(copy, 20), tmp_path / "other data")
    assert changed.fingerprint != first.fingerprint


def test_raw_file_of_another_time_stands_if_its_content_is_the_same_which_is_read_once(
    tmp_path: Path, folder: Path
) -> None:
    config = local(folder, 20)
    prepare_raw(config, tmp_path / "data")
    path = folder / "synth_001.parquet"
    os.utime(path, ns=(1, 1))
    assert find_raw(config, tmp_path / "data") is not None
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=(1, 1))  # same size and time, other content: only a reader would notice
    assert find_raw(config, tmp_path / "data") is not None


def test_raw_file_of_another_time_and_content_is_looked_at_again(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 20)
    prepare_raw(config, tmp_path / "data")
    path = folder / "synth_001.parquet"
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    assert find_raw(config, tmp_path / "data") is None
    path.write_bytes(content)
    assert find_raw(config, tmp_path / "data") is not None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="a folder keeps nobody out there")
def test_raw_file_of_another_time_stands_in_a_folder_that_may_only_be_read(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 20)
    prepare_raw(config, tmp_path / "data")
    os.utime(folder / "synth_001.parquet", ns=(1, 1))
    (files,) = (tmp_path / "data" / "sources").glob("*/files")
    files.chmod(0o500)
    assert find_raw(config, tmp_path / "data") is not None
    files.chmod(0o700)


def test_raw_folder_that_is_away_keeps_the_identity_of_what_was_made(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 20)
    stage = prepare_raw(config, tmp_path / "data")
    folder.rename(tmp_path / "unplugged")
    known = known_raw(config, tmp_path / "data")
    assert known is not None
    assert known.fingerprint == stage.fingerprint
    assert find_raw(config, tmp_path / "data") is None
    with pytest.raises(DataError, match="missing or have changed"):
        raw_paths(config, stage)
    with pytest.raises(
        ConfigError, match=r"data\.local_dataset_path: .*need a folder, a file or a pattern that exists"
    ):
        prepare_raw(config, tmp_path / "data")


def test_raw_never_prepared_is_not_found(tmp_path: Path, folder: Path) -> None:
    assert find_raw(local(folder, 20), tmp_path / "data") is None
    assert known_raw(DataConfig(num_samples=5), tmp_path / "data") is None


def test_raw_folder_without_parquet_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "SYNTH").mkdir()
    with pytest.raises(ConfigError, match="it holds SYNTH"):
        prepare_raw(local(tmp_path, 5), tmp_path / "data")


@pytest.mark.skipif(os.name == "nt", reason="a Windows path is fine on Windows")
def test_raw_windows_path_elsewhere_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.local_dataset_path"):
        prepare_raw(DataConfig(num_samples=5, local_dataset_path="E:\\SYNTH"), tmp_path / "data")


def test_raw_damaged_file_fails_by_name_and_keeps_what_was_checked(tmp_path: Path, folder: Path) -> None:
    damaged = folder / "synth_002.parquet"
    damaged.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"synth_002\.parquet"):
        prepare_raw(local(folder, 20), tmp_path / "data")
    (folder,) = (tmp_path / "data" / "sources").iterdir()
    record = read_record(folder)
    assert record.facts("synth_001.parquet") is not None
    assert record.facts("synth_002.parquet") is None


def test_raw_force_checks_every_file_again(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 8)
    prepare_raw(config, tmp_path / "data")
    path = folder / "synth_001.parquet"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match="not a readable parquet"):
        prepare_raw(config, tmp_path / "data", force=True)


def test_raw_two_at_once_do_the_work_once(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 48)
    stages: list[StageResult] = []
    threads = [threading.Thread(target=lambda: stages.append(prepare_raw(config, tmp_path / "data"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stage.reused for stage in stages) == [False, True, True]


def test_raw_record_of_a_newer_version_is_read_and_keeps_what_that_wrote(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 8)
    first = prepare_raw(config, tmp_path / "data")
    (known,) = (tmp_path / "data" / "sources").glob("*/source.json")
    for file in (known, *known.parent.glob("files/*.json")):
        file.write_text(json.dumps({**json.loads(file.read_text()), "new": 1}))
    assert prepare_raw(config, tmp_path / "data").reused
    grown = prepare_raw(local(folder, 9), tmp_path / "data")  # which saves the record
    assert grown.fingerprint != first.fingerprint
    assert json.loads(known.read_text())["new"] == 1


def test_raw_unreadable_record_is_named_with_the_remedy(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 8)
    prepare_raw(config, tmp_path / "data")
    (known,) = (tmp_path / "data" / "sources").glob("*/source.json")
    known.write_text("{")
    with pytest.raises(DataError, match=r"source\.json is not readable .*delete it"):
        find_raw(config, tmp_path / "data")


def test_raw_documents_counted_by_an_older_rule_are_counted_again(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 8)
    prepare_raw(config, tmp_path / "data")
    (known,) = (tmp_path / "data" / "sources").glob("*/files/*.json")
    known.write_text(known.read_text().replace(f'"rule": "{RULE_VERSION}"', '"rule": "0"'))
    assert find_raw(config, tmp_path / "data") is None
    prepare_raw(config, tmp_path / "data")
    assert find_raw(config, tmp_path / "data") is not None


def test_raw_repeated_documents_do_not_count_and_one_more_file_is_taken_for_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "synth", 10, 20, 30)
    again = [row(i) for i in (1, 2, 3)]
    write_synth(folder / "synth_002.parquet", [*again, row(500), row(500), row(501)])
    config = local(folder, 11)
    stage = prepare_raw(config, tmp_path / "data")  # 8 + 6 English rows, of which 8 + 2 say something new
    assert names(config, stage) == ["synth_001.parquet", "synth_002.parquet", "synth_003.parquet"]
    assert [(file["documents"], file["repeated"]) for file in stage.manifest.facts["files"]] == [
        (8, 0),
        (2, 4),
        (24, 0),
    ]
    repeats = [left_out_of(stage, file).get("repeated", np.empty(0)).tolist() for file in files_of(stage)]
    assert repeats == [[], [0, 1, 2, 4], []]
    assert find_raw(config, tmp_path / "data") is not None


def test_raw_files_for_repeated_documents_are_taken_as_many_at_a_time_as_are_surely_needed(tmp_path: Path) -> None:
    own = texts(200)
    for number in range(30):
        new = own[10 + 5 * number : 15 + 5 * number]
        write_texts(tmp_path / "mine" / f"{number:02}.parquet", own[:10] if number == 0 else [*own[:5], *new])
    lines: list[str] = []
    stage = prepare_raw(config_of(tmp_path / "mine", 100), tmp_path / "data", say=lines.append)
    assert [file["documents"] for file in stage.manifest.facts["files"]] == [10, *[5] * 18]
    assert [line.split("; ")[1] for line in lines if "; taking" in line] == [
        f"taking {count} more" for count in (5, 2, 1, 1)
    ]


def test_raw_repeats_of_a_file_do_not_depend_on_the_files_after_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "synth", 10, 20)
    write_synth(folder / "synth_003.parquet", [row(i) for i in range(40)])
    small, large = (prepare_raw(local(folder, number), tmp_path / "data") for number in (9, 30))
    assert [file["documents"] for file in small.manifest.facts["files"]] == [8, 16]
    assert [file["documents"] for file in large.manifest.facts["files"]] == [8, 16, 16]


def test_raw_finished_or_not_the_groups_are_those_still_missing(tmp_path: Path, folder: Path) -> None:
    stage = RawStage(config=local(folder, 30), data_folder=tmp_path / "data")
    quiet: list[str] = []
    assert stage.plan(force=False, say=quiet.append) == [
        ["synth_001.parquet", "synth_002.parquet", "synth_003.parquet"]
    ]
    stage.make(["synth_002.parquet"], say=quiet.append)
    assert stage.plan(force=False, say=quiet.append) == [["synth_001.parquet", "synth_003.parquet"]]
    assert stage.finish(say=quiet.append).manifest.facts["documents"] == 48
    assert stage.plan(force=False, say=quiet.append) == []
    assert stage.plan(force=True, say=quiet.append) == [["synth_001.parquet", "synth_002.parquet", "synth_003.parquet"]]


def test_raw_folder_that_is_away_is_remembered_as_it_was_last_and_not_before(tmp_path: Path, folder: Path) -> None:
    config = local(folder, 20)
    prepare_raw(config, tmp_path / "data")
    (folder / "synth_001.parquet").unlink()
    second = prepare_raw(config, tmp_path / "data")
    folder.rename(tmp_path / "unplugged")
    known = known_raw(config, tmp_path / "data")
    assert known is not None
    assert known.fingerprint == second.fingerprint
    folder.mkdir()  # the empty place where a disk was mounted
    assert known_raw(config, tmp_path / "data") == known


def test_raw_files_that_are_away_are_not_missed_where_all_that_was_made_of_them_stands(
    tmp_path: Path, folder: Path
) -> None:
    config = local(folder, 20)
    stage = prepare_raw(config, tmp_path / "data")
    folder.rename(tmp_path / "unplugged")
    unneeded = RawStage(config=config, data_folder=tmp_path / "data", is_needed=lambda: False)
    assert prepare(unneeded, say=lambda line: None).fingerprint == stage.fingerprint
    with pytest.raises(ConfigError, match="need a folder, a file or a pattern that exists"):
        prepare_raw(config, tmp_path / "data")


def test_raw_damaged_index_is_made_again_before_it_decides_what_repeats(tmp_path: Path, folder: Path) -> None:
    first = prepare_raw(local(folder, 20), tmp_path / "data")
    for path in (tmp_path / "data" / "parts").glob("document_index-*/hashes.npy"):
        hashes = np.load(path)
        hashes[:, -1] = 2**64 - 1  # a text of one file would repeat one of another
        np.save(path, hashes)
    for path in first.folder.iterdir():
        path.unlink()
    assert prepare_raw(local(folder, 20), tmp_path / "data").manifest == first.manifest


def test_raw_force_reads_the_files_that_were_added_for_repeated_documents(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "synth", 10, 20, 30)
    shutil.copyfile(folder / "synth_001.parquet", folder / "synth_002.parquet")
    config = local(folder, 10)
    prepare_raw(config, tmp_path / "data")
    path = folder / "synth_003.parquet"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"synth_003\.parquet"):
        prepare_raw(config, tmp_path / "data", force=True)


def test_raw_facts_of_names_that_differ_in_a_slash_are_kept_apart(tmp_path: Path) -> None:
    record = SourceRecord(folder=tmp_path)
    for rows, key in enumerate(("a/b.parquet", "a__b.parquet")):
        record.write_facts(
            FileFacts(key=key, size=1, mtime_ns=1, sha256="0" * 64, rows=rows, documents=0, rule=RULE_VERSION)
        )
    assert [facts.rows for key in ("a/b.parquet", "a__b.parquet") if (facts := record.facts(key))] == [0, 1]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_raw_folder_with_a_link_to_nowhere_is_refused_with_its_name(tmp_path: Path, folder: Path) -> None:
    (folder / "synth_004.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"synth_004\.parquet"):
        prepare_raw(local(folder, 5), tmp_path / "data")


@pytest.mark.parametrize(
    ("listing", "chosen"),
    [
        (["synth_002.parquet", "synth_001.parquet", "README.md"], ["synth_001.parquet", "synth_002.parquet"]),
        (["synth_001.parquet", "synth_en_samples_9.parquet", "b.parquet"], ["synth_001.parquet"]),
        (["b.parquet", "a.parquet", ".hidden.parquet", "a.txt"], ["a.parquet", "b.parquet"]),
        (["data/b.parquet", "data/a.parquet"], ["data/a.parquet", "data/b.parquet"]),
        ([], []),
    ],
)
def test_parquet_names_prefer_the_numbered_files_in_order(listing: list[str], chosen: list[str]) -> None:
    assert list(parquet_names(listing)) == chosen

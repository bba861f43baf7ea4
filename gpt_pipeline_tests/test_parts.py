"""What holds of all data stages: parts made in any order, killed, damaged, or found again by a larger stage."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gpt_pipeline.data import stage as stage_module
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage, find_raw, prepare_raw
from gpt_pipeline.data.documents.stage import DocumentsStage, find_documents, prepare_documents
from gpt_pipeline.data.stage import PartedStage, grouped
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import ShardsStage, prepare_shards
from gpt_pipeline.errors import DataError, DiskFullError
from gpt_pipeline.storage.manifest import StageResult, verify
from gpt_pipeline_tests.synth_rows import row, rows, write_synth

_FILES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 50 rows, 40 of them English; the third repeats ten documents of the first."""
    folder = tmp_path_factory.mktemp("synth")
    for number in range(_FILES):
        values = rows(50, first=50 * number)
        if number == 2:
            values[:10] = [row(i, synth_id=f"again_{i}") for i in (1, 2, 3, 4, 6, 7, 8, 9, 11, 12)]
        write_synth(folder / f"synth_{number + 1:03d}.parquet", values)
    return folder


def config_of(folder: Path, num_samples: int) -> DataConfig:
    return DataConfig(num_samples=num_samples, local_dataset_path=str(folder), validation_fraction=0.2, max_length=16)


def stages_of(config: DataConfig, data_folder: Path) -> Iterator[PartedStage]:
    """The three stages, each only when the one before it is finished."""
    yield RawStage(config=config, data_folder=data_folder)
    yield DocumentsStage(config=config, data_folder=data_folder)
    yield ShardsStage(config=config, data_folder=data_folder)


def quiet(line: str) -> None:
    """Takes what is said and forgets it."""


def prepared(config: DataConfig, data_folder: Path) -> StageResult:
    english = prepare_documents(config, prepare_raw(config, data_folder), data_folder)
    return prepare_shards(config, english, data_folder)


def bytes_of(data_folder: Path) -> dict[str, bytes]:
    """Every stage's manifest and files, without what tells when they were made."""
    stages = [path for path in data_folder.iterdir() if path.name.split("-")[0] in STAGES]
    files = (file for stage in stages for file in stage.iterdir())
    kept = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}
    return {name: content for name, content in kept.items() if not name.endswith(("made.json", ".lock"))}


STAGES = ("raw_synth", "english_parquet", "token_shards")


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run in one process leaves, of 100 documents."""
    data_folder = tmp_path_factory.mktemp("undisturbed")
    prepared(config_of(folder, 100), data_folder)
    return bytes_of(data_folder)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_parts_made_in_any_order_and_grouping_give_the_same_bytes(
    tmp_path: Path, folder: Path, undisturbed: dict[str, bytes], order: tuple[int, ...]
) -> None:
    for stage in stages_of(config_of(folder, 100), tmp_path):
        (names,) = stage.plan(force=False, say=quiet)
        for index in order:
            stage.make([names[index]], say=quiet)
        stage.finish(say=quiet)
    assert bytes_of(tmp_path) == undisturbed


_WORKER = """
import sys
from pathlib import Path
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.tokens.shards import ShardsStage
import os, gpt_pipeline.storage.atomic as atomic
left = int(sys.argv[4])
real = os.replace
def replace(*names):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    real(*names)
os.replace = replace
config = DataConfig(num_samples=100, local_dataset_path=sys.argv[1], validation_fraction=0.2, max_length=16)
kinds = {"raw": RawStage, "english": DocumentsStage, "shards": ShardsStage}
stage = kinds[sys.argv[3]](config=config, data_folder=Path(sys.argv[2]))
stage.make([sys.argv[5]], say=lambda line: None)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills processes by signal")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "english", "shards"])
def test_parts_worker_killed_at_any_rename_leaves_nothing_that_changes_the_result(
    tmp_path: Path, folder: Path, undisturbed: dict[str, bytes], kind: str
) -> None:
    killed = 0
    for stage, name in zip(stages_of(config_of(folder, 100), tmp_path), ("raw", "english", "shards"), strict=True):
        (names,) = stage.plan(force=False, say=quiet)
        if name == kind:
            for renames in itertools.count():
                command = [sys.executable, "-c", _WORKER, str(folder), str(tmp_path), kind, str(renames), names[1]]
                status = subprocess.run(command, check=False).returncode
                if status == 0:
                    break
                assert status == -signal.SIGKILL
                killed += 1
        for group in stage.plan(force=False, say=quiet):
            stage.make(group, say=quiet)
        stage.finish(say=quiet)
    assert killed >= 3
    assert bytes_of(tmp_path) == undisturbed


def test_parts_growing_number_of_samples_reuses_the_finished_files(tmp_path: Path, folder: Path) -> None:
    prepared(config_of(folder, 50), tmp_path)
    config = config_of(folder, 140)
    planned = []
    for stage in stages_of(config, tmp_path):
        groups = stage.plan(force=False, say=quiet)
        planned.append([name for group in groups for name in group])
        for group in groups:
            stage.make(group, say=quiet)
        stage.finish(say=quiet)
    # The second file gave only its first ten documents before: it alone is done again.
    new = ["synth_003.parquet", "synth_004.parquet"]
    assert planned == [new, ["synth_002.parquet", *new], ["synth_002.parquet", *new]]


def test_parts_repeated_documents_are_left_out_and_counted(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, 150)
    prepared(config, tmp_path)
    english = find_documents(config, tmp_path)
    assert english is not None
    assert english.manifest.facts["dropped"]["repeated"] == 10
    assert english.manifest.facts["documents"] == 150
    total = sum(english.manifest.facts["dropped"].values()) + 150
    assert english.manifest.facts["rows_read"] == total


@pytest.mark.parametrize("find", [find_documents, find_shards])
def test_parts_damaged_part_is_made_again_when_its_stage_is_put_together(
    tmp_path: Path, folder: Path, undisturbed: dict[str, bytes], find: Callable[[DataConfig, Path], StageResult | None]
) -> None:
    config = config_of(folder, 100)
    prepared(config, tmp_path)
    stage = find(config, tmp_path)
    assert stage is not None
    name = list(stage.manifest.files)[-1]
    content = bytearray((stage.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    with (stage.folder / name).open("rb+") as file:  # in place, so the part that it is linked with is damaged too
        file.write(content)
    for path in stage.folder.iterdir():
        path.unlink()
    prepared(config, tmp_path)
    repaired = find(config, tmp_path)
    assert repaired is not None
    verify(repaired)
    assert bytes_of(tmp_path) == undisturbed


def test_parts_on_a_disk_without_hard_links_are_copied_and_it_is_said(
    tmp_path: Path, folder: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    said: list[str] = []
    config = config_of(folder, 100)
    english = prepare_documents(config, prepare_raw(config, tmp_path), tmp_path, say=said.append)
    prepare_shards(config, english, tmp_path)
    assert bytes_of(tmp_path) == undisturbed
    assert any("not support hard links" in line for line in said)


def test_parts_found_by_all_stages_after_the_run(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, 100)
    prepared(config, tmp_path)
    assert all(stage.plan(force=False, say=quiet) == [] for stage in stages_of(config, tmp_path))
    assert all(find(config, tmp_path) for find in (find_raw, find_documents, find_shards))


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ({}, []),
        ({"a": 5}, [["a"]]),
        ({"a": 5, "b": 5, "c": 1}, [["a", "b"], ["c"]]),
        ({"a": 30, "b": 30, "c": 1, "d": 1}, [["a"], ["b"], ["c", "d"]]),
    ],
)
def test_grouped_files_reach_the_unit_size(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], groups: list[list[str]]
) -> None:
    monkeypatch.setattr(stage_module, "UNIT_BYTES", 10)
    assert grouped(sizes) == groups


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 470 << 20])
def test_groups_of_a_hundred_thousand_files_are_as_many_as_a_run_can_have(size: int) -> None:
    names = [f"{number}" for number in range(100_000)]
    groups = grouped(dict.fromkeys(names, size))
    assert [name for group in groups for name in group] == names
    assert len(groups) <= stage_module.MOST_GROUPS
    assert len({len(group) for group in groups[:-1]}) <= 1


def test_parts_force_leaves_the_finished_stages_of_others_alone_until_it_has_made_them_again(
    tmp_path: Path, folder: Path, undisturbed: dict[str, bytes]
) -> None:
    config, other = config_of(folder, 100), config_of(folder, 60)
    prepared(config, tmp_path)
    prepared(other, tmp_path)
    for stage in stages_of(config, tmp_path):
        groups = stage.plan(force=True, say=quiet)
        assert groups
        assert all(find(each, tmp_path) for find in (find_raw, find_documents, find_shards) for each in (config, other))
        for group in groups:
            stage.make(group, force=True, say=quiet)
        assert not stage.finish(force=True, say=quiet).reused
        assert stage.finish(say=quiet).reused
    kept = {name: content for name, content in bytes_of(tmp_path).items() if name in undisturbed}
    assert kept == undisturbed


@pytest.mark.parametrize("find", [find_documents, find_shards])
def test_parts_force_replaces_what_a_stage_has_linked(
    tmp_path: Path, folder: Path, find: Callable[[DataConfig, Path], StageResult | None]
) -> None:
    config = config_of(folder, 100)
    prepared(config, tmp_path)
    stage = find(config, tmp_path)
    assert stage is not None
    path = stage.folder / next(iter(stage.manifest.files))
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.write(bytes(size))
    for each in stages_of(config, tmp_path):
        for group in each.plan(force=True, say=quiet):
            each.make(group, force=True, say=quiet)
        each.finish(force=True, say=quiet)
    verify(stage)


@pytest.mark.parametrize("kind", [RawStage, DocumentsStage, ShardsStage])
def test_parts_force_is_done_although_another_run_finds_the_stage_finished_meanwhile(
    tmp_path: Path, folder: Path, kind: type[PartedStage]
) -> None:
    config = config_of(folder, 100)
    prepared(config, tmp_path)
    (stage,) = (each for each in stages_of(config, tmp_path) if isinstance(each, kind))
    (group,) = stage.plan(force=True, say=quiet)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    for go_on in (partial(stage.make, group), stage.finish):
        (other,) = (each for each in stages_of(config, tmp_path) if isinstance(each, kind))
        assert other.plan(force=False, say=quiet) == []
        assert other.finish(say=quiet).reused
        last = go_on(force=True, say=quiet)
    assert isinstance(last, StageResult)
    assert not last.reused
    parts = len(group)
    assert sum(path.stat().st_mtime_ns != before.get(path) for path in tmp_path.rglob("manifest.json")) == parts + 1


def full(descriptor: int) -> None:
    """Fails as fsync does on a disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def manifests(data_folder: Path) -> dict[Path, bytes]:
    """Those of all stages and parts."""
    return {path: path.read_bytes() for path in data_folder.rglob("manifest.json")}


@pytest.mark.parametrize("kind", [RawStage, DocumentsStage, ShardsStage])
@pytest.mark.parametrize("moment", ["make", "finish"])
def test_parts_force_that_fails_leaves_all_that_was_finished(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PartedStage], moment: str
) -> None:
    config = config_of(folder, 100)
    prepared(config, tmp_path)
    before, content = manifests(tmp_path), bytes_of(tmp_path)
    (stage,) = (each for each in stages_of(config, tmp_path) if isinstance(each, kind))
    (group,) = stage.plan(force=True, say=quiet)
    if moment == "finish":
        stage.make(group, force=True, say=quiet)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError):
            stage.make(group, force=True, say=quiet) if moment == "make" else stage.finish(force=True, say=quiet)
    assert all(each.plan(force=False, say=quiet) == [] for each in stages_of(config, tmp_path))
    assert all(each.finish(say=quiet).reused for each in stages_of(config, tmp_path))
    assert bytes_of(tmp_path) == content
    if (
        moment == "finish" or kind is not RawStage
    ):  # what a look at a raw file found is no result: it is looked at again
        assert manifests(tmp_path) == before
    assert stage.plan(force=True, say=quiet) == [group]


def test_parts_force_of_what_cannot_be_made_again_changes_nothing(tmp_path: Path, folder: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    config, data = config_of(source, 100), tmp_path / "data"
    prepared(config, data)
    before = manifests(data)
    source.rename(tmp_path / "unplugged")
    with pytest.raises(DataError, match=r"missing or have changed: synth_001\.parquet"):
        DocumentsStage(config=config, data_folder=data).plan(force=True, say=quiet)
    documents = find_documents(config, data)
    assert documents is not None
    assert DocumentsStage(config=config, data_folder=data).plan(force=False, say=quiet) == []
    next(documents.folder.glob("*.parquet")).unlink()
    with pytest.raises(DataError, match="english_parquet is not finished"):
        ShardsStage(config=config, data_folder=data).plan(force=True, say=quiet)
    assert find_shards(config, data) is not None
    assert manifests(data) == before
    assert not [*data.rglob(".again")]

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt_pipeline.cli import command
from gpt_pipeline.data import verification
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.stage import document_files, find_documents
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.experiment.training import prompts_stage
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.manifest import Manifest, read_manifest, record_file
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.synth_rows import write_folder
from gpt_pipeline_tests.test_parts import config_of, prepared


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Of finished data of two files in `tmp_path`."""
    config = config_of(write_folder(tmp_path / "synth", 50, 50), 60)
    prepared(config, tmp_path / "data")
    return config


def problems(config: DataConfig, tmp_path: Path) -> dict[str, str]:
    found = verify_data(config, tmp_path / "data")
    return {each.stage: each.problem for each in found if each.problem is not None}


def flip_a_bit(path: Path) -> None:
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk does it: unseen


def test_verify_finds_nothing_wrong_with_finished_data(config: DataConfig, tmp_path: Path) -> None:
    assert problems(config, tmp_path) == {}


def test_verify_reads_large_shards_in_pieces(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_CHUNK", 7)
    assert problems(config, tmp_path) == {}


def test_verify_names_the_file_that_differs(config: DataConfig, tmp_path: Path) -> None:
    english, shards = find_documents(config, tmp_path / "data"), find_shards(config, tmp_path / "data")
    assert english is not None
    assert shards is not None
    flip_a_bit(document_files(english)[1])
    flip_a_bit(shards.folder / "train_000001.bin")
    flip_a_bit(tmp_path / "synth" / "synth_001.parquet")
    found = problems(config, tmp_path)
    assert "synth_en_samples_60-00002-of-00002.parquet" in found["english_parquet"]
    assert "train_000001.bin" in found["token_shards"]
    assert "synth_001.parquet: found sha256" in found["raw_synth"]


def test_verify_unfinished_stages_are_said_to_be_so(tmp_path: Path) -> None:
    config = config_of(write_folder(tmp_path / "synth", 50), 10)
    assert set(problems(config, tmp_path)) == {"raw_synth", "english_parquet", "token_shards"}


@pytest.mark.parametrize("pattern", ["token_shards-*/train_000001.bin", "english_parquet-*/*-00002-of-00002.parquet"])
@pytest.mark.parametrize("damage", ["cut short", "deleted"])
def test_verify_file_cut_short_or_deleted_is_damage_and_is_made_again(
    config: DataConfig, tmp_path: Path, pattern: str, damage: str
) -> None:
    (path,) = (tmp_path / "data").glob(pattern)
    content = path.read_bytes()
    path.unlink()
    if damage == "cut short":
        path.write_bytes(content[:-1])
    (found,) = [each for each in verify_data(config, tmp_path / "data") if each.problem is not None]
    assert found.is_damaged
    assert path.name in str(found.problem)
    prepared(config, tmp_path / "data")
    assert path.read_bytes() == content
    assert problems(config, tmp_path) == {}


@pytest.mark.parametrize("stage", ["raw_synth", "english_parquet", "token_shards"])
def test_verify_manifest_that_cannot_be_read_is_damage_each_time(
    config: DataConfig, tmp_path: Path, stage: str
) -> None:
    (path,) = (tmp_path / "data").glob(f"{stage}-*/manifest.json")
    path.write_text(path.read_text()[:-9])
    for _ in range(2):
        found = {each.stage: each for each in verify_data(config, tmp_path / "data")}
        assert found[stage].is_damaged
        assert "manifest.json" in str(found[stage].problem)
    prepared(config, tmp_path / "data")
    assert problems(config, tmp_path) == {}


@pytest.mark.parametrize("damage", ["cut short", "other times", "deleted"])
def test_verify_compares_raw_files_whatever_their_sizes_and_times_are_now(
    config: DataConfig, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "synth" / "synth_002.parquet"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "deleted":
        path.unlink()
    else:
        os.utime(path, ns=(1, 1))
    found = {each.stage: each for each in verify_data(config, tmp_path / "data")}
    assert {name for name, each in found.items() if each.is_damaged} == (
        {"raw_synth"} if damage == "cut short" else set()
    )
    # What was made of a file stands without it.
    assert {name for name, each in found.items() if each.folder is None} == (
        {"raw_synth"} if damage == "deleted" else set()
    )


@pytest.mark.parametrize("sidecar", ["starts", "answers"])
def test_verify_sidecar_that_does_not_fit_the_tokens_is_found(config: DataConfig, tmp_path: Path, sidecar: str) -> None:
    shards = find_shards(config, tmp_path / "data")
    assert shards is not None
    path = shards.folder / f"train_000001.{sidecar}.npy"
    positions = np.load(path)
    positions[1] = positions[1] + 1 if sidecar == "starts" else positions[2] + 1000
    np.save(path, np.sort(positions))
    manifest = read_manifest(shards.folder)
    assert manifest is not None
    files = {**manifest.files, path.name: record_file(path)}  # as if it had been written so
    value = {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "config": manifest.config,
        "upstream": list(manifest.upstream),
        "files": {name: {"size": record.size, "sha256": record.sha256} for name, record in files.items()},
        "facts": manifest.facts,
    }
    write_json(shards.folder / "manifest.json", value)
    assert set(problems(config, tmp_path)) == {"token_shards"}


def test_verify_command_says_what_is_whole_and_fails_on_damage(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    path = project.write_experiment("tiny", num_samples=60)
    write_folder(tmp_path / "synth", 50, 50)
    path.write_text(path.read_text().replace("source: sample", "local_dataset_path: ../synth"))
    experiment = project.experiment("tiny")
    unfinished = CliRunner().invoke(command, ["verify", str(path)])
    assert unfinished.exit_code == 0
    assert unfinished.output.count("not finished") == 3
    prepared(experiment.data, experiment.data_folder)
    whole = CliRunner().invoke(command, ["verify", str(path)])
    assert whole.exit_code == 0
    assert whole.output.count("as it was made") == 3
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    flip_a_bit(shards.folder / "train_000001.bin")
    damaged = CliRunner().invoke(command, ["verify", str(path)])
    assert damaged.exit_code == 1
    assert "train_000001.bin: found sha256" in damaged.output


def test_verify_command_reads_the_questions_of_a_training_on_rewards(
    tmp_path: Path, tiny_at: Callable[[int], Path]
) -> None:
    project = TinyProject(root=tmp_path)
    text = project.write_experiment("tiny").read_text()
    shutil.copytree(tiny_at(12), tmp_path / "storage")
    path = project.write_experiment("later")
    text = re.sub("(?m)^model: .*$", "start_from: {experiment: tiny.yaml}\nrl: {max_new_tokens: 8}", text)
    path.write_text(
        text.replace("training: {batch_size: 4", "training: {objective: rl").replace("name: tiny", "name: later")
    )
    assert "rl_prompts       not finished" in project.call("verify", "experiments/later.yaml")
    stage = prompts_stage(project.experiment("later"))
    assert stage is not None
    folder, fingerprint = stage.place()
    folder.mkdir(parents=True)
    (folder / "training.json").write_text("[1]")
    files = {"training.json": record_file(folder / "training.json")}
    Manifest(stage=stage.name, fingerprint=fingerprint, config={}, files=files).write(folder)
    assert "rl_prompts       as it was made" in project.call("verify", "experiments/later.yaml")
    (folder / "training.json").write_text("[2]")
    damaged = CliRunner().invoke(command, ["verify", str(path)])
    assert damaged.exit_code == 1
    assert "training.json: found sha256" in damaged.output

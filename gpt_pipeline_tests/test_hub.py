from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage, find_raw, known_raw, prepare_raw
from gpt_pipeline.data.sources.hub import Hub, open_dataset
from gpt_pipeline.data.sources.record import SourceRecord, read_record
from gpt_pipeline.errors import ConfigError, DamagedFileError, DataError
from gpt_pipeline_tests.hub_server import FakeHub, running_hub
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.synth_rows import raw_paths, write_folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub whose dataset has three files with 8, 16 and 24 documents."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as server:
        folder = write_folder(tmp_path / "published", 10, 20, 30)
        (folder / "README.md").write_text("the card")
        server.publish(folder)
        yield server


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.endpoint, cache_folder=tmp_path / "cache")


def test_hub_downloads_only_the_files_that_are_needed_at_the_newest_commit(
    tmp_path: Path, server: FakeHub, hub: Hub
) -> None:
    config = DataConfig(num_samples=9)
    stage = prepare_raw(config, tmp_path / "data", hub=hub)
    paths = list(raw_paths(config, stage, hub=hub).values())
    assert [path.name for path in paths] == ["synth_001.parquet", "synth_002.parquet"]
    assert [path.read_bytes() for path in paths] == [
        (tmp_path / "published" / path.name).read_bytes() for path in paths
    ]
    assert all(path.is_relative_to(tmp_path / "cache") for path in paths)
    assert stage.manifest.facts["revision"] == next(iter(server.commits))
    assert set(server.downloads()) == {"synth_001.parquet", "synth_002.parquet"}


def test_hub_finished_asks_the_network_nothing(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    config = DataConfig(num_samples=9)
    first = prepare_raw(config, tmp_path / "data", hub=hub)
    server.requests.clear()
    again, found = prepare_raw(config, tmp_path / "data", hub=hub), find_raw(config, tmp_path / "data", hub=hub)
    assert found is not None
    assert again.reused
    assert again.manifest == found.manifest == first.manifest
    assert len(raw_paths(config, found, hub=hub)) == 2
    assert server.requests == []


def test_hub_files_have_the_identity_of_the_same_files_in_a_folder(tmp_path: Path, hub: Hub) -> None:
    from_hub = prepare_raw(DataConfig(num_samples=9), tmp_path / "data", hub=hub)
    folder = str(tmp_path / "published")
    from_folder = prepare_raw(DataConfig(num_samples=9, local_dataset_path=folder), tmp_path / "data")
    assert from_folder.fingerprint == from_hub.fingerprint
    assert from_folder.reused


def test_hub_newest_commit_stays_pinned_until_a_revision_is_set(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    first = prepare_raw(DataConfig(num_samples=9), tmp_path / "data", hub=hub)
    old = first.manifest.facts["revision"]
    new = server.publish(write_folder(tmp_path / "republished", 40, 40))
    grown = prepare_raw(DataConfig(num_samples=25), tmp_path / "data", hub=hub)
    forced = prepare_raw(DataConfig(num_samples=9), tmp_path / "data", force=True, hub=hub)
    moved = prepare_raw(DataConfig(num_samples=9, revision=new), tmp_path / "data", hub=hub)
    back = prepare_raw(DataConfig(num_samples=9), tmp_path / "data", hub=hub)
    revisions = [stage.manifest.facts["revision"] for stage in (grown, forced, moved, back)]
    assert revisions == [old, old, new, old]
    assert moved.fingerprint != first.fingerprint == back.fingerprint == forced.fingerprint
    assert back.reused


def test_hub_growing_downloads_only_what_is_new(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    prepare_raw(DataConfig(num_samples=9), tmp_path / "data", hub=hub)
    server.requests.clear()
    prepare_raw(DataConfig(num_samples=25), tmp_path / "data", hub=hub)
    assert server.downloads() == ["synth_003.parquet"]
    assert not [line for line in server.requests if "/api/" in line]


def test_hub_too_few_documents_says_how_many_there_are(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(ConfigError, match=r"data\.num_samples: found 49, need at most 48.*PleIAs/SYNTH"):
        prepare_raw(DataConfig(num_samples=49), tmp_path / "data", hub=hub)


def test_hub_deleted_cache_is_downloaded_again_at_the_same_commit(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    config = DataConfig(num_samples=5)
    first = prepare_raw(config, tmp_path / "data", hub=hub)
    elsewhere = Hub(endpoint=server.endpoint, cache_folder=tmp_path / "empty")
    server.publish(write_folder(tmp_path / "republished", 40))
    assert find_raw(config, tmp_path / "data", hub=elsewhere) is None
    known = known_raw(config, tmp_path / "data", hub=elsewhere)
    assert known is not None
    assert known.fingerprint == first.fingerprint
    assert prepare_raw(config, tmp_path / "data", hub=elsewhere).fingerprint == first.fingerprint
    assert find_raw(config, tmp_path / "data", hub=elsewhere) is not None


def test_hub_cached_file_cut_short_is_downloaded_again(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    config = DataConfig(num_samples=5)
    (path,) = raw_paths(config, prepare_raw(config, tmp_path / "data", hub=hub), hub=hub).values()
    path.resolve().write_bytes(b"cut")
    assert find_raw(config, tmp_path / "data", hub=hub) is None
    prepare_raw(config, tmp_path / "data", hub=hub)
    assert path.read_bytes() == (tmp_path / "published" / "synth_001.parquet").read_bytes()


def test_hub_wrong_bytes_that_were_in_the_cache_before_are_downloaded_again(tmp_path: Path, hub: Hub) -> None:
    config = DataConfig(num_samples=5)
    (path,) = raw_paths(config, prepare_raw(config, tmp_path / "before", hub=hub), hub=hub).values()
    right = path.read_bytes()
    path.resolve().write_bytes(bytes(len(right)))
    said: list[str] = []
    prepare_raw(config, tmp_path / "data", hub=hub, say=said.append)
    assert path.read_bytes() == right
    assert any("downloading it again" in line for line in said)


def test_hub_private_dataset_needs_the_token_and_takes_it(
    tmp_path: Path, server: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    with pytest.raises(DataError, match=r"HTTP 401.*HF_TOKEN.*data\.local_dataset_path"):
        prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"hf_secret" in path.read_bytes() for path in kept)


def test_hub_gated_dataset_says_what_to_accept(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    server.gated = True
    with pytest.raises(DataError, match="is gated: accept its conditions"):
        prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)


def test_hub_unknown_dataset_or_revision_is_named(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(DataError, match=r"PleIAs/NOTHING on http.*HTTP 404.*data\.source"):
        prepare_raw(DataConfig(num_samples=5, source="PleIAs/NOTHING"), tmp_path / "data", hub=hub)
    with pytest.raises(ConfigError, match=r"data\.revision: found 'v9'"):
        prepare_raw(DataConfig(num_samples=5, revision="v9"), tmp_path / "data", hub=hub)


def test_hub_refusal_without_reason_names_the_status(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    server.failing = 403
    with pytest.raises(DataError, match=r"HTTP 403.*HF_TOKEN"):
        prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)
    server.failing = 418
    with pytest.raises(DataError, match="answered HTTP 418; run again later"):
        prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)


def test_hub_dataset_without_parquet_is_refused(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("nothing yet")
    server.publish(tmp_path / "card")
    with pytest.raises(DataError, match=r"has no files to read: .* it holds \.md \(1\)"):
        prepare_raw(DataConfig(num_samples=5), tmp_path / "data", hub=hub)


_ALL_STAGES = """
import json, sys
from pathlib import Path
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.tokens.shards import prepare_shards
config = DataConfig(num_samples=20, max_length=16, validation_fraction=0.5, seed=1)
data_folder = Path(sys.argv[1])
raw = prepare_raw(config, data_folder)
english = prepare_documents(config, raw, data_folder)
shards = prepare_shards(config, english, data_folder)
print(json.dumps([[stage.fingerprint, stage.reused] for stage in (raw, english, shards)]))
"""


def test_hub_environment_names_the_hub_and_a_finished_pipeline_works_offline(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def run(**changed: str) -> list[tuple[str, bool]]:
        command = [sys.executable, "-c", _ALL_STAGES, str(tmp_path / "data")]
        done = subprocess.run(
            command, check=False, env=environment | changed, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return [tuple(pair) for pair in json.loads(done.stdout)]

    with running_hub() as server:
        server.publish(write_folder(tmp_path / "published", 10, 20, 30))
        first = run(HF_ENDPOINT=server.endpoint)
        assert set(server.downloads()) == {"synth_001.parquet", "synth_002.parquet"}
    offline = run(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert [reused for _, reused in first] == [False, False, False]
    assert offline == [(name, True) for name, _ in first]
    assert list((tmp_path / "home").rglob("synth_002.parquet"))


def test_hub_refusal_between_two_files_keeps_the_finished_one(tmp_path: Path, server: FakeHub, hub: Hub) -> None:
    prepare_raw(DataConfig(num_samples=9), tmp_path / "data", hub=hub)
    server.failing = 403
    with pytest.raises(DataError, match=r"PleIAs/SYNTH on http.*403"):
        prepare_raw(DataConfig(num_samples=25), tmp_path / "data", hub=hub)
    server.failing = None
    server.requests.clear()
    prepare_raw(DataConfig(num_samples=25), tmp_path / "data", hub=hub)
    assert server.downloads() == ["synth_003.parquet"]


_CARD = """---
configs:
- config_name: en
  data_files: [{split: train, path: en/train-*}, {split: test, path: en/test.jsonl}]
- config_name: de
  data_files: de/*
---
"""
_TEXTS = DataConfig(source="team/texts", subset="en", format="text", num_samples=4)


@pytest.fixture
def texts(tmp_path: Path, server: FakeHub) -> Path:
    """The folder of a dataset with two subsets, in JSON lines of four documents a file, that the hub has."""
    folder = tmp_path / "texts"
    for name in ("en/train-0.jsonl.gz", "en/train-1.jsonl.gz", "en/train-2.jsonl.gz", "en/test.jsonl", "de/a.jsonl"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": f"The text {number} of {name}. " * 20}) + "\n" for number in range(4))
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
    (folder / "README.md").write_text(_CARD)
    server.repository = "team/texts"
    server.publish(folder)
    return folder


def test_hub_subset_and_split_are_read_file_by_file_and_asked_for_once(
    tmp_path: Path, server: FakeHub, hub: Hub, texts: Path
) -> None:
    stage = prepare_raw(_TEXTS, tmp_path / "data", hub=hub)
    assert stage.manifest.facts["source"] == f"team/texts (subset en) at {next(reversed(server.commits))[:12]}"
    assert server.downloads() == ["en/train-0.jsonl.gz"]
    server.requests.clear()
    assert find_raw(_TEXTS, tmp_path / "data", hub=hub) == prepare_raw(_TEXTS, tmp_path / "data", hub=hub)
    assert server.requests == []
    more = prepare_raw(dataclasses.replace(_TEXTS, num_samples=6), tmp_path / "data", hub=hub)
    assert (server.downloads(), more.manifest.facts["documents"]) == (["en/train-1.jsonl.gz"], 8)
    other = dataclasses.replace(_TEXTS, subset="de", split="train", num_samples="all")
    assert [name for name, _ in prepare_raw(other, tmp_path / "data", hub=hub).manifest.config["files"]] == [
        "de/a.jsonl"
    ]


def test_hub_files_of_each_kind_have_the_identity_of_the_same_files_in_a_folder(
    tmp_path: Path, hub: Hub, texts: Path
) -> None:
    for name in ("en/test.jsonl", "en/train-*"):
        split = name.partition("/")[2].partition(".")[0].removesuffix("-*")
        config = dataclasses.replace(_TEXTS, split=split, num_samples="all")
        local = dataclasses.replace(_TEXTS, source=f"{texts}/{name}", subset=None, num_samples="all")
        of_hub = prepare_raw(config, tmp_path / "data", hub=hub).manifest.facts["files"]
        of_folder = prepare_raw(local, tmp_path / "data").manifest.facts["files"]
        assert [{**each, "name": each["name"].removeprefix("en/")} for each in of_hub] == of_folder


def test_hub_subset_that_is_not_there_is_named_and_no_file_is_asked_for(
    tmp_path: Path, server: FakeHub, hub: Hub, texts: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.subset: found None, need one of the subsets of team/texts .*: en, de"
    ):
        prepare_raw(dataclasses.replace(_TEXTS, subset=None), tmp_path / "data", hub=hub)
    with pytest.raises(ConfigError, match=r"data\.split: found 'dev', need .*subset en: train, test"):
        prepare_raw(dataclasses.replace(_TEXTS, split="dev"), tmp_path / "data", hub=hub)
    assert server.downloads() == []


def test_hub_dataset_that_was_known_before_splits_were_told_apart_keeps_its_files(
    tmp_path: Path, server: FakeHub, hub: Hub
) -> None:
    published = write_folder(tmp_path / "more", 10, 20)
    (published / "synth_001.parquet").rename(published / "test-1.parquet")
    (published / "synth_002.parquet").rename(published / "train-1.parquet")
    server.publish(published)
    config = DataConfig(num_samples="all", source=server.repository)
    new = prepare_raw(config, tmp_path / "new", hub=hub)
    assert [name for name, _ in new.manifest.config["files"]] == ["train-1.parquet"]
    whole = open_dataset(hub, server.repository, None, SourceRecord(folder=tmp_path / "any"), say=print)
    test = open_dataset(hub, server.repository, None, SourceRecord(folder=tmp_path / "x"), split="test", say=print)
    record = read_record(RawStage(config=config, data_folder=tmp_path / "old", hub=hub).record_folder)
    record.commits[""] = whole.revision
    record.listings[whole.revision] = [*test.files.values(), *whole.files.values()]
    record.save()
    old = prepare_raw(config, tmp_path / "old", hub=hub)
    assert (
        old.fingerprint == prepare_raw(dataclasses.replace(config, source=str(published)), tmp_path / "old").fingerprint
    )


@pytest.mark.parametrize("end", ["", ".gz"])  # kept in git, and as a large file
def test_hub_empty_file_and_one_of_the_same_content_among_good_ones_are_read(
    tmp_path: Path, server: FakeHub, hub: Hub, end: str
) -> None:
    (tmp_path / "same").mkdir()
    for name, content in (("a", b""), ("b", b'{"text": "One."}\n'), ("c", b'{"text": "One."}\n')):
        compressed = gzip.compress(content, mtime=0) if end and content else content
        (tmp_path / "same" / f"{name}.jsonl{end}").write_bytes(compressed)
    server.publish(tmp_path / "same")
    config = DataConfig(source=server.repository, format="text", num_samples="all")
    stage = prepare_raw(config, tmp_path / "data", hub=hub)
    assert [(each["rows"], each["documents"], each["repeated"]) for each in stage.manifest.facts["files"]] == [
        (0, 0, 0),
        (1, 1, 0),
        (1, 0, 1),
    ]


def test_hub_small_file_with_wrong_bytes_is_refused(tmp_path: Path, server: FakeHub, hub: Hub, texts: Path) -> None:
    config = dataclasses.replace(_TEXTS, split="test")
    server.corrupt = True
    with pytest.raises(DamagedFileError, match=r"en/test\.jsonl: found git's hash \w{40}, need \w{40}; it was removed"):
        prepare_raw(config, tmp_path / "data", hub=hub)


@pytest.mark.slow
def test_hub_dataset_with_subsets_goes_all_the_way_and_is_finished_without_the_hub(
    tmp_path: Path, server: FakeHub, texts: Path
) -> None:
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    project = TinyProject(root=tmp_path / "project", variables=settings)
    project.root.mkdir()
    (project.root / "experiments").mkdir()
    project.run("init", "experiments/texts.yaml", "--data", "team/texts", "--subset", "en", "--recipe", "demo")
    path = project.write_experiment("tiny", num_samples=6, max_steps=4)
    data = "source: team/texts, subset: en, format: text"
    path.write_text(path.read_text().replace("source: sample", data).replace("fraction: 0.1", "fraction: 0.5"))
    server.requests.clear()
    assert "about" in project.run("plan", "experiments/tiny.yaml", "--no-measure")
    assert server.downloads() == []
    project.run("run", "experiments/tiny.yaml")
    assert server.downloads() == ["en/train-0.jsonl.gz", "en/train-1.jsonl.gz"]
    assert [info.step for info in project.checkpoints("tiny")] == [4]
    project.run("export", "experiments/tiny.yaml", "--to", "exported")
    card = (project.root / "exported" / "README.md").read_text()
    assert "Texts from [team/texts](https://huggingface.co/datasets/team/texts) (subset en) (`text`)" in card
    server.failing = 500
    server.requests.clear()
    project.run("run", "experiments/tiny.yaml")
    assert "finished" in project.run("status")
    assert server.requests == []

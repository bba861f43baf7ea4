"""The hub as a source of raw files, asked by a server that misbehaves as networks do."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.formats.synth import count_english_rows
from gpt_pipeline.data.sources.hub import Hub, HubDataset, open_dataset, recorded_dataset
from gpt_pipeline.data.sources.hub.patience import Patience
from gpt_pipeline.data.sources.record import SourceRecord, read_record
from gpt_pipeline.errors import DamagedFileError, DataError
from gpt_pipeline_tests.hub_server import REPOSITORY, FakeHub, Fault, running_hub
from gpt_pipeline_tests.synth_rows import write_folder

_FIRST, _SECOND, _LARGE = "synth_001.parquet", "synth_002.parquet", "synth_003.parquet"
_SECRET = "hf_averysecrettoken"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 8, 16 and 8,000 English rows; the last has some 250 KB."""
    folder = write_folder(tmp_path_factory.mktemp("published"), 10, 20, 10_000)
    (folder / "README.md").write_text("the card")
    return folder


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as server:
        server.publish(published)
        yield server


class World:
    """A dataset of the server's, a clock that does not sleep, and what was said."""

    def __init__(self, server: FakeHub, folder: Path) -> None:
        self.folder = folder
        self.server = server
        self.slept: list[float] = []
        self.said: list[str] = []
        self.patience = Patience(sleep=self.slept.append, silence=0.3)

    def dataset(self) -> HubDataset:
        """Open the dataset as a process does that knows nothing but the disk."""
        hub = Hub(endpoint=self.server.endpoint, cache_folder=self.folder / "cache", patience=self.patience)
        self.folder.mkdir(exist_ok=True)
        return open_dataset(hub, REPOSITORY, None, SourceRecord(folder=self.folder), say=self.said.append)

    def fetch(self, name: str, *, again: bool = False) -> Path:
        return self.dataset().fetch(name, again=again, say=self.said.append)

    def count_english(self, name: str, dataset: HubDataset | None = None) -> int:
        with (dataset or self.dataset()).open(name, say=self.said.append) as file:
            return count_english_rows(file, name)

    def blobs(self) -> list[Path]:
        return sorted((self.folder / "cache").glob("datasets--*/blobs/*"))

    def retries(self) -> list[str]:
        return [line for line in self.said if "attempt" in line]


@pytest.fixture
def world(server: FakeHub, tmp_path: Path) -> World:
    return World(server, tmp_path / "world")


def _starts(server: FakeHub, name: str) -> list[int]:
    return [sent.first for sent in server.sent if sent.name == name]


# Downloads that are interrupted


def test_fetch_cut_connection_goes_on_where_it_was_cut(world: World, published: Path) -> None:
    world.server.faults = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    path = world.fetch(_LARGE)
    assert path.read_bytes() == (published / _LARGE).read_bytes()
    assert _starts(world.server, _LARGE) == [0, 100_000, 150_000]
    assert len(world.retries()) == 2


def test_fetch_from_a_hub_that_names_its_commit_by_a_way_out_of_the_cache_is_refused(world: World) -> None:
    newest = [*world.server.commits][-1]
    world.server.commits["../../../outside"] = world.server.commits[newest]
    before = {*world.folder.parent.iterdir()}
    with pytest.raises(DataError, match=r"found '\.\./\.\./\.\./outside' as the hub's name of its commit, need"):
        world.fetch(_LARGE)
    assert {*world.folder.parent.iterdir()} - before <= {world.folder}
    assert not (world.folder / "outside").exists()


def test_fetch_given_up_keeps_what_came_for_the_next_run(world: World, published: Path) -> None:
    world.server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 5]
    with pytest.raises(DataError, match=r"synth_003.*HTTP 503 at every attempt.*kept, and 100,000 of [\d,]+ bytes"):
        world.fetch(_LARGE)
    assert world.dataset().find(_LARGE) is None
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()
    assert _starts(world.server, _LARGE) == [0, 100_000]


_FETCH = f"""
import sys
from pathlib import Path
from gpt_pipeline.data.sources.hub import Hub, open_dataset
from gpt_pipeline.data.sources.record import SourceRecord
folder = Path(sys.argv[2])
hub = Hub(endpoint=sys.argv[1], cache_folder=folder / "cache")
dataset = open_dataset(hub, "{REPOSITORY}", None, SourceRecord(folder=folder), say=print)
dataset.fetch("{_LARGE}", say=print)
"""


def test_fetch_killed_process_keeps_what_came_for_the_next_one(world: World, published: Path) -> None:
    world.server.faults = [Fault(stall_after=120_000)]
    world.folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", _FETCH, world.server.endpoint, str(world.folder)]) as process:
        _wait_for(lambda: any(path.stat().st_size == 120_000 for path in world.blobs()))
        process.kill()
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()
    assert _starts(world.server, _LARGE) == [0, 120_000]


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_fetch_silent_hub_is_asked_again_after_its_time(world: World, published: Path) -> None:
    world.server.faults = [Fault(stall_after=70_000)]
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()
    assert _starts(world.server, _LARGE) == [0, 70_000]
    assert "ReadTimeout" in world.retries()[0]


def test_fetch_hub_that_ignores_ranges_starts_over(world: World, published: Path) -> None:
    world.server.faults = [Fault(cut_after=100_000), Fault(ignores_range=True)]
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()
    assert _starts(world.server, _LARGE) == [0, 0]


def test_fetch_long_file_over_a_bad_line_may_be_cut_more_often_than_the_attempts(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_pipeline.data.sources.hub.patience._WORTHWHILE", 10_000)
    world.patience = dataclasses.replace(world.patience, attempts=2)
    world.server.faults = [Fault(cut_after=20_000) for _ in range(8)]
    assert world.fetch(_LARGE).stat().st_size == world.dataset().size(_LARGE)


# What a busy hub is told


def test_fetch_429_waits_as_long_as_the_hub_asks_and_says_so(world: World) -> None:
    world.server.faults = [Fault(status=429, headers={"Retry-After": "8"})]
    world.fetch(_FIRST)
    assert 8 <= sum(world.slept) <= 9
    assert world.retries()[0].startswith("synth_001.parquet: the hub answered 429; waiting ")
    assert world.retries()[0].endswith(" s, attempt 2 of 6")


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "a date"}, 150, 340),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55, 62),
        ({"Retry-After": "soon"}, 1, 1.2),
        ({}, 1, 1.2),
    ],
)
def test_fetch_429_understands_each_way_to_ask(
    world: World, headers: dict[str, str], least: float, most: float
) -> None:
    if headers.get("Retry-After") == "a date":
        headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)}
    world.server.faults = [Fault(status=429, headers=headers)]
    world.fetch(_FIRST)
    assert least <= sum(world.slept) <= most


def test_fetch_429_that_asks_for_too_long_is_no_wait(world: World) -> None:
    world.server.faults = [Fault(status=429, headers={"Retry-After": "7200"})]
    with pytest.raises(DataError, match="HTTP 429 and asks to wait for 7200 s; run again later"):
        world.fetch(_FIRST)
    assert world.slept == []


def test_fetch_5xx_is_asked_again_with_doubled_waits_and_then_explained(world: World) -> None:
    world.server.faults = [Fault(status=500) for _ in range(9)]
    with pytest.raises(DataError, match=r"HTTP 500 at every attempt; run again later.*local_dataset_path"):
        world.fetch(_FIRST)
    assert len(world.server.faults) == 3
    assert 31 <= sum(world.slept) <= 35  # 1 + 2 + 4 + 8 + 16
    assert [line[-6:] for line in world.retries()] == [f"{number} of 6" for number in range(2, 7)]


def test_fetch_refusal_is_not_asked_again(world: World) -> None:
    world.server.faults = [Fault(status=418), Fault(status=418)]
    with pytest.raises(DataError, match="answered HTTP 418; run again later"):
        world.fetch(_FIRST)
    assert (len(world.server.faults), world.slept) == (1, [])


def test_fetch_hub_that_is_gone_is_explained_after_the_attempts(world: World) -> None:
    dataset = world.dataset()
    nowhere = dataclasses.replace(dataset, hub=dataclasses.replace(dataset.hub, endpoint="http://127.0.0.1:9"))
    with pytest.raises(DataError, match=r"cannot reach synth_001.*ConnectError.*HF_ENDPOINT"):
        nowhere.fetch(_FIRST, say=world.said.append)
    assert len(world.retries()) == 5


# What lies in the cache


def test_fetch_wrong_bytes_are_refused_and_leave_nothing(world: World, published: Path) -> None:
    world.server.corrupt = True
    with pytest.raises(DamagedFileError, match=r"synth_003\.parquet: found sha256 \w+, need \w+; it was removed"):
        world.fetch(_LARGE)
    assert world.blobs() == []
    world.server.corrupt = False
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()


@pytest.mark.parametrize("left", [b"not what was there", b"x" * 1_000_000])
def test_fetch_damaged_remains_of_an_earlier_run_are_downloaded_again(
    world: World, published: Path, left: bytes
) -> None:
    digest = hashlib.sha256((published / _LARGE).read_bytes()).hexdigest()
    blobs = world.folder / "cache" / "datasets--PleIAs--SYNTH" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").write_bytes(left)
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()
    assert [path.name for path in world.blobs()] == [digest]


def test_fetch_file_is_found_by_huggingface_hub_without_network(world: World) -> None:
    paths = {name: world.fetch(name) for name in (_FIRST, _LARGE)}
    for name, path in paths.items():
        found = huggingface_hub.hf_hub_download(
            REPOSITORY,
            name,
            repo_type="dataset",
            revision=world.dataset().revision,
            cache_dir=world.folder / "cache",
            local_files_only=True,
        )
        assert Path(found).samefile(path)
    (repository,) = huggingface_hub.scan_cache_dir(world.folder / "cache").repos
    assert repository.repo_id == REPOSITORY
    assert repository.size_on_disk == sum(path.stat().st_size for path in paths.values())


def test_fetch_file_that_huggingface_hub_downloaded_is_not_downloaded_again(world: World) -> None:
    dataset = world.dataset()
    huggingface_hub.hf_hub_download(
        REPOSITORY,
        _FIRST,
        repo_type="dataset",
        revision=dataset.revision,
        cache_dir=world.folder / "cache",
        endpoint=world.server.endpoint,
    )
    world.server.requests.clear()
    assert dataset.fetch(_FIRST, say=world.said.append) == dataset.find(_FIRST)
    assert world.server.requests == []


@pytest.mark.filterwarnings("ignore:`huggingface_hub` cache-system uses symlinks")
def test_fetch_without_symbolic_links_keeps_one_copy(
    world: World, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object, **options: object) -> None:
        raise OSError("this disk has no symbolic links")

    monkeypatch.setattr("os.symlink", refuse)
    path = world.fetch(_LARGE)
    assert not path.is_symlink()
    assert path.read_bytes() == (published / _LARGE).read_bytes()
    assert world.blobs() == []
    path.write_bytes(b"cut")
    assert world.fetch(_LARGE).read_bytes() == (published / _LARGE).read_bytes()


def test_fetch_again_replaces_a_file_of_the_right_size_and_wrong_bytes(world: World, published: Path) -> None:
    path = world.fetch(_FIRST)
    right = path.read_bytes()
    path.resolve().write_bytes(bytes(len(right)))
    assert world.fetch(_FIRST).read_bytes() == bytes(len(right))
    assert world.fetch(_FIRST, again=True).read_bytes() == right


def test_proven_sha256_is_that_of_the_bytes_downloaded_while_they_lie_there(world: World, published: Path) -> None:
    dataset = world.dataset()
    assert dataset.proven_sha256(_FIRST) is None
    path = dataset.fetch(_FIRST, say=world.said.append)
    right = path.read_bytes()
    assert dataset.proven_sha256(_FIRST) == hashlib.sha256((published / _FIRST).read_bytes()).hexdigest()
    path.resolve().write_bytes(right)  # who knows what was written
    assert dataset.proven_sha256(_FIRST) is None
    path.resolve().unlink()
    assert dataset.proven_sha256(_FIRST) is None


def test_proven_sha256_is_not_of_what_others_brought(world: World) -> None:
    world.fetch(_FIRST)
    dataset = world.dataset()
    assert dataset.fetch(_FIRST, say=world.said.append).is_file()
    assert dataset.proven_sha256(_FIRST) is None


def test_fetch_same_content_at_another_commit_is_not_downloaded_again(
    world: World, published: Path, tmp_path: Path
) -> None:
    before = world.fetch(_LARGE)
    folder = write_folder(tmp_path / "republished", 10, 25)
    shutil.copyfile(published / _LARGE, folder / _LARGE)
    world.server.publish(folder)
    world.server.requests.clear()
    path = world.fetch(_LARGE)
    assert path != before
    assert path.samefile(before)
    assert world.server.downloads() == []


def test_fetch_by_two_threads_downloads_once(world: World) -> None:
    dataset = world.dataset()
    threads = [threading.Thread(target=dataset.fetch, args=(_LARGE,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.server.downloads() == [_LARGE]


def test_fetch_while_another_process_downloads_says_so_and_waits(world: World, published: Path) -> None:
    dataset = world.dataset()
    digest = hashlib.sha256((published / _FIRST).read_bytes()).hexdigest()
    lock = world.folder / "cache" / ".locks" / "datasets--PleIAs--SYNTH" / f"{digest}.lock"
    lock.parent.mkdir(parents=True)
    waiting, done = threading.Event(), threading.Event()

    def say(line: str) -> None:
        if "another process" in line:
            waiting.set()

    def fetch() -> None:
        dataset.fetch(_FIRST, say=say)
        done.set()

    thread = threading.Thread(target=fetch)
    with huggingface_hub.utils.WeakFileLock(lock):
        thread.start()
        assert waiting.wait(10)
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_fetch_full_disk_names_the_cache(world: World, published: Path) -> None:
    digest = hashlib.sha256((published / _LARGE).read_bytes()).hexdigest()
    blobs = world.folder / "cache" / "datasets--PleIAs--SYNTH" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written to the hub's cache.*HF_HOME"):
        world.fetch(_LARGE)
    assert world.slept == []


# Room


def _free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))


def test_require_room_names_found_and_needed_gigabytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = world.dataset()
    _free(monkeypatch, 10**9 + dataset.size(_FIRST) + dataset.size(_LARGE))
    dataset.require_room([_FIRST, _LARGE])
    _free(monkeypatch, 10**9 + dataset.size(_FIRST) + dataset.size(_LARGE) - 1)
    with pytest.raises(DataError, match=r"found 1\.0 GB free .*need 1\.0 GB .*HF_HOME"):
        dataset.require_room([_FIRST, _LARGE])


def test_require_room_counts_only_what_is_still_to_come(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.patience = dataclasses.replace(world.patience, attempts=1)
    world.fetch(_FIRST)
    world.server.faults = [Fault(cut_after=100_000)]
    with pytest.raises(DataError, match="broke off at every attempt"):
        world.fetch(_LARGE)
    dataset = world.dataset()
    _free(monkeypatch, 10**9 + dataset.size(_LARGE) - 100_000)
    dataset.require_room([_FIRST, _LARGE])
    _free(monkeypatch, 10**9 + dataset.size(_LARGE) - 100_001)
    with pytest.raises(DataError, match="GB free"):
        dataset.require_room([_FIRST, _LARGE])
    _free(monkeypatch, 0)
    dataset.require_room([_FIRST])


# English rows


def test_count_english_reads_little_of_the_file(world: World) -> None:
    world.server.has_cdn = True
    dataset = world.dataset()
    assert world.count_english(_LARGE) == 8_000
    assert world.server.bytes_sent(_LARGE) < 70_000 < dataset.size(_LARGE)
    assert len(world.server.sent) == 2
    assert world.blobs() == []


def test_count_english_asks_for_no_byte_twice(world: World) -> None:
    dataset = world.dataset()
    assert world.count_english(_FIRST) == 8
    assert world.server.bytes_sent(_FIRST) == dataset.size(_FIRST)
    assert len(world.server.sent) == 1


def test_count_english_of_a_cached_file_asks_nothing(world: World) -> None:
    world.fetch(_LARGE)
    dataset = world.dataset()
    world.server.requests.clear()
    assert world.count_english(_LARGE, dataset) == 8_000
    assert world.server.requests == []


def test_count_english_busy_hub_is_asked_again(world: World) -> None:
    world.server.faults = [Fault(status=503), Fault(cut_after=100), Fault(stall_after=9)]
    assert world.count_english(_LARGE) == 8_000
    assert len(world.retries()) == 3


def test_count_english_hub_that_stays_busy_is_explained(world: World) -> None:
    world.server.faults = [Fault(status=503) for _ in range(6)]
    with pytest.raises(DataError, match=r"synth_003.*HTTP 503 at every attempt"):
        world.count_english(_LARGE)


def test_count_english_hub_that_ignores_ranges_is_explained(world: World) -> None:
    world.server.faults = [Fault(ignores_range=True)]
    with pytest.raises(DataError, match=r"synth_003\.parquet: asked for bytes from \d+, found bytes from 0"):
        world.count_english(_LARGE)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html>the hub is being repaired</html>", "not a readable parquet file"),
        (b"", "not a readable parquet file"),
        (None, "lacks the column language; found text, words"),
    ],
)
def test_count_english_of_a_foreign_file_names_it(
    tmp_path: Path, server: FakeHub, content: bytes | None, told: str
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    if content is None:
        pq.write_table(pa.table({"text": ["a"], "words": [1]}), folder / _FIRST)
    else:
        (folder / _FIRST).write_bytes(content)
    server.publish(folder)
    with pytest.raises(DataError, match=rf"synth_001\.parquet: {told}"):
        World(server, tmp_path / "world").count_english(_FIRST)


def test_count_english_of_many_is_in_order_and_little_ahead_of_the_caller(tmp_path: Path, server: FakeHub) -> None:
    server.publish(write_folder(tmp_path / "many", *range(5, 105, 5)))
    dataset = World(server, tmp_path / "world").dataset()
    counts = dataset.read_each(dataset.names, count_english_rows)
    first = next(counts)
    counts.close()
    asked = {sent.name for sent in server.sent}
    assert first == (_FIRST, 4)
    assert asked <= {_FIRST, _SECOND}
    assert list(dataset.read_each(dataset.names, count_english_rows)) == [
        (f"synth_{number:03d}.parquet", 4 * number) for number in range(1, 21)
    ]


def test_count_english_of_many_closed_early_waits_for_nobody(tmp_path: Path, server: FakeHub) -> None:
    server.publish(write_folder(tmp_path / "many", 5, 10, 15))
    server.faults = [Fault(name=_SECOND, status=429, headers={"Retry-After": "600"})]
    world = World(server, tmp_path / "world")
    is_waiting = threading.Event()

    def sleep(seconds: float) -> None:
        is_waiting.set()
        world.slept.append(seconds)
        time.sleep(seconds)

    world.patience = dataclasses.replace(world.patience, sleep=sleep)
    counts = world.dataset().read_each([_FIRST, _SECOND], count_english_rows, say=world.said.append)
    assert next(counts) == (_FIRST, 4)
    assert is_waiting.wait(60)
    counts.close()
    assert sum(world.slept) < 600


# Several at once


def test_fetch_all_downloads_what_is_missing(world: World, published: Path) -> None:
    world.fetch(_SECOND)
    world.server.requests.clear()
    dataset = world.dataset()
    paths = dataset.fetch_all(dataset.names, say=world.said.append)
    assert [path.read_bytes() for path in paths] == [(published / name).read_bytes() for name in dataset.names]
    assert sorted(world.server.downloads()) == [_FIRST, _LARGE]


def test_fetch_all_one_failure_lets_the_others_finish(world: World) -> None:
    world.server.faults = [Fault(name=_FIRST, status=418)]
    dataset = world.dataset()
    with pytest.raises(DataError, match=r"2 of 3 files are here; failed: synth_001\.parquet.*HTTP 418"):
        dataset.fetch_all(dataset.names, say=world.said.append, workers=1)
    assert [dataset.find(name) is None for name in dataset.names] == [True, False, False]


def test_fetch_all_hub_that_refuses_is_not_asked_for_every_file(tmp_path: Path, server: FakeHub) -> None:
    server.publish(write_folder(tmp_path / "many", *[5] * 20))
    server.faults = [Fault(status=403) for _ in range(20)]
    dataset = World(server, tmp_path / "world").dataset()
    with pytest.raises(DataError, match=r"0 of 20 files are here; failed: synth_001.*\(also synth_002"):
        dataset.fetch_all(dataset.names, workers=1)
    assert len(server.faults) == 17


_DOWNLOAD_ALL = """
import sys
from pathlib import Path
from gpt_pipeline.data.sources.hub import Hub, open_dataset
from gpt_pipeline.data.sources.record import SourceRecord
folder = Path(sys.argv[2])
hub = Hub(endpoint=sys.argv[1], cache_folder=folder / "cache")
dataset = open_dataset(hub, "PleIAs/SYNTH", None, SourceRecord(folder=folder), say=print)
dataset.fetch_all(dataset.names, say=lambda line: print(line, flush=True))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_fetch_all_interrupted_ends_during_a_wait(world: World) -> None:
    world.server.faults = [Fault(status=429, headers={"Retry-After": "600"})]
    world.folder.mkdir()
    command = [sys.executable, "-c", _DOWNLOAD_ALL, world.server.endpoint, str(world.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "waiting" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(2)
        _, error = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in error


# The token, the network, the pin


def test_token_goes_to_the_hub_and_not_to_the_host_it_sends_on_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", _SECRET)
    world.server.has_cdn, world.server.token = True, _SECRET
    world.count_english(_LARGE)
    world.fetch(_LARGE)
    assert world.server.authorizations == {"hub": {f"Bearer {_SECRET}"}, "cdn": {None}}


def _failures(world: World) -> dict[str, Callable[[], object]]:
    def with_faults(*faults: Fault) -> Callable[[], object]:
        def fail() -> object:
            world.server.faults = list(faults)
            return world.fetch(_FIRST)

        return fail

    def with_state(**state: object) -> Callable[[], object]:
        def fail() -> object:
            for name, value in state.items():
                setattr(world.server, name, value)
            return world.dataset().fetch(_FIRST)

        return fail

    return {
        "busy": with_faults(*[Fault(status=429)] * 9),
        "broken": with_faults(*[Fault(status=500)] * 9),
        "forbidden": with_faults(Fault(status=403)),
        "cut": with_faults(*[Fault(cut_after=10)] * 999),
        "silent": with_faults(*[Fault(stall_after=0)] * 9),
        "damaged": with_state(corrupt=True),
        "gated": with_state(gated=True),
        "unauthorized": with_state(token="hf_another"),
        "teapot": with_state(failing=418),
        "gone": with_state(endpoint="http://127.0.0.1:9"),
    }


@pytest.mark.parametrize(
    "failure", ["busy", "broken", "forbidden", "cut", "silent", "damaged", "gated", "unauthorized", "teapot", "gone"]
)
def test_token_is_in_no_text_whatever_fails(
    world: World,
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", _SECRET)
    world.server.has_cdn = failure in ("cut", "broken")
    world.patience = dataclasses.replace(world.patience, silence=0.05)
    caplog.set_level(logging.DEBUG)
    with pytest.raises((DataError, DamagedFileError)) as caught:
        _failures(world)[failure]()
    assert world.server.requests or failure == "gone"
    texts = [*world.said, caplog.text, *capfd.readouterr(), *_chain(caught.value)]
    assert not [text for text in texts if _SECRET in text]


def _chain(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return texts


@pytest.mark.parametrize("token", ["hf_very secret", "hf_very\x00secret", "hf_verysécret"])
def test_token_that_cannot_be_sent_is_refused_without_showing_it(
    world: World, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" in token:  # no environment holds it; a token file may
        monkeypatch.setattr("gpt_pipeline.data.sources.hub.explain.get_token", lambda: token)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=r"HF_TOKEN .*no token has") as caught:
        world.dataset()
    assert not [text for text in _chain(caught.value) if "very" in text]


@pytest.mark.parametrize("proxy", ["socks5://me:s3cret@127.0.0.1:9", "foo://me:s3cret@x", "http://me:s3#cret@x:3128"])
def test_proxy_that_cannot_be_used_is_named_and_its_password_is_not(
    world: World, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy.startswith("socks5") and importlib.util.find_spec("socksio") is not None:
        pytest.skip("socksio is installed")
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.delenv("https_proxy", raising=False)
    huggingface_hub.close_session()  # the next one reads the environment
    try:
        with pytest.raises(DataError, match=r"nothing can be asked of the hub: a proxy .*HTTPS_PROXY") as caught:
            world.dataset()
    finally:
        huggingface_hub.close_session()
    assert not [part for part in ("s3", "cret") if part in str(caught.value)]


def test_offline_works_with_what_is_here_and_says_what_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fetch(_FIRST)
    dataset = world.dataset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    world.server.requests.clear()
    assert dataset.fetch(_FIRST, say=world.said.append).is_file()
    assert world.count_english(_FIRST, dataset) == 8
    for ask in (lambda: dataset.fetch(_LARGE), lambda: world.count_english(_LARGE, dataset)):
        with pytest.raises(DataError, match=r"synth_003.*needed, but HF_HUB_OFFLINE is set"):
            ask()
    assert (world.slept, world.server.requests) == ([], [])


def test_listing_busy_hub_is_asked_again(world: World) -> None:
    world.server.failing = 503

    def sleep(seconds: float) -> None:
        world.slept.append(seconds)
        if sum(world.slept) > 3:  # the second wait begins after 1 s, and takes 2 s at least
            world.server.failing = None

    world.patience = dataclasses.replace(world.patience, sleep=sleep)
    assert world.dataset().names == (_FIRST, _SECOND, _LARGE)
    assert len(world.retries()) == 2


def test_listing_hub_that_is_gone_is_explained_soon(world: World) -> None:
    world.server.endpoint = "http://127.0.0.1:9"
    with pytest.raises(
        DataError, match=r"cannot reach PleIAs/SYNTH on http://127\.0\.0\.1:9 \(ConnectError.*local_dataset_path"
    ) as caught:
        world.dataset()
    assert "\n" not in str(caught.value)
    assert sum(world.slept) < 5


@pytest.mark.parametrize(("listed", "found"), [(None, "None"), ("9123", "'9123'"), (-1, "-1")])
def test_listing_without_right_sizes_is_refused_and_not_kept(world: World, listed: object, found: str) -> None:
    record = SourceRecord(folder=world.folder)
    hub = world.dataset().hub
    world.server.listed_size = lambda size: listed
    with pytest.raises(DataError, match=rf"lists synth_001\.parquet of PleIAs/SYNTH with the size {found}, need bytes"):
        open_dataset(hub, REPOSITORY, None, record, say=world.said.append)
    assert (record.commits, record.listings) == ({}, {})


def test_listing_kept_without_sizes_is_asked_for_again(world: World) -> None:
    record = SourceRecord(folder=world.folder)
    dataset = world.dataset()
    record.commits[""] = dataset.revision
    without = [dataclasses.replace(file, size=None) for file in dataset.files.values()]  # type: ignore[arg-type]
    record.listings[dataset.revision] = without
    record.save()
    record = read_record(world.folder)
    assert recorded_dataset(dataset.hub, REPOSITORY, None, record) is None
    assert open_dataset(dataset.hub, REPOSITORY, None, record, say=world.said.append) == dataset


def test_proxy_of_the_environment_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", world.server.endpoint)
    world.server.endpoint = "http://hub.invalid"
    huggingface_hub.close_session()  # the environment is read when a session begins
    try:
        world.fetch(_FIRST)
        assert world.count_english(_LARGE) == 8_000
    finally:
        huggingface_hub.close_session()


def test_listing_is_pinned_until_another_revision_is_asked_for(world: World, server: FakeHub, tmp_path: Path) -> None:
    record = SourceRecord(folder=tmp_path)
    hub = world.dataset().hub
    first = open_dataset(hub, REPOSITORY, None, record, say=world.said.append)
    new = server.publish(write_folder(tmp_path / "republished", 40))
    server.requests.clear()
    assert open_dataset(hub, REPOSITORY, None, record, say=world.said.append) == first
    assert server.requests == []
    moved = open_dataset(hub, REPOSITORY, new, record, say=world.said.append)
    assert (moved.revision, moved.names) == (new, (_FIRST,))
    assert open_dataset(hub, REPOSITORY, None, record, say=world.said.append) == first

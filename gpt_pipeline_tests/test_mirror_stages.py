"""Stages in a mirror, in a folder and in S3: sent, cut off, damaged, brought."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.experiment.config import StorageConfig
from gpt_pipeline.mirror import store as stores
from gpt_pipeline.mirror.agent import Agent
from gpt_pipeline.mirror.bring import bring_source, bring_stage
from gpt_pipeline.mirror.check import check_mirror
from gpt_pipeline.mirror.order import Order, State, agent_lock, read_state_of, write_order, write_state
from gpt_pipeline.mirror.parts import _unfinished as unfinished
from gpt_pipeline.mirror.parts import _warn_once as warn_once
from gpt_pipeline.mirror.parts import forget_parts, open_parts
from gpt_pipeline.mirror.send import Sender
from gpt_pipeline.mirror.store import FolderStore, MirrorError, open_store
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.storage.manifest import Manifest, finished, record_file, verify
from gpt_pipeline_tests.mirrors import S3, Clock, FailingStore, folder_mirror, listens, s3_server
from gpt_pipeline_tests.servers import free_port, wait

FINGERPRINT = "c" * 64
STAGE = f"data/token_shards-{FINGERPRINT[:12]}"


@pytest.fixture(scope="module")
def running() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(running: S3) -> S3:
    os.environ.update(running.environment)
    return running


@pytest.fixture(params=["folder", "s3"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a mirror, empty, of each kind that is tested."""
    if request.param == "folder":
        return folder_mirror(tmp_path / "mirror")
    return _in_s3(request, tmp_path)


@pytest.fixture
def s3(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return _in_s3(request, tmp_path)


def _in_s3(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('server').url}/{tmp_path.name}"


def make_stage(base: Path, *, size: int = 1000) -> Path:
    folder = base / STAGE
    folder.mkdir(parents=True)
    for name in ("train_000001.bin", "validation_000001.bin"):
        (folder / name).write_bytes(os.urandom(size))
    files = {path.name: record_file(path) for path in folder.glob("*.bin")}
    Manifest(stage="token_shards", fingerprint=FINGERPRINT, config={}, files=files).write(folder)
    return folder


def send(base: Path, mirror: str, *stages: str, **options) -> State:
    folder = ExperimentFolder(root=base / "experiment")
    write_order(folder, Order(mirror=mirror, keep_last=3, stages=stages or (STAGE,)))
    return Agent(folder, **options).run()


def test_stage_sent_and_brought_is_the_same(mirror, tmp_path):
    made = make_stage(tmp_path / "a")
    assert send(tmp_path / "a", mirror).complete_at
    assert bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    brought = finished(tmp_path / "b" / STAGE, FINGERPRINT)
    verify(brought)
    assert {path.name for path in brought.folder.iterdir()} - {".lock"} == {path.name for path in made.iterdir()}


def test_stage_that_the_mirror_lacks_is_not_brought(mirror, tmp_path):
    assert not bring_stage(open_store(mirror), tmp_path, STAGE, FINGERPRINT, say=lambda _: None)
    assert not (tmp_path / STAGE).exists()


def test_stage_without_its_manifest_does_not_count(mirror, tmp_path):
    make_stage(tmp_path / "a")
    send(tmp_path / "a", mirror)
    open_store(mirror).remove([f"{STAGE}/manifest.json"])
    assert not bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)


def test_stage_with_half_a_manifest_is_not_used_and_its_manifest_is_sent_again(mirror, tmp_path):
    folder = make_stage(tmp_path / "a")
    send(tmp_path / "a", mirror)
    store = open_store(mirror)
    store.put_bytes(f"{STAGE}/manifest.json", store.get_bytes(f"{STAGE}/manifest.json")[:100])
    said: list[str] = []
    assert not bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=said.append)
    assert "is damaged in the mirror" in said[-1]
    send(tmp_path / "a", mirror)
    assert open_store(mirror).get_bytes(f"{STAGE}/manifest.json") == (folder / "manifest.json").read_bytes()


def test_stage_half_sent_object_is_sent_again(mirror, tmp_path):
    folder = make_stage(tmp_path / "a")
    open_store(mirror).put_bytes(f"{STAGE}/train_000001.bin", b"half")
    send(tmp_path / "a", mirror)
    assert open_store(mirror).get_bytes(f"{STAGE}/train_000001.bin") == (folder / "train_000001.bin").read_bytes()


def test_stage_damaged_in_the_mirror_is_made_here_and_sent_again(mirror, tmp_path):
    folder = make_stage(tmp_path / "a")
    send(tmp_path / "a", mirror)
    store, name = open_store(mirror), f"{STAGE}/train_000001.bin"
    store.put_bytes(name, bytes(1000))  # of the same length: only its sha256 tells
    said: list[str] = []
    assert not bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=said.append)
    assert f"{name} is damaged in the mirror" in said[-1]
    assert finished(tmp_path / "b" / STAGE, FINGERPRINT) is None
    send(tmp_path / "a", mirror)
    assert store.get_bytes(name) == (folder / "train_000001.bin").read_bytes()
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=said.append)


class GarblingStore(FolderStore):
    """A folder of which each object arrives damaged so many times, and in which nothing may be removed."""

    def __init__(self, url: str, *, times: int) -> None:
        super().__init__(url)
        self._left: Counter[str] = Counter()
        self._times = times

    def _garbles(self, request: str) -> bool:
        self._left[request] += 1
        return self._left[request] <= self._times

    def get_bytes(self, name: str) -> bytes | None:
        return b"{" if self._garbles(f"get {name}") else super().get_bytes(name)

    def read(self, name: str, start: int = 0) -> Iterator[bytes] | None:
        return iter([b"{"]) if self._garbles(f"read {name}") else super().read(name, start)

    def remove(self, names: Iterable[str]) -> None:
        raise MirrorError("access denied")


@pytest.mark.parametrize(("times", "counts"), [(1, True), (2, False)])
def test_stage_that_arrives_damaged_once_counts_and_twice_stays_where_nothing_may_be_removed(tmp_path, times, counts):
    mirror, said = folder_mirror(tmp_path / "mirror"), []
    make_stage(tmp_path / "a")
    send(tmp_path / "a", mirror)
    store = GarblingStore(mirror, times=times)
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=said.append) == counts
    assert ("is made here; the damaged copy stays: access denied" in said[-1]) != counts


@pytest.mark.parametrize(("times", "counts"), [(1, True), (2, False)])
def test_source_record_that_arrives_damaged_once_counts_and_twice_stays_where_nothing_may_be_removed(
    tmp_path, times, counts
):
    mirror, source, said = folder_mirror(tmp_path / "mirror"), "data/sources/hub-x", []
    (tmp_path / "a" / source).mkdir(parents=True)
    (tmp_path / "a" / source / "source.json").write_text('{"commits": {"": "1"}}')
    send(tmp_path / "a", mirror, source)
    store = GarblingStore(mirror, times=times)
    assert bring_source(store, tmp_path / "b", source, say=said.append) == counts
    assert ("the damaged copy stays: access denied" in said[-1]) != counts


def test_stage_damaged_here_is_not_sent(tmp_path):
    folder, mirror = make_stage(tmp_path / "a"), folder_mirror(tmp_path / "mirror")
    (folder / "train_000001.bin").write_bytes(bytes(1000))
    send(tmp_path / "a", mirror)
    assert f"{STAGE}/manifest.json" not in open_store(mirror).sizes(STAGE)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("train_000001.bin", "train_000001.bin is damaged: found sha256"),
        ("manifest.json", "manifest.json is damaged"),
        ("validation_000001.bin", "validation_000001.bin is missing"),
    ],
)
def test_stage_damaged_here_is_said_and_leaves_the_mirror_incomplete(tmp_path, file, reason):
    folder, mirror = make_stage(tmp_path / "a"), folder_mirror(tmp_path / "mirror")
    (folder / file).unlink() if "missing" in reason else (folder / file).write_bytes(bytes(1000))

    state = send(tmp_path / "a", mirror)

    assert not state.complete_at
    assert not state.problem, "the rest is sent"
    assert reason in state.damaged
    said: list[str] = []
    wait_until_sent(ExperimentFolder(root=tmp_path / "a" / "experiment"), say=said.append)
    assert reason in said[-1]


def test_stage_damaged_here_and_made_anew_is_sent_by_the_same_sender(tmp_path):
    folder, mirror = make_stage(tmp_path / "a"), folder_mirror(tmp_path / "mirror")
    (folder / "train_000001.bin").write_bytes(bytes(1000))
    sender = Sender(open_store(mirror), ExperimentFolder(root=tmp_path / "a" / "experiment"))

    def send_all() -> None:
        order = Order(mirror=mirror, keep_last=1, stages=(STAGE,))
        while works := list(sender.work(order, None, at_rest=True)):
            for work in works:
                work.do()

    send_all()
    assert sender.damaged
    shutil.rmtree(folder)
    make_stage(tmp_path / "a")
    send_all()

    assert not sender.damaged
    assert f"{STAGE}/manifest.json" in open_store(mirror).sizes(STAGE)


def test_stage_damaged_here_that_is_ordered_no_more_is_not_said(tmp_path):
    folder, mirror = make_stage(tmp_path / "a"), folder_mirror(tmp_path / "mirror")
    (folder / "train_000001.bin").write_bytes(bytes(1000))
    sender = Sender(open_store(mirror), ExperimentFolder(root=tmp_path / "a" / "experiment"))
    order = Order(mirror=mirror, keep_last=1, stages=(STAGE,))
    for work in sender.work(order, None, at_rest=True):
        work.do()
    assert sender.damaged

    assert list(sender.work(replace(order, stages=()), None, at_rest=True)) == []

    assert not sender.damaged


def test_stage_brought_a_second_time_after_a_cut_keeps_what_is_there(tmp_path):
    make_stage(tmp_path / "a")
    store = FailingStore(folder_mirror(tmp_path / "mirror"))
    send(tmp_path / "a", store.url)
    read: list[str] = []

    def cut(name: str) -> None:
        read.append(name)
        store.is_down = name.endswith("validation_000001.bin")

    store.before = cut
    with pytest.raises(MirrorError):
        bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    store.before, store.is_down = read.append, False
    read.clear()
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert not any("train_000001.bin" in name for name in read)


def test_stage_brought_after_a_cut_within_a_file_reads_the_rest_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_PIECE_BYTES", 1000)
    folder, store = make_stage(tmp_path / "a", size=10_000), FailingStore(folder_mirror(tmp_path / "mirror"))
    send(tmp_path / "a", store.url)
    name = f"{STAGE}/train_000001.bin"
    requests: list[str] = []

    def cut(asked: str) -> None:
        requests.append(asked)
        store.is_down = requests.count(name) > 10  # two of them open it

    store.before = cut
    with pytest.raises(MirrorError):
        bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    store.before, store.is_down = lambda _: None, False
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert store.read_from[name] == 8000
    assert (tmp_path / "b" / STAGE / "train_000001.bin").read_bytes() == (folder / "train_000001.bin").read_bytes()
    assert not list((tmp_path / "b").rglob("*.part"))


def test_stage_whose_first_bytes_were_damaged_in_between_is_brought_from_its_beginning(tmp_path):
    folder, store = make_stage(tmp_path / "a"), FailingStore(folder_mirror(tmp_path / "mirror"))
    send(tmp_path / "a", store.url)
    sha256 = record_file(folder / "train_000001.bin").sha256
    (tmp_path / "b" / STAGE).mkdir(parents=True)
    (tmp_path / "b" / STAGE / f".train_000001.bin.{sha256[:12]}.part").write_bytes(bytes(500))
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert store.read_from[f"{STAGE}/train_000001.bin"] == 0
    verify(finished(tmp_path / "b" / STAGE, FINGERPRINT))


@pytest.mark.parametrize("evil", ["../../outside.bin", "/tmp/outside.bin", "C:\\outside.bin"])
def test_stage_whose_manifest_leads_outside_is_not_used(tmp_path, evil):
    folder, mirror = make_stage(tmp_path / "a"), folder_mirror(tmp_path / "mirror")
    send(tmp_path / "a", mirror)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][evil] = manifest["files"]["train_000001.bin"]
    store = open_store(mirror)
    store.put_bytes(f"{STAGE}/manifest.json", json.dumps(manifest).encode())
    assert not bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)


def test_source_record_of_two_machines_is_merged_and_what_was_pinned_first_stays(tmp_path):
    mirror, source = folder_mirror(tmp_path / "mirror"), "data/sources/hub-x"
    known = {
        "a": {"commits": {"": "1"}, "new_documents": {"x": 1}},
        "b": {"commits": {"": "2"}, "new_documents": {"y": 2}},
    }
    for name, record in known.items():
        (tmp_path / name / source / "files").mkdir(parents=True)
        (tmp_path / name / source / "source.json").write_text(json.dumps(record))
        send(tmp_path / name, mirror, source)
    assert bring_source(open_store(mirror), tmp_path / "c", source, say=lambda _: None)
    brought = json.loads((tmp_path / "c" / source / "source.json").read_text())
    assert brought == {"commits": {"": "1"}, "new_documents": {"x": 1, "y": 2}}


@pytest.mark.parametrize("damaged", ["source.json", "files/x.json"])
def test_source_record_that_is_damaged_in_the_mirror_is_not_used_and_sent_again(tmp_path, damaged):
    mirror, source = folder_mirror(tmp_path / "mirror"), "data/sources/hub-x"
    contents = {"source.json": {"commits": {"": "1"}}, "files/x.json": {"key": "x"}}
    for name, content in contents.items():
        path = tmp_path / "a" / source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    send(tmp_path / "a", mirror, source)
    store, name = open_store(mirror), f"{source}/{damaged}"
    store.put_bytes(name, store.get_bytes(name)[:9])
    said: list[str] = []
    bring_source(store, tmp_path / "b", source, say=said.append)
    assert f"{name} is damaged in the mirror" in said[0]
    assert not (tmp_path / "b" / name).exists()
    assert send(tmp_path / "a", mirror, source).complete_at
    assert bring_source(store, tmp_path / "c", source, say=said.append)
    assert json.loads((tmp_path / "c" / name).read_text()) == contents[damaged]


def test_source_record_that_is_damaged_in_the_mirror_does_not_end_what_sends(tmp_path):
    mirror, source = folder_mirror(tmp_path / "mirror"), "data/sources/hub-x"
    (tmp_path / "a" / source).mkdir(parents=True)
    (tmp_path / "a" / source / "source.json").write_text('{"commits": {"": "1"}}')
    open_store(mirror).put_bytes(f"{source}/source.json", b'{"comm')
    assert send(tmp_path / "a", mirror, source).complete_at
    assert json.loads(open_store(mirror).get_bytes(f"{source}/source.json")) == {"commits": {"": "1"}}


def test_agent_of_a_mirror_that_is_down_says_so_once_and_catches_up(tmp_path):
    make_stage(tmp_path / "a")
    store, clock = FailingStore(folder_mirror(tmp_path / "mirror")), Clock()
    folder = ExperimentFolder(root=tmp_path / "a" / "experiment")
    seen: list[State] = []
    store.is_down = True

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        seen.append(read_state_of(folder))
        store.is_down = clock.now < 100

    state = send(tmp_path / "a", store.url, open_store=lambda _: store, clock=clock, sleep=sleep)
    assert "it is down" in seen[0].problem
    assert len({each.problem_since for each in seen}) == 1, "since the same moment"
    assert state.complete_at
    assert not state.problem


def test_agent_gives_up_on_a_mirror_that_stays_down(tmp_path):
    make_stage(tmp_path / "a")
    store, clock = FailingStore(folder_mirror(tmp_path / "mirror")), Clock()
    store.is_down = True
    state = send(tmp_path / "a", store.url, open_store=lambda _: store, clock=clock, sleep=clock.sleep)
    assert "it is down" in state.problem
    assert 3600 < clock.now < 4000


def test_agent_of_a_mirror_that_fails_after_each_file_does_not_give_up(tmp_path):
    folder = make_stage(tmp_path / "a")
    store, clock = FailingStore(folder_mirror(tmp_path / "mirror")), Clock()

    def fail_after_a_file(name: str) -> None:
        store.is_down = sum(each.endswith(".bin") for each in store.sent) > failures[0]
        failures[0] += store.is_down

    def sleep(seconds: float) -> None:
        clock.sleep(seconds + 4000)

    failures, store.before = [0], fail_after_a_file
    state = send(tmp_path / "a", store.url, open_store=lambda _: store, clock=clock, sleep=sleep)
    assert state.complete_at
    assert clock.now > 3600
    assert f"{STAGE}/manifest.json" in store.sizes(folder.relative_to(tmp_path / "a").as_posix())


def test_wait_until_sent_does_not_take_an_earlier_problem_for_one_of_now(tmp_path):
    make_stage(tmp_path / "a")
    folder = ExperimentFolder(root=tmp_path / "a" / "experiment")
    write_order(folder, Order(mirror=folder_mirror(tmp_path / "mirror"), keep_last=3, stages=(STAGE,)))
    write_state(folder, State(mirror="", problem="it was down yesterday"))
    said: list[str] = []
    wait_until_sent(folder, say=said.append)
    assert not any("yesterday" in text for text in said)
    assert read_state_of(folder).complete_at


def test_wait_until_sent_for_a_mirror_that_does_not_answer_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt_pipeline.mirror.wait._QUIET_SECONDS", 0.1)
    monkeypatch.setattr("gpt_pipeline.mirror.wait._AFTER_STOP_SECONDS", 0.5)
    folder = ExperimentFolder(root=tmp_path / "a" / "experiment")
    write_order(folder, Order(mirror=folder_mirror(tmp_path / "mirror"), keep_last=3))
    said: list[str] = []
    with hold_lock(agent_lock(folder)):  # as an agent that has heard nothing yet
        wait_until_sent(folder, say=said.append, stopped=lambda: True)
    assert said[0].startswith("Asking the mirror")
    assert len(said) == 2


@pytest.mark.parametrize(("waiting", "left"), [(0, True), (1, False)])
def test_wait_until_sent_with_patience_leaves_a_silent_mirror_to_the_agent(tmp_path, waiting, left):
    folder, mirror, said = ExperimentFolder(root=tmp_path), "s3://bucket/prefix", []
    write_order(folder, Order(mirror=mirror, keep_last=3))
    write_state(folder, State(mirror=mirror, waiting_files=waiting))
    with hold_lock(agent_lock(folder)):  # as an agent at work does
        seconds = 60 if left else 1.5  # the one that is left does not wait for it
        asked = threading.Timer(seconds, write_state, [folder, State(mirror=mirror, problem="no answer")])
        asked.start()
        wait_until_sent(folder, say=said.append, patience=0.5)
        asked.cancel()
    assert said[-1].startswith("The mirror has not answered" if left else "no answer")


@pytest.mark.parametrize("lost", [False, True])
def test_wait_until_sent_names_the_next_run_unless_another_machine_writes_the_training(tmp_path, lost):
    folder, mirror = ExperimentFolder(root=tmp_path / "a" / "experiment"), folder_mirror(tmp_path / "mirror")
    write_order(folder, Order(mirror=mirror, keep_last=3))
    write_state(folder, State(mirror=mirror, problem="it is not sent", lost=lost))
    said: list[str] = []
    with hold_lock(agent_lock(folder)):
        wait_until_sent(folder, say=said.append)
    assert ("next run" not in said[0]) == lost


def test_mirror_whose_disk_is_not_mounted_is_down_and_not_empty(tmp_path):
    (tmp_path / "share").mkdir()
    store = open_store((tmp_path / "share" / "mirror").as_uri())
    for ask in (store.sizes, store.get_bytes, store.read, lambda name: store.create(name, b"")):
        with pytest.raises(MirrorError, match="mkdir"):
            ask("data")
    assert not any((tmp_path / "share").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from gpt_pipeline.mirror.send import Sender
from gpt_pipeline.mirror.order import Order
from gpt_pipeline.mirror.store import open_store
from gpt_pipeline.storage.layout import ExperimentFolder
mirror, base, stage = sys.argv[1:]
sender = Sender(open_store(mirror), ExperimentFolder(root=Path(base) / "experiment"),
                each=lambda count: os.kill(os.getpid(), signal.SIGKILL))
for work in sender.work(Order(mirror=mirror, keep_last=1, stages=(stage,)), None, at_rest=True):
    work.do()
"""


def test_agent_killed_in_the_middle_of_an_upload_leaves_nothing_that_counts(mirror, tmp_path):
    make_stage(tmp_path / "a", size=20_000_000)
    killed = subprocess.run([sys.executable, "-c", KILLED, mirror, str(tmp_path / "a"), STAGE], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert open_store(mirror).sizes(STAGE) == {}, "an object shows only when it is whole"
    assert send(tmp_path / "a", mirror).complete_at
    assert bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)


def test_stage_brought_after_a_cut_behind_a_whole_file_reads_nothing_of_it_again(tmp_path, monkeypatch):
    store, sync, cuts = FailingStore(folder_mirror(tmp_path / "mirror")), os.fsync, list[int]()
    make_stage(tmp_path / "a", size=1000)
    send(tmp_path / "a", store.url)

    def cut_once(descriptor: int) -> None:
        if not cuts and os.fstat(descriptor).st_size == 1000:
            cuts.append(descriptor)
            raise KeyboardInterrupt
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", cut_once)
    with pytest.raises(KeyboardInterrupt):
        bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert bring_stage(store, tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    assert sorted(start for name, start in store.read_from.items() if name.endswith(".bin")) == [0, 1000]


def test_folder_is_rid_of_what_a_killed_sender_left_in_it(tmp_path):
    mirror = folder_mirror(tmp_path / "mirror")
    left, of_another = (tmp_path / "mirror" / STAGE / f".train_000001.bin.{pid}.7.tmp" for pid in (7, 8))
    note = agent_lock(ExperimentFolder(root=tmp_path / "a" / "experiment")).with_name(".state.json.7.7.tmp")
    make_stage(tmp_path / "a")
    for path in (left, of_another, note):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    silent = time.time() - 200
    for path in (left, note):
        os.utime(path, (silent, silent))
    assert send(tmp_path / "a", mirror).complete_at
    assert (left.exists(), note.exists(), of_another.exists()) == (False, False, True)


def test_folder_keeps_what_another_machine_is_writing_where_this_ones_clock_is_ahead(tmp_path, monkeypatch):
    store, now = open_store(folder_mirror(tmp_path / "mirror")), time.time
    live = tmp_path / "mirror" / STAGE / ".train_000001.bin.8.7.tmp"
    live.parent.mkdir(parents=True)
    live.write_bytes(b"half of it")
    monkeypatch.setattr(time, "time", lambda: now() + 200)
    store.forget_parts(STAGE)
    assert list(live.parent.iterdir()) == [live]


def test_folder_is_rid_of_a_small_object_whose_writer_was_killed(tmp_path):
    mirror = folder_mirror(tmp_path / "mirror")
    code = (
        "import os, signal, sys; from gpt_pipeline.mirror.store import open_store; "
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL); open_store(sys.argv[1]).create('data/one', b'1')"
    )
    assert subprocess.run([sys.executable, "-c", code, mirror], check=False).returncode == -signal.SIGKILL
    [left] = (tmp_path / "mirror" / "data").iterdir()
    silent = time.time() - 200
    os.utime(left, (silent, silent))
    open_store(mirror).forget_parts("data")
    assert not left.exists()


def test_s3_that_throttles_is_asked_again(s3, server, tmp_path):
    make_stage(tmp_path / "a")
    server.wire.throttle = 2
    state = send(tmp_path / "a", s3, sleep=lambda _: None)
    assert state.complete_at
    assert server.wire.throttle == 0


def test_s3_whose_connection_is_cut_in_an_upload_gets_it_again(s3, server, tmp_path):
    folder = make_stage(tmp_path / "a", size=300_000)
    server.wire.cut = 2
    assert send(tmp_path / "a", s3, sleep=lambda _: None).complete_at
    assert server.wire.cut == 0
    assert open_store(s3).get_bytes(f"{STAGE}/train_000001.bin") == (folder / "train_000001.bin").read_bytes()


def test_s3_that_is_down_and_up_again_is_caught_up_with(s3, server, tmp_path, monkeypatch):
    monkeypatch.setitem(stores._S3_SETTINGS, "retries", {"max_attempts": 1})  # the usual number takes some seconds
    make_stage(tmp_path / "a")
    problems: list[str] = []

    def sleep(_: float) -> None:
        problems.append(read_state_of(ExperimentFolder(root=tmp_path / "a" / "experiment")).problem)
        server.wire.is_down = False

    server.wire.is_down = True
    assert send(tmp_path / "a", s3, sleep=sleep).complete_at
    assert "fails at" in problems[0]


def test_s3_with_wrong_credentials_is_said_without_them(s3, server, monkeypatch):
    from moto.core.responses import ActionAuthenticatorMixin
    from moto.core.responses import settings as moto_settings

    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(MirrorError, match=r"InvalidAccessKeyId|PermissionError|Forbidden") as error:
        open_store(s3).sizes("data")
    assert "not-the-secret" not in str(error.value)


def test_s3_in_capitals_is_the_same_store(s3):
    open_store(s3.replace("s3://", "S3://")).put_bytes("data/a", b"a")
    assert open_store(s3).sizes("data") == {"data/a": 1}


def test_s3_bucket_that_does_not_exist_is_named(server):
    with pytest.raises(MirrorError, match="bucket does not exist"):
        open_store("s3://no-such-bucket/prefix").sizes("data")


class Refusing:
    """S3 as someone sees it who may write, and may not ask for unfinished uploads."""

    def __init__(self, files, *methods: str) -> None:
        self._files = files
        self._methods = methods
        self.refused: list[str] = []

    def split_path(self, path: str):
        return self._files.split_path(path)

    def call_s3(self, method: str, **arguments):
        if method in self._methods:
            self.refused.append(method)
            raise PermissionError("Access Denied")
        return self._files.call_s3(method, **arguments)


def test_s3_that_lists_no_unfinished_uploads_takes_an_upload_in_parts_and_is_told_of(s3, caplog):
    store = open_store(s3)
    files = Refusing(store._files, "list_multipart_uploads", "list_parts", "abort_multipart_upload")
    warn_once.cache_clear()
    root = s3.removeprefix("s3://")
    for _ in range(2):
        parts = open_parts("s3fs", files, root, "large.bin")
        assert parts.add(b"1" * (5 << 20))
        assert parts.add(b"2")
        parts.complete()
    forget_parts("s3fs", files, root, "large")
    assert files.refused
    assert store.sizes("")["large.bin"] == (5 << 20) + 1
    assert caplog.text.count("takes s3:ListBucketMultipartUploads") == 1


def test_s3_that_lists_no_unfinished_uploads_keeps_none_that_has_failed(s3):
    files, root = open_store(s3)._files, s3.removeprefix("s3://")
    parts = open_parts("s3fs", Refusing(files, "list_multipart_uploads"), root, "large.bin")
    parts.add(b"1" * (5 << 20))
    assert len(unfinished(files, root)) == 1
    parts.give_up()
    assert unfinished(files, root) == []


def test_s3_that_lists_unfinished_uploads_keeps_one_that_has_failed(s3):
    files, root = open_store(s3)._files, s3.removeprefix("s3://")
    parts = open_parts("s3fs", files, root, "large.bin")
    parts.add(b"1" * (5 << 20))
    parts.give_up()
    assert len(unfinished(files, root)) == 1


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return the certificate and the key of an authority, and server, of one's own."""
    paths = folder / "own.pem", folder / "own.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*request, *names, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_s3_behind_a_certificate_of_ones_own_is_trusted_by_the_usual_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_S3_TRIES", 1)
    monkeypatch.setattr(stores, "_S3_SETTINGS", {"retries": {"max_attempts": 1}})
    pem, key = certificate(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), "-s", "-c", pem, "-k", key]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"https://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("wb") as log:
        secured = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(lambda: listens(port), seconds=60, what="moto's server")
        boto3.client("s3", verify=str(pem)).create_bucket(Bucket="secured")
        with pytest.raises(MirrorError, match=r"SSL|certificate"):
            check_mirror("s3://secured/prefix")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
        check_mirror("s3://secured/prefix")
    finally:
        secured.kill()
        secured.wait()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://key:secret@bucket/prefix", "without user and password"),
        ("s3://key:sec/ret@bucket/prefix", "without user and password"),
        ("s3://[x/prefix", "the address of a bucket"),
        ("hf://buckets/owner/name", "cannot create an object only if there is none"),
        ("bucket/prefix", "the address of a bucket"),
        ("file://relative", "an absolute path"),
        ("s3:///prefix", "the address of a bucket"),
        ("s3://bucket/prefix?versionId=1", "without"),
        ("foo://bucket", "the address of a bucket"),
    ],
)
def test_mirror_address_that_cannot_be_one_is_refused(url, text):
    with pytest.raises(ConfigError, match=text) as error:
        StorageConfig(base_folder="x", mirror=url)
    assert "secret" not in str(error.value)
    assert "ret@" not in str(error.value)


def test_mirror_whose_library_is_missing_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MirrorError, match=r"pip install -c constraints.txt 'gpt-pipeline\[gcs\]'"):
        open_store("gs://bucket/prefix")

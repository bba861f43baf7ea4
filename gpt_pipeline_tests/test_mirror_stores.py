"""Mirrors in S3, Azure and Google Cloud Storage: the same on each, with a server of the kind that runs here.

What is said of S3 alone, such as throttling, is in test_mirror_stages.py.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import checkpoint_path
from gpt_pipeline.mirror import lease as leases
from gpt_pipeline.mirror import store as stores
from gpt_pipeline.mirror.bring import bring_stage
from gpt_pipeline.mirror.check import check_mirror
from gpt_pipeline.mirror.lease import LeaseHeldError, acquire
from gpt_pipeline.mirror.order import Order
from gpt_pipeline.mirror.store import MirrorError, Store, open_store
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.storage.manifest import finished, verify
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.mirrors import (
    S3,
    Bucket,
    azure_environment,
    azure_server,
    google_environment,
    google_server,
    s3_environment,
    s3_server,
    why_no_azure,
    why_no_google,
)
from gpt_pipeline_tests.test_mirror_stages import FINGERPRINT, KILLED, STAGE, make_stage, send
from gpt_pipeline_tests.training_jobs import make_job, run

PART = 5 << 20  # the smallest that S3 takes
LACKING = {"s3": "", "azure": why_no_azure(), "google": why_no_google()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=[pytest.mark.slow, pytest.mark.skipif(bool(why), reason=f"{kind} {why}")])
        for kind, why in LACKING.items()
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3 | Bucket]:
    with ExitStack() as running:
        match request.param:
            case "azure":
                yield running.enter_context(azure_server(tmp_path_factory.mktemp("azure")))
            case "google":
                yield running.enter_context(google_server(tmp_path_factory.mktemp("google")))
            case _:
                yield running.enter_context(s3_server())


@pytest.fixture
def mirror(server: S3 | Bucket, tmp_path: Path) -> str:
    """The address of an empty mirror, which lies in its bucket."""
    os.environ.update(server.environment)
    return f"{server.url}/{tmp_path.name}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_PART_BYTES", PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of ten parts, the last of them shorter."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(9 * PART + 1000))
    return path


class CutError(MirrorError):
    """The network is gone."""


def cut_after(parts: int):
    """Return what breaks an upload off after so many parts."""
    sent: list[int] = []

    def each(count: int) -> None:
        sent.append(count)
        if len(sent) == parts:
            raise CutError("cut")

    return each


@contextmanager
def silent_server() -> Iterator[str]:
    """Run a server that takes connections, and neither reads nor answers; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def store_at(address: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the store of a kind whose server is at `address`."""
    url, module, environment = {
        "s3": ("s3", "s3fs", s3_environment(address)),
        "azure": ("az", "adlfs", azure_environment(address)),
        "google": ("gs", "gcsfs", google_environment(address)),
    }[kind]
    pytest.importorskip(module)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"{url}://bucket/prefix")


@pytest.mark.parametrize("kind", ["s3", "azure", "google"])
def test_store_that_takes_no_bytes_is_not_waited_for_without_end(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "UPLOAD_SECONDS", 1.0)
    with silent_server() as address, pytest.raises(MirrorError, match="not taken within 1 s"):
        store_at(address, kind, monkeypatch).put_bytes("object", bytes(stores._PART_BYTES - 1))


def test_check_of_a_store_that_is_down_asks_it_once(tmp_path, monkeypatch):
    class Counted(stores.FolderStore):
        def remove(self, names):
            pytest.fail("nothing was written that is to be removed")

    monkeypatch.setattr("gpt_pipeline.mirror.check.open_store", Counted)
    with pytest.raises(MirrorError, match="there is no folder"):
        check_mirror((tmp_path / "gone").as_uri())


def test_google_that_does_not_answer_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(stores, "_GOOGLE_SECONDS", {"total": 1})
    with silent_server() as address, pytest.raises(MirrorError, match="fails at object"):
        store_at(address, "google", monkeypatch).get_bytes("object")


def content_of(store: Store, name: str) -> bytes:
    return b"".join(store.read(name) or ())


def test_store_passes_the_check_of_doctor_and_does_what_a_mirror_asks_of_it(mirror, tmp_path):
    check_mirror(mirror)
    store, empty = open_store(mirror), tmp_path / "empty"
    empty.touch()
    assert store.create("a/one.json", b"1")
    assert not store.create("a/one.json", b"2")
    store.put_bytes("a/one.json", b"3")
    store.put("a/empty", empty)
    store.copy("a/one.json", "b/two.json")
    assert store.sizes("a") == {"a/one.json": 1, "a/empty": 0}
    assert (store.get_bytes("b/two.json"), content_of(store, "a/empty"), store.read("none")) == (b"3", b"", None)
    store.remove(["b/two.json", "none"])
    assert (store.sizes("b"), store.get_bytes("b/two.json")) == ({}, None)


def test_upload_that_was_cut_sends_only_what_is_missing(mirror, large, small_parts):
    store = open_store(mirror)
    with pytest.raises(CutError):
        store.put("run/large.bin", large, each=cut_after(8))
    assert store.sizes("run") == {}, "an object shows only when it is whole"

    sent: list[int] = []
    record = open_store(mirror).put("run/large.bin", large, each=sent.append)

    assert sum(sent) == PART + 1000
    assert content_of(store, "run/large.bin") == large.read_bytes()
    assert store.sizes("run") == {"run/large.bin": record.size}
    assert store.sizes(".parts") == {}


def test_upload_of_other_bytes_takes_none_of_the_one_that_was_cut(mirror, large, small_parts):
    store = open_store(mirror)
    with pytest.raises(CutError):
        store.put("run/large.bin", large, each=cut_after(8))
    content = bytearray(large.read_bytes())
    content[PART + 5] ^= 1  # in the second part
    large.write_bytes(content)

    sent: list[int] = []
    store.put("run/large.bin", large, each=sent.append)

    assert sum(sent) == 2 * PART + 1000
    assert content_of(store, "run/large.bin") == content


def test_upload_in_place_of_an_object_shows_the_old_one_until_it_is_whole(mirror, large, small_parts):
    store = open_store(mirror)
    store.put_bytes("run/large.bin", b"old")
    with pytest.raises(CutError):
        store.put("run/large.bin", large, each=cut_after(8))
    assert store.get_bytes("run/large.bin") == b"old"


def test_upload_of_more_parts_than_a_store_puts_together_at_once_is_whole(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_PART_BYTES", PART)
    path = tmp_path / "larger.bin"
    path.write_bytes(os.urandom(1 << 20) * 180 + b"end")
    store = open_store(mirror)
    assert store.put("larger.bin", path).size == path.stat().st_size
    assert content_of(store, "larger.bin") == path.read_bytes()


def test_upload_that_nobody_goes_on_with_is_forgotten(server, mirror, large, small_parts):
    if server.url.startswith("az:"):
        pytest.skip("Azure removes uncommitted blocks by itself")
    store = open_store(mirror)
    with pytest.raises(CutError):
        store.put("run/large.bin", large, each=cut_after(8))
    store.forget_parts("run")
    sent: list[int] = []
    store.put("run/large.bin", large, each=sent.append)
    assert sum(sent) == large.stat().st_size


def test_stage_that_is_sent_leaves_no_parts_of_uploads_that_were_cut(server, mirror, large, tmp_path, small_parts):
    if server.url.startswith("az:"):
        pytest.skip("Azure removes uncommitted blocks by itself")
    with pytest.raises(CutError):
        open_store(mirror).put(f"{STAGE}/of_another_try.bin", large, each=cut_after(8))
    make_stage(tmp_path / "a")
    assert send(tmp_path / "a", mirror).complete_at
    sent: list[int] = []
    open_store(mirror).put(f"{STAGE}/of_another_try.bin", large, each=sent.append)
    assert sum(sent) == large.stat().st_size


def test_stage_sent_in_parts_and_brought_is_the_same(mirror, tmp_path, small_parts):
    make_stage(tmp_path / "a", size=2 * PART + 7)
    assert send(tmp_path / "a", mirror).complete_at
    assert bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)
    verify(finished(tmp_path / "b" / STAGE, FINGERPRINT))


def test_stage_whose_sender_is_killed_in_an_upload_leaves_nothing_that_counts(mirror, tmp_path):
    make_stage(tmp_path / "a", size=40_000_000)
    killed = subprocess.run([sys.executable, "-c", KILLED, mirror, str(tmp_path / "a"), STAGE], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert open_store(mirror).sizes(STAGE) == {}
    assert send(tmp_path / "a", mirror).complete_at
    assert bring_stage(open_store(mirror), tmp_path / "b", STAGE, FINGERPRINT, say=lambda _: None)


def test_stage_that_two_machines_send_at_once_is_whole(mirror, tmp_path, small_parts):
    make_stage(tmp_path / "a", size=4 * PART)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with ThreadPoolExecutor(2) as pool:
        states = list(pool.map(lambda name: send(tmp_path / name, mirror, sleep=lambda _: None), "ab"))
    assert all(state.complete_at for state in states)
    assert bring_stage(open_store(mirror), tmp_path / "c", STAGE, FINGERPRINT, say=lambda _: None)


def test_lease_of_four_that_ask_at_once_goes_to_one(mirror):
    def ask(owner: str) -> int | str:
        try:
            lease = acquire(
                open_store(mirror), "Demo/training-x", owner=owner, say=lambda _: None, sleep=lambda _: time.sleep(0.2)
            )
        except LeaseHeldError:
            return "held"
        for _ in range(8):
            time.sleep(0.2)
            lease.renew()
        return lease.term

    with ThreadPoolExecutor(4) as pool:
        assert sorted(map(str, pool.map(ask, "abcd"))) == ["1", "held", "held", "held"]


def machine(folder: Path, name: str, mirror: str) -> TrainingJob:
    order = Order(mirror=mirror, keep_last=1, fingerprint="a" * 64)
    return make_job(folder / name, mirror=order)


def test_training_stopped_on_a_goes_on_on_b_and_the_mirror_keeps_the_newest(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "SILENT_SECONDS", 1.0)
    a, b, reference = machine(tmp_path, "a", mirror), machine(tmp_path, "b", mirror), make_job(tmp_path / "reference")
    run(reference)
    run(a, stop_at=6)
    wait_until_sent(a.folder, say=lambda _: None)
    shutil.rmtree(a.folder.root)

    listener = run(b)
    wait_until_sent(b.folder, say=lambda _: None)

    assert any("Brought checkpoint_step_6.pt" in text for text in listener.messages)
    ours, theirs = (load_checkpoint(checkpoint_path(each.folder.checkpoints, 12)) for each in (b, reference))
    assert all((ours.model[name] == tensor).all() for name, tensor in theirs.model.items())
    kept = [Path(name).name for name in open_store(mirror).sizes("experiment") if "checkpoint_step" in name]
    assert sorted(kept) == ["checkpoint_step_12.json", "checkpoint_step_12.pt"]

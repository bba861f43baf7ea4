"""Names, atomic writes, fingerprints, manifests and locks."""

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.errors import ConfigError, DamagedFileError, LockedError, UserError
from gpt_pipeline.storage.atomic import (
    HashedFile,
    atomic_path,
    known_fields,
    read_json,
    read_kept,
    remove_leftovers,
    write_json,
)
from gpt_pipeline.storage.fingerprint import added_later, fingerprint, identity_of, neutral_values
from gpt_pipeline.storage.lock import folder_lock, is_locked, remove_abandoned
from gpt_pipeline.storage.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    finished,
    forget,
    read_manifest,
    record_file,
    verify,
)
from gpt_pipeline.storage.names import folder_name, resolve_folder, slug
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.storage.process_group import own_group
from gpt_pipeline_tests.disks import refuse
from gpt_pipeline_tests.hangs import output_of


def test_folder_name_ordinary_text_is_kept() -> None:
    name = "Traditional Small GPT 2 - Samples 2M"
    assert folder_name(name, key="experiment_name") == name


@pytest.mark.parametrize("text", ["語" * 91, "é" * 119 + "x", "\U0001f600" * 80, "a" * 200])
def test_folder_name_fits_what_file_systems_take_and_keeps_whole_characters(text: str, tmp_path: Path) -> None:
    name = folder_name(text, key="experiment_name")
    assert text.startswith(name)
    (tmp_path / name).mkdir()


@pytest.mark.parametrize("text", ["../../x", "..", "a/../b", "", "   ", "///", "..\\x"])
def test_folder_name_that_escapes_or_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="experiment_name"):
        folder_name(text, key="experiment_name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a:b", "a_b"), ("what?", "what_"), ("con", "_con"), ("NUL.txt", "_NUL.txt"), ("dot. ", "dot"), ("a/b", "a_b")],
)
def test_folder_name_windows_would_refuse_is_made_safe(text: str, expected: str) -> None:
    assert folder_name(text, key="experiment_name") == expected


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://b", "file:///data", "hf://datasets/x"])
def test_resolve_folder_address_of_another_place_is_refused_and_not_made_a_folder(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage.base_folder: found .* need a folder on this machine"):
        resolve_folder(text, relative_to=tmp_path, key="storage.base_folder")


@given(st.text())
def test_folder_name_any_text_stays_one_folder_inside_its_parent(text: str) -> None:
    try:
        name = folder_name(text, key="experiment_name")
    except ConfigError:
        return
    assert Path("base", name).parent == Path("base")
    assert not set(name) & set('<>:"/\\|?*\0')
    assert name == name.rstrip(". ")
    assert len(name) <= 120


def test_slug_any_name_is_lower_case_letters_digits_and_underscores() -> None:
    assert slug("SmallGPT2-Samples2M") == "smallgpt2_samples2m"
    assert slug("é!") == "experiment"


@pytest.mark.skipif(os.name == "nt", reason="a Windows path is fine on Windows")
@pytest.mark.parametrize("text", [r"E:\GPT_SANDBOX_STORAGE", "C:/x", r"\\host\share"])
def test_resolve_folder_windows_path_elsewhere_names_key_and_remedy(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_folder(text, relative_to=tmp_path, key="storage.base_folder")
    assert "storage.base_folder" in str(error.value)
    assert "set storage.base_folder to" in str(error.value)


def test_resolve_folder_relative_starts_at_the_given_folder(tmp_path: Path) -> None:
    assert resolve_folder("../storage", relative_to=tmp_path / "experiments", key="k") == tmp_path / "storage"


def test_atomic_path_block_that_raises_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_killed_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    code = (
        "import os, sys, pathlib; from gpt_pipeline.storage.atomic import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as t: t.write_text('new'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert target.read_text() == "old"
    assert len(remove_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_write_json_nan_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_each_part_changes_it_and_key_order_does_not() -> None:
    base = fingerprint("stage", config={"a": 1, "b": [2]}, upstream=["u"], code_version="1")
    assert base == fingerprint("stage", config={"b": [2], "a": 1}, upstream=["u"], code_version="1")
    others = [
        fingerprint("other", config={"a": 1, "b": [2]}, upstream=["u"], code_version="1"),
        fingerprint("stage", config={"a": 2, "b": [2]}, upstream=["u"], code_version="1"),
        fingerprint("stage", config={"a": 1, "b": [2]}, upstream=["v"], code_version="1"),
        fingerprint("stage", config={"a": 1, "b": [2]}, upstream=["u"], code_version="2"),
    ]
    assert len({base, *others}) == 5


def _finished_stage(folder: Path) -> Manifest:
    folder.mkdir()
    (folder / "part.bin").write_bytes(b"content")
    manifest = Manifest(
        stage="s", fingerprint="f" * 64, config={}, files={"part.bin": record_file(folder / "part.bin")}
    )
    manifest.write(folder)
    return manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _First:
    depth: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Second:
    depth: int = 2
    gate: bool = added_later(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outer:
    inner: _First | _Second
    several: tuple[_First | _Second, ...] = ()


def test_identity_of_a_config_with_a_key_added_later_is_the_old_one_while_the_key_is_neutral() -> None:
    assert identity_of(_Second()) == identity_of(_First()) == {"depth": 2}
    assert identity_of(_Second(gate=True)) == {"depth": 2, "gate": True}
    assert identity_of(_Second(), "depth", "gate") == {"depth": 2}
    assert neutral_values(_Second) == {"gate": False}
    assert neutral_values(_First) == {}


def test_identity_of_a_config_leaves_neutral_keys_out_of_configs_inside_it_too() -> None:
    first, second = (_Outer(inner=each, several=(each, each)) for each in (_First(), _Second()))
    assert identity_of(first) == identity_of(second) == {"inner": {"depth": 2}, "several": [{"depth": 2}] * 2}
    changed = _Outer(inner=_First(), several=(_Second(gate=True),))
    assert identity_of(changed)["several"] == [{"depth": 2, "gate": True}]


def test_finished_stage_is_found_by_its_fingerprint_only(tmp_path: Path) -> None:
    manifest = _finished_stage(tmp_path / "s")
    found = finished(tmp_path / "s", "f" * 64)
    assert found is not None
    assert found.manifest == manifest
    assert found.reused
    assert finished(tmp_path / "s", "e" * 64) is None
    assert finished(tmp_path / "absent", "f" * 64) is None


def test_finished_file_cut_short_or_missing_counts_as_unfinished(tmp_path: Path) -> None:
    _finished_stage(tmp_path / "s")
    (tmp_path / "s" / "part.bin").write_bytes(b"conten")
    assert finished(tmp_path / "s", "f" * 64) is None
    (tmp_path / "s" / "part.bin").unlink()
    assert finished(tmp_path / "s", "f" * 64) is None


def test_finished_stage_that_is_damaged_is_said_once_and_again_after_it_was_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _finished_stage(tmp_path / "s")
    content = (tmp_path / "s" / "part.bin").read_bytes()
    for _ in range(2):
        (tmp_path / "s" / "part.bin").write_bytes(content)
        assert finished(tmp_path / "s", "f" * 64) is not None
        (tmp_path / "s" / "part.bin").unlink()
        assert [finished(tmp_path / "s", "f" * 64) for _ in range(3)] == [None] * 3
    assert caplog.text.count("part.bin is missing; the next run makes the stage again") == 2


def test_abandoned_files_are_removed_and_those_being_written_are_not(tmp_path: Path) -> None:
    left, written, other = (tmp_path / name for name in (".a.json.1.2.tmp", ".b.json.3.4.tmp", "c.json"))
    for path in (left, written, other):
        path.write_bytes(b"half of it")
    for path in (left, other):
        os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "absent")
    assert sorted(tmp_path.iterdir()) == sorted([written, other])


def test_abandoned_file_that_cannot_be_removed_stays_and_the_others_go(tmp_path: Path) -> None:
    stays, *others = (tmp_path / f".{name}.json.1.2.tmp" for name in "abc")
    stays.mkdir()  # removing it fails, as of a file that a program has open on Windows
    for path in others:
        path.touch()
    for path in (stays, *others):
        os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [stays]


def test_verify_flipped_byte_names_the_file(tmp_path: Path) -> None:
    _finished_stage(tmp_path / "s")
    stage = finished(tmp_path / "s", "f" * 64)
    assert stage is not None
    verify(stage)
    (tmp_path / "s" / "part.bin").write_bytes(b"Content")
    with pytest.raises(DamagedFileError, match=r"part\.bin"):
        verify(stage)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {}}', b"\xff\xfe", b'{"files": {"a": 1}}'])
def test_manifest_unreadable_counts_as_none_and_is_kept_aside_by_forgetting(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    assert read_manifest(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]  # a reader changes nothing
    forget(tmp_path)
    assert read_manifest(tmp_path) is None
    kept = list(tmp_path.glob(f"{MANIFEST_NAME}.damaged-*"))
    assert [path.read_bytes() for path in kept] == [content]


def test_folder_lock_second_process_is_refused_and_told_the_holder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from gpt_pipeline.storage.lock import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1]), purpose='training'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_locked(tmp_path)
    with pytest.raises(LockedError, match=rf"process {holder.pid} .*training"), folder_lock(tmp_path, purpose="other"):
        pass
    holder.kill()
    output_of(holder)
    with folder_lock(tmp_path, purpose="other"):  # a dead holder holds nothing
        assert read_json(tmp_path / ".lock.json")["pid"] == os.getpid()
    assert not is_locked(tmp_path)


def test_manifest_on_disk_holds_no_absolute_path(tmp_path: Path) -> None:
    _finished_stage(tmp_path / "s")
    text = (tmp_path / "s" / MANIFEST_NAME).read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["files"]["part.bin"]["size"] == 7


@pytest.mark.skipif(os.name == "nt", reason="ranks are numbers on POSIX")
def test_give_way_lowers_the_rank_once_and_never_raises_it() -> None:
    program = (
        "import os; from gpt_pipeline.storage.process import give_way\n"
        "for start in (0, 0, 5): os.nice(start); give_way(); print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    first, second, third = map(int, done.stdout.split())
    assert first == second == max(10, before)
    assert third == min(19, first + 5)


@pytest.mark.skipif(os.name == "nt", reason="sessions are of POSIX")
def test_child_in_its_own_group_stays_in_the_session_in_which_priorities_count() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **own_group())
    assert (os.getpgid(child.pid), os.getsid(child.pid)) == (child.pid, os.getsid(0))
    child.communicate()


def test_hashed_file_knows_size_and_checksum_of_what_lies_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with HashedFile(path) as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
        assert file.tell() == 6
    assert (file.size, file.sha256) == (record_file(path).size, record_file(path).sha256)
    assert path.read_bytes() == b"onetwo"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"{}", b'"text"'])
def test_read_kept_of_an_unusable_file_is_none_and_says_what_happens(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kept.json"
    assert read_kept(path, lambda value: value["number"], otherwise="it is made again") is None
    assert caplog.messages == []
    path.write_bytes(content)
    assert read_kept(path, lambda value: value["number"], otherwise="it is made again") is None
    assert caplog.messages[0].startswith(str(path))
    assert caplog.messages[0].endswith("it is made again")


def test_known_fields_leave_out_what_a_newer_version_added(tmp_path: Path) -> None:
    record = {"size": 3, "sha256": "a", "compression": "zstd"}
    assert known_fields(FileRecord, record) == {"size": 3, "sha256": "a"}
    assert known_fields(FileRecord, {"size": 3}) == {"size": 3}


@pytest.mark.skipif(os.name == "nt", reason="Windows does not make folders durable")
def test_write_json_on_a_disk_that_does_not_make_renames_durable_writes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, "os.fsync", errno.EINVAL, kind=stat.S_ISDIR)
    write_json(tmp_path / "a.json", 1)
    write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 2
    assert [str(tmp_path) in text and "does not make renames durable" in text for text in caplog.messages] == [True]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fcntl")
@pytest.mark.parametrize("refused", [False, True])
def test_write_json_on_macos_has_the_drive_empty_its_cache(tmp_path: Path, monkeypatch, refused: bool) -> None:
    import fcntl

    full_sync, flushed, plain = 51, [], []  # F_FULLFSYNC of macOS' fcntl.h

    def flush(descriptor: int, command: int) -> int:
        assert command == full_sync
        if refused:
            raise OSError(errno.ENOTSUP, "as a disk on the network")
        flushed.append(os.readlink(f"/dev/fd/{descriptor}"))
        return 0

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", full_sync, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", flush)
    monkeypatch.setattr(os, "fsync", plain.append)
    write_json(tmp_path / "state.json", {"step": 1})
    assert (len(flushed), len(plain)) == ((0, 2) if refused else (2, 0))  # the file, then its folder


def test_write_json_on_a_disk_that_does_not_make_files_durable_names_file_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "os.fsync", errno.EINVAL, kind=stat.S_ISREG)
    with pytest.raises(UserError, match=r"a\.json.*does not make files durable.*another storage\.base_folder"):
        write_json(tmp_path / "a.json", 1)
    assert list(tmp_path.iterdir()) == []


def test_write_json_on_a_disk_that_fails_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "os.fsync", errno.EIO, kind=lambda _: True)
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "a.json", 1)


needs_flock = pytest.mark.skipif(os.name == "nt", reason="Windows has locks on every disk")


@needs_flock
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_folder_lock_on_a_disk_without_locks_keeps_two_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, "fcntl.flock", number, kind=lambda _: True)
    with folder_lock(tmp_path, purpose="a test"):
        assert is_locked(tmp_path)
        with pytest.raises(LockedError, match="a test"), folder_lock(tmp_path, purpose="another"):
            pass
    assert not is_locked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@needs_flock
@pytest.mark.parametrize(
    ("changes", "seconds", "locked"),
    [
        ({}, 1000, True),  # suspended
        ({"started": "earlier"}, 0, False),
        ({"host": "elsewhere"}, 60, True),
        ({"host": "elsewhere"}, 130, False),
    ],
)
def test_folder_lock_on_a_disk_without_locks_outlives_no_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], seconds: float, locked: bool
) -> None:
    refuse(monkeypatch, "fcntl.flock", errno.ENOSYS, kind=lambda _: True)
    (tmp_path / ".lock").touch()
    marker = tmp_path / ".lock.held"
    marker.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(ProcessId.here(), **changes))))
    os.utime(marker, (time.time() - seconds,) * 2)
    assert is_locked(tmp_path) == locked
    if locked:
        with pytest.raises(LockedError), folder_lock(tmp_path, purpose="a test"):
            pass
        return
    with folder_lock(tmp_path, purpose="a test"):
        assert is_locked(tmp_path)
    assert not marker.exists()

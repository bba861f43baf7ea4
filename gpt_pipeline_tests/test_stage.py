from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pipeline.data.stage import exclusive, finish_stage, is_begun_again, needs_nothing, prepare_stage
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, record_file


class Maker:
    """Makes a stage of one file, and counts how often it had to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def __call__(self) -> Manifest:
        self.made += 1
        path = self.folder / "file.bin"
        path.write_bytes(b"content")
        return Manifest(stage="test", fingerprint="f" * 64, config={}, files={path.name: record_file(path)})

    def prepare(self, *, force: bool = False) -> StageResult:
        return prepare_stage(self.folder, "f" * 64, force=force, say=lambda line: None, make=self)


def test_stage_is_made_once_unless_forced_or_damaged(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "stage")
    assert [maker.prepare().reused for _ in range(3)] == [False, True, True]
    assert not maker.prepare(force=True).reused
    (tmp_path / "stage" / "file.bin").write_bytes(b"short")
    assert not maker.prepare().reused
    assert maker.made == 3


def test_stage_wanted_by_many_at_once_is_made_once(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "stage")
    threads = [threading.Thread(target=maker.prepare) for _ in range(4)]
    with exclusive(tmp_path / "stage", purpose="holding the others up", say=lambda line: None):
        for thread in threads:
            thread.start()
        assert maker.made == 0
    for thread in threads:
        thread.join()
    assert maker.made == 1


def test_stage_waiting_for_another_process_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with exclusive(tmp_path, purpose="first", say=said.append):
        assert said == []
        waiting = threading.Thread(target=_hold, args=(tmp_path, said))
        waiting.start()
        while not said:
            time.sleep(0.001)
    waiting.join()
    waits, then = said
    assert waits.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
    assert "(first, since" in waits
    assert then == "held"


def _hold(folder: Path, said: list[str]) -> None:
    with exclusive(folder, purpose="second", say=said.append):
        said.append("held")


def fail() -> Manifest:
    raise KeyboardInterrupt


def test_stage_failure_is_not_finished_even_if_it_was_before_it_was_damaged(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "stage")
    maker.prepare()
    (maker.folder / "file.bin").write_bytes(b"short")
    with pytest.raises(KeyboardInterrupt):
        prepare_stage(maker.folder, "f" * 64, force=False, say=lambda line: None, make=fail)
    (maker.folder / "file.bin").write_bytes(b"content")  # whoever writes it: the manifest is written last
    assert finished(maker.folder, "f" * 64) is None
    assert not maker.prepare().reused


def test_stage_force_that_fails_leaves_what_was_finished(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "stage")
    maker.prepare()
    with pytest.raises(KeyboardInterrupt):
        prepare_stage(maker.folder, "f" * 64, force=True, say=lambda line: None, make=fail)
    assert finished(maker.folder, "f" * 64) is not None
    assert maker.prepare().reused


@pytest.mark.parametrize(("left", "stands"), [(b"content", True), (b"CONTENT", False)])
def test_stage_of_an_interrupted_force_stands_if_its_bytes_are_those_of_its_manifest(
    tmp_path: Path, left: bytes, stands: bool
) -> None:
    maker = Maker(tmp_path / "stage")
    stage = maker.prepare()
    with pytest.raises(KeyboardInterrupt):
        finish_stage(maker.folder, "f" * 64, force=True, say=lambda line: None, make=fail)
    (maker.folder / "file.bin").write_bytes(left)
    assert needs_nothing(stage, say=lambda line: None) is stands
    assert is_begun_again(maker.folder) is not stands


def test_stage_found_finished_while_another_process_puts_it_together_anew_waits_for_its_end(tmp_path: Path) -> None:
    maker, said, waits = Maker(tmp_path / "stage"), [], threading.Event()
    stage = maker.prepare()

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    found: list[bool] = []
    other = threading.Thread(target=lambda: found.append(needs_nothing(stage, say=say)))

    def make() -> Manifest:
        (maker.folder / "file.bin").write_bytes(b"CONTENT")  # as it is for a moment
        other.start()
        assert waits.wait(10)
        return maker()

    assert not finish_stage(maker.folder, "f" * 64, force=True, say=lambda line: None, make=make).reused
    other.join()
    assert "in use by process" in said[0]
    assert found == [True]


def test_stage_put_together_by_another_process_meanwhile_is_not_put_together_twice(tmp_path: Path) -> None:
    maker, waits = Maker(tmp_path / "stage"), threading.Event()
    found: list[StageResult] = []

    def finish(make: Callable[[], Manifest], say: Callable[[str], object]) -> None:
        found.append(finish_stage(maker.folder, "f" * 64, force=False, say=say, make=make))

    other = threading.Thread(target=finish, args=(maker, lambda line: waits.set()))

    def make() -> Manifest:
        other.start()
        assert waits.wait(10)
        return maker()

    finish(make, lambda line: None)
    other.join()
    assert maker.made == 1
    assert [stage.reused for stage in found] == [False, True]


def test_stage_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "stage")
    maker.folder.mkdir()
    leftover = maker.folder / ".file.bin.4711.tmp"
    leftover.write_bytes(b"half")
    maker.prepare()
    assert not leftover.exists()

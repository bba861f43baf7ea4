"""Whatever cuts a save short, a valid checkpoint is left, and none that only looks like one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint, verify_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints, settle_best
from gpt_pipeline.checkpoints.save import link_best, save_best, save_checkpoint
from gpt_pipeline.checkpoints.snapshot import weights_sha256
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.storage.atomic import remove_leftovers
from gpt_pipeline_tests.crashing import PowerCut, World
from gpt_pipeline_tests.test_checkpoints import snapshot

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL are POSIX")


def _small(step: int):
    """A snapshot of a few kilobytes."""
    torch.manual_seed(step)
    return snapshot(step, model={"weight": torch.randn(500)})


WEIGHTS = {step: weights_sha256(_small(step).model) for step in (1, 2)}


def _valid_steps(folder: Path) -> list[int]:
    """Load every checkpoint that is listed; the steps of those that are what they say they are."""
    steps = []
    for info in [*list_checkpoints(folder), *filter(None, [best_checkpoint(folder)])]:
        try:
            verify_checkpoint(info.path)
        except DamagedFileError:
            continue  # found out: the one before is used
        loaded = load_checkpoint(info.path)
        assert weights_sha256(loaded.model) == WEIGHTS[loaded.step]
        steps.append(loaded.step)
    return steps


# Power cuts


def _write_world(folder: Path, world: World) -> Path:
    folder.mkdir()
    for name, content in world.items():
        (folder / name).write_bytes(content)
    return folder


def _save(folder: Path) -> None:
    save_checkpoint(folder, _small(2))


def _save_over_leftover(folder: Path) -> None:
    (folder / "checkpoint_step_2.pt").write_bytes(b"of a save that was cut short")
    save_checkpoint(folder, _small(2))


def _save_best(folder: Path) -> None:
    save_best(folder, _small(2))


def _link_best(folder: Path) -> None:
    link_best(folder, save_checkpoint(folder, _small(2)))


@posix_only
@pytest.mark.parametrize("save", [_save, _save_over_leftover, _save_best, _link_best])
def test_power_cut_at_any_moment_of_a_save_leaves_a_valid_checkpoint(tmp_path: Path, save: Callable[[Path], None]):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, _small(1))
    save_best(folder, _small(1))
    with PowerCut(folder) as power:
        save(folder)
        after = list(power.possible_now())
    assert len(power.worlds) > 30
    seen = set()
    for number, world in enumerate([*power.worlds, *after]):
        found = _write_world(tmp_path / str(number), world)
        best = found / "best_model.pt"
        assert verify_checkpoint(best).step in (1, 2)
        steps = _valid_steps(found)
        assert 1 in steps
        settle_best(found)
        remove_leftovers(found)
        assert _valid_steps(found) == steps
        seen.add(tuple(steps))
    assert len(seen) > 1  # before and after
    for world in after:  # what was returned from is durable
        found = _write_world(tmp_path / f"after{len(list(tmp_path.iterdir()))}", world)
        assert 2 in _valid_steps(found)


def test_power_cut_is_noticed_where_a_save_does_not_make_its_file_durable(tmp_path: Path, monkeypatch):
    """The simulation itself: without fsync it finds a manifest whose file is empty, which verification must catch."""
    monkeypatch.setattr("gpt_pipeline.storage.atomic.fsync_file", lambda path: None)
    save_checkpoint(tmp_path, _small(1))
    with PowerCut(tmp_path) as power:
        save_checkpoint(tmp_path, _small(2))
        after = list(power.possible_now())
    found = [_write_world(tmp_path / str(number), world) for number, world in enumerate(after)]
    assert any(2 not in _valid_steps(folder) for folder in found)


# Kills


_KILL_AT_EACH = """
    import shutil, sys
    from pathlib import Path
    from gpt_pipeline_tests.crashing import KillAt, fork_and_kill
    from gpt_pipeline_tests.test_checkpoint_crashes import SAVES, _small
    from gpt_pipeline.checkpoints.save import save_best, save_checkpoint

    root, save, every = Path(sys.argv[1]), SAVES[sys.argv[2]], int(sys.argv[3])
    new = _small(2)
    number = 0
    while True:
        number += every if number else 1
        folder = root / str(number)
        save_checkpoint(folder, _small(1))
        save_best(folder, _small(1))

        def work():
            KillAt(folder, number).arm()
            save(folder)

        if fork_and_kill(work) is None:
            break
    print(number)
"""

SAVES = {"checkpoint": _save, "leftover": _save_over_leftover, "best": _save_best, "link": _link_best}


def _assert_valid_after_each_kill(tmp_path: Path, save: str, *, every: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_KILL_AT_EACH), str(tmp_path), save, str(every)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    operations = int(result.stdout)
    assert operations > 20
    seen = set()
    for folder in tmp_path.iterdir():
        steps = _valid_steps(folder)
        assert 1 in steps
        settle_best(folder)
        remove_leftovers(folder)
        assert _valid_steps(folder) == steps
        assert not list(folder.glob(".*.tmp"))
        save_checkpoint(folder, _small(2)) if 2 not in [info.step for info in list_checkpoints(folder)] else None
        assert 2 in _valid_steps(folder)
        seen.add(tuple(steps))
    assert len(seen) > 1


@posix_only
def test_save_killed_at_file_operations_leaves_the_checkpoint_before(tmp_path: Path):
    _assert_valid_after_each_kill(tmp_path, "checkpoint", every=7)


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("save", SAVES)
def test_save_killed_at_every_file_operation_leaves_a_valid_checkpoint(tmp_path: Path, save: str):
    _assert_valid_after_each_kill(tmp_path, save, every=1)


_KILL_LOOP = """
    import random, sys, time
    from pathlib import Path
    from gpt_pipeline.checkpoints.load import verify_checkpoint
    from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints, settle_best
    from gpt_pipeline.checkpoints.retention import prune
    from gpt_pipeline.checkpoints.save import link_best, save_checkpoint
    from gpt_pipeline.storage.atomic import remove_leftovers
    from gpt_pipeline.storage.layout import ExperimentFolder
    from gpt_pipeline_tests.crashing import fork_and_kill
    from gpt_pipeline_tests.test_checkpoints import snapshot

    folder = ExperimentFolder(root=Path(sys.argv[1]))
    made = snapshot(1)  # 1.6 MB of weights, so that most kills fall into a write
    random.seed(0)
    step = unreadable = 0
    for number in range(int(sys.argv[2])):
        settle_best(folder.checkpoints)
        remove_leftovers(folder.checkpoints)

        def work():
            at = step
            while True:
                at += 1
                info = save_checkpoint(folder.checkpoints, snapshot(at, model=made.model))
                if at % 2:
                    link_best(folder.checkpoints, info)
                prune(folder, keep_last=2)

        fork_and_kill(work, after=lambda: time.sleep(random.uniform(0.005, 0.15)))
        infos = [*list_checkpoints(folder.checkpoints), *filter(None, [best_checkpoint(folder.checkpoints)])]
        for info in infos:
            try:
                verify_checkpoint(info.path)
            except Exception as error:
                unreadable += 1
                print(error)
        newest = max((info.step for info in infos), default=0)
        assert newest >= step, (newest, step)
        step = newest
    print(f"{number + 1} kills, {step} saves, {unreadable} unreadable")
"""


@posix_only
@pytest.mark.slow
def test_saves_killed_a_hundred_times_leave_nothing_unreadable(tmp_path: Path):
    command = [sys.executable, "-c", textwrap.dedent(_KILL_LOOP), str(tmp_path), "100"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("100 kills, ")
    assert last.endswith(" saves, 0 unreadable")
    assert int(last.split()[2]) >= 3  # a busy machine saves less often between two kills


# Damage


def _flip_bit(content: bytearray, position: int) -> None:
    content[position] ^= 1 << position % 8


def _zero_page(content: bytearray, position: int) -> None:
    start = position // 4096 * 4096
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))


def _cut(content: bytearray, position: int) -> None:
    del content[position:]


def _grow(content: bytearray, position: int) -> None:
    content += b"\0"


@pytest.mark.parametrize("damage", [_flip_bit, _zero_page, _cut, _grow])
@pytest.mark.parametrize("name", ["checkpoint_step_2.pt", "best_model.pt"])
def test_damage_anywhere_in_a_file_is_found_before_loading(tmp_path: Path, name: str, damage):
    torch.manual_seed(0)
    # Random to the last page, so that zeros are damage everywhere.
    saved = snapshot(2, model={"weight": torch.randn(20_000)}, optimizer={"name": "adamw", "states": []})
    path = {"checkpoint_step_2.pt": save_checkpoint, "best_model.pt": save_best}[name](tmp_path, saved).path
    content = path.read_bytes()
    for part in range(40):
        position = part * (len(content) - 1) // 39
        changed = bytearray(content)
        damage(changed, position)
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match=name.replace(".", r"\.")):
            load_checkpoint(path)
    path.write_bytes(content)
    assert load_checkpoint(path).step == 2


@pytest.mark.parametrize("content", [b"", b"\0" * 900, b'{"step": 2', b"[]", b"{}", b"\xff\xfe"])
def test_damaged_manifest_makes_its_file_no_checkpoint(tmp_path: Path, content: bytes):
    save_checkpoint(tmp_path, _small(1))
    info = save_checkpoint(tmp_path, _small(2))
    info.path.with_suffix(".json").write_bytes(content)
    assert [found.step for found in list_checkpoints(tmp_path)] == [1]
    with pytest.raises(UserError):
        load_checkpoint(info.path)


def test_manifest_that_was_changed_does_not_pass_for_another_file(tmp_path: Path):
    one, two = (save_checkpoint(tmp_path, _small(step)) for step in (1, 2))
    os.replace(one.path, two.path)
    with pytest.raises(DamagedFileError):
        load_checkpoint(two.path)

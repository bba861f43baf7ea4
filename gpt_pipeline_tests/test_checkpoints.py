"""Checkpoints: what survives, what is refused, what is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.load import load_checkpoint, load_model, verify_checkpoint
from gpt_pipeline.checkpoints.manifest import (
    CheckpointInfo,
    best_checkpoint,
    checkpoint_key,
    find_checkpoint,
    list_checkpoints,
    settle_best,
    uncounted_checkpoints,
)
from gpt_pipeline.checkpoints.retention import announce_evaluator, prune
from gpt_pipeline.checkpoints.save import DiskFullError, link_best, save_best, save_checkpoint
from gpt_pipeline.checkpoints.snapshot import HostCopy, Progress, Snapshot, added, snapshot_bytes, weights_sha256
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.layout import ExperimentFolder

_CONFIG = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8)


def snapshot(step: int, **changes) -> Snapshot:
    torch.manual_seed(step)
    values = {
        "model": make_model(_CONFIG).state_dict(),
        "model_config": _CONFIG,
        "optimizer": {"name": "adamw", "states": [{"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": []}]},
        "random": {"torch": torch.get_rng_state(), "python": (3, (1, 2), None)},
        "progress": Progress(
            step=step,
            tokens_seen=8 * step,
            seconds=1.5,
            train_loss=9.0,
            val_loss=8.5,
            validated_step=step,
            best_val_loss=8.5,
            best_step=step,
        ),
        "fingerprint": "f" * 64,
        "shards_fingerprint": "e" * 64,
    }
    return Snapshot(**{**values, **changes})


def _flip_byte(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_checkpoint_saved_and_loaded_is_the_same_state(tmp_path):
    saved = snapshot(7)
    info = save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(info.path)
    assert (loaded.step, loaded.random["python"]) == (7, (3, (1, 2), None))
    assert torch.equal(loaded.random["torch"], saved.random["torch"])
    assert weights_sha256(loaded.model) == weights_sha256(saved.model) == info.weights_sha256
    assert list_checkpoints(tmp_path) == [info]
    assert info.sha256 == sha256_of(info.path)
    assert info.size == info.path.stat().st_size <= snapshot_bytes(saved)
    assert not list(tmp_path.glob(".*.tmp"))


def test_checkpoint_info_in_a_moved_folder_still_points_to_the_file(tmp_path):
    save_checkpoint(tmp_path / "a", snapshot(7))
    (tmp_path / "a").rename(tmp_path / "b")
    (info,) = list_checkpoints(tmp_path / "b")
    assert info.path == tmp_path / "b" / "checkpoint_step_7.pt"
    assert CheckpointInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_checkpoints_are_listed_by_step_and_keys_sort_alike(tmp_path):
    for step in (1000, 20, 300):
        save_checkpoint(tmp_path, snapshot(step))
    steps = [info.step for info in list_checkpoints(tmp_path)]
    assert steps == [20, 300, 1000]
    assert sorted(map(checkpoint_key, steps)) == ["step_00000020", "step_00000300", "step_00001000"]


def test_weights_sha256_sees_names_dtypes_shapes_and_bytes():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.0)}
    variants = [
        base,
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(0.0)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(0.0)},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "b": torch.tensor(0.0)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(-0.0)},
    ]
    assert len({weights_sha256(variant) for variant in variants}) == len(variants)
    assert weights_sha256(dict(reversed(base.items()))) == weights_sha256(base)


def test_load_model_gives_the_saved_logits(tmp_path):
    torch.manual_seed(7)
    model = make_model(_CONFIG).eval()
    info = save_checkpoint(tmp_path, snapshot(7, model=model.state_dict()))
    loaded, found = load_model(info.path)
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids), model(ids))
    assert found == info
    assert not loaded.training


def test_damaged_checkpoint_is_found_by_its_hash(tmp_path):
    info = save_checkpoint(tmp_path, snapshot(7))
    _flip_byte(info.path)
    said = r"checkpoint_step_7\.pt is damaged: found sha256 .*; put an undamaged copy in its place, or take another"
    for load in (load_checkpoint, load_model):
        with pytest.raises(DamagedFileError, match=said):
            load(info.path)


def test_truncated_checkpoint_is_no_checkpoint(tmp_path):
    info = save_checkpoint(tmp_path, snapshot(7))
    os.truncate(info.path, info.size // 2)
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(DamagedFileError, match=r"is damaged: its [0-9]+ bytes.*; put an undamaged copy"):
        load_model(info.path)


def test_checkpoint_without_manifest_is_a_leftover(tmp_path):
    info = save_checkpoint(tmp_path, snapshot(7))
    info.path.with_suffix(".json").unlink()
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match=r"its manifest checkpoint_step_7\.json is missing"):
        load_checkpoint(info.path)
    content = info.path.read_bytes()
    save_checkpoint(tmp_path, snapshot(7, progress=Progress(step=7, seconds=2.0)))
    assert (tmp_path / "checkpoint_step_7.pt.leftover").read_bytes() == content
    assert load_checkpoint(info.path).progress.seconds == 2.0


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "checkpoint_step_3.pt")


class _Malicious:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self):
        return os.mkdir, (str(self._target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_checkpoint_with_a_right_hash_is_refused_not_executed(tmp_path, legacy):
    info = save_checkpoint(tmp_path, snapshot(7))
    target = tmp_path / "executed"
    if legacy:
        info.path.write_bytes(pickle.dumps(_Malicious(target)))
    else:
        torch.save({"format": 1, "model": _Malicious(target)}, info.path)
    manifest = info.path.with_suffix(".json")
    value = json.loads(manifest.read_text())
    value |= {"sha256": sha256_of(info.path), "size": info.path.stat().st_size}
    manifest.write_text(json.dumps(value))
    with pytest.raises(DamagedFileError, match="tensors and plain values only"):
        load_checkpoint(info.path)
    assert not target.exists()


def test_foreign_payload_is_refused(tmp_path):
    info = save_checkpoint(tmp_path, snapshot(7))
    torch.save([1, 2], info.path)
    with pytest.raises(DamagedFileError, match="found format 'list', need 1"):
        Snapshot.from_payload(torch.load(info.path, weights_only=True), source=info.path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX")
def test_checkpoint_without_room_names_what_it_needs_and_keeps_the_older(tmp_path):
    old = save_checkpoint(tmp_path, snapshot(1))
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from gpt_pipeline.checkpoints.save import DiskFullError, save_best, save_checkpoint
        from gpt_pipeline_tests.test_checkpoints import snapshot
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        for save in (save_checkpoint, save_best):
            try:
                save(Path({str(tmp_path)!r}), snapshot(2))
            except DiskFullError as error:
                print(error)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    assert "no room for the checkpoint of step 2" in lines[0]
    assert re.search(r"found .+ free .+ need [\d.]+ MB;", lines[0])
    assert list_checkpoints(tmp_path) == [old]
    verify_checkpoint(old.path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_step_1.pt", "checkpoint_step_1.json"}


def test_disk_full_error_is_for_users():
    assert issubclass(DiskFullError, UserError)


# Best


def test_best_model_replaces_the_one_before(tmp_path):
    save_best(tmp_path, snapshot(1))
    best = save_best(tmp_path, snapshot(2))
    assert best_checkpoint(tmp_path) == best
    assert load_checkpoint(best.path).step == 2
    assert find_checkpoint(tmp_path, 2) == best
    assert find_checkpoint(tmp_path, 1) is None
    assert {path.name for path in tmp_path.iterdir()} == {"best_model.pt", "best_model.json"}


def test_best_model_linked_to_a_checkpoint_outlives_it(tmp_path):
    info = save_checkpoint(tmp_path, snapshot(3))
    best = link_best(tmp_path, info)
    assert best.path.stat().st_ino == info.path.stat().st_ino
    info.path.unlink()
    assert load_checkpoint(best.path).step == 3


def test_best_model_on_a_file_system_without_links_is_a_copy(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    info = save_checkpoint(tmp_path, snapshot(3))
    best = link_best(tmp_path, info)
    assert best.path.stat().st_ino != info.path.stat().st_ino
    assert load_checkpoint(best.path).step == 3


def test_best_model_caught_between_file_and_manifest_is_valid(tmp_path):
    save_best(tmp_path, snapshot(1))
    old_file = (tmp_path / "best_model.pt").read_bytes()
    old_manifest = (tmp_path / "best_model.json").read_text()
    save_best(tmp_path, snapshot(2))
    new_manifest = (tmp_path / "best_model.json").read_text()

    # The new file stands, its manifest is announced, the old manifest is still in place.
    (tmp_path / "best_model.json").write_text(old_manifest)
    (tmp_path / "best_model.next.json").write_text(new_manifest)
    assert verify_checkpoint(tmp_path / "best_model.pt").step == 2
    settle_best(tmp_path)
    assert best_checkpoint(tmp_path).step == 2

    # Announced, but the file was not replaced any more.
    (tmp_path / "best_model.pt").write_bytes(old_file)
    (tmp_path / "best_model.json").write_text(old_manifest)
    (tmp_path / "best_model.next.json").write_text(new_manifest)
    assert verify_checkpoint(tmp_path / "best_model.pt").step == 1
    settle_best(tmp_path)
    assert best_checkpoint(tmp_path).step == 1


# Retention


@pytest.fixture
def folder(tmp_path) -> ExperimentFolder:
    folder = ExperimentFolder(root=tmp_path)
    for step in range(1, 6):
        save_checkpoint(folder.checkpoints, snapshot(step))
    return folder


def _steps(folder: ExperimentFolder) -> list[int]:
    return [info.step for info in list_checkpoints(folder.checkpoints)]


def test_prune_keeps_the_newest(folder):
    assert [info.step for info in prune(folder, keep_last=2)] == [1, 2, 3]
    assert _steps(folder) == [4, 5]
    assert prune(folder, keep_last=2) == []
    assert sorted(path.suffix for path in folder.checkpoints.glob("checkpoint*")) == [".json", ".json", ".pt", ".pt"]


def test_prune_keeps_the_best(folder):
    link_best(folder.checkpoints, list_checkpoints(folder.checkpoints)[0])
    prune(folder, keep_last=1)
    assert _steps(folder) == [1, 5]
    assert best_checkpoint(folder.checkpoints).step == 1


def test_prune_keeps_the_newest_of_the_training_below_later_ones_of_another(folder):
    save_checkpoint(folder.checkpoints, snapshot(4, fingerprint="a" * 64))
    prune(folder, keep_last=1, training="a" * 64)
    assert _steps(folder) == [4, 5]


def test_copy_under_a_name_that_is_not_of_its_step_counts_for_none_and_is_never_pruned(folder):
    copies = ("checkpoint_step_9", "checkpoint_step_2 copy", "checkpoint_step_02")
    for suffix in (".pt", ".json"):
        for name in copies:
            shutil.copy(folder.checkpoints / f"checkpoint_step_2{suffix}", folder.checkpoints / f"{name}{suffix}")
    shutil.copy(folder.checkpoints / "checkpoint_step_3.pt", folder.checkpoints / "mine.pt")
    assert _steps(folder) == [1, 2, 3, 4, 5]
    assert find_checkpoint(folder.checkpoints, 9) is None
    prune(folder, keep_last=1)
    assert _steps(folder) == [5]
    found = uncounted_checkpoints(folder.checkpoints)
    assert sorted(found) == sorted([*(f"{name}.pt" for name in copies), "mine.pt"])
    assert "step 2; name it checkpoint_step_2.pt" in found["checkpoint_step_9.pt"]
    assert "mine.json is missing" in found["mine.pt"]
    assert sorted(uncounted_checkpoints(folder.checkpoints, is_saving=True)) == sorted(f"{name}.pt" for name in copies)


def test_prune_keeps_what_is_held(folder):
    with hold(folder.checkpoints / "checkpoint_step_2.pt"):
        with hold(folder.checkpoints / "checkpoint_step_2.pt"):
            prune(folder, keep_last=1)
        prune(folder, keep_last=1)
        assert _steps(folder) == [2, 5]
    prune(folder, keep_last=1)
    assert _steps(folder) == [5]


def test_hold_of_a_removed_checkpoint_is_refused(folder):
    with pytest.raises(UserError, match="no such checkpoint"), hold(folder.checkpoints / "checkpoint_step_9.pt"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_lease_of_a_killed_process_does_not_last(folder):
    code = """
        import sys, time
        from pathlib import Path
        from gpt_pipeline.checkpoints.leases import hold
        with hold(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder.checkpoints / "checkpoint_step_2.pt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        prune(folder, keep_last=1)
        assert _steps(folder) == [2, 5]
        child.kill()
    prune(folder, keep_last=1)
    assert _steps(folder) == [5]
    assert not list((folder.checkpoints / ".leases").glob("*.lease"))


def test_prune_keeps_what_a_live_evaluator_has_not_seen(folder):
    folder.evaluations.mkdir()
    (folder.evaluations / "step_00000002-abcdef.json").write_text("{}")
    announce_evaluator(folder.root)
    prune(folder, keep_last=1)
    assert _steps(folder) == [1, 3, 4, 5]

    long_ago = time.time() - 601
    os.utime(folder.root / "evaluator.json", (long_ago, long_ago))
    prune(folder, keep_last=1)
    assert _steps(folder) == [5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_announcement_of_an_evaluator_on_a_full_disk_names_the_file(folder):
    (folder.root / "evaluator.json").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"evaluator\.json: no room"):
        announce_evaluator(folder.root)


def test_snapshot_payload_round_trip_keeps_every_field():
    original = snapshot(4, progress=Progress(step=4))
    restored = Snapshot.from_payload(original.payload(), source="test")
    for field in dataclasses.fields(Snapshot):
        before, after = getattr(original, field.name), getattr(restored, field.name)
        assert after is before or (field.name in ("progress", "model_config") and after == before)


def test_host_copy_outlives_changes_and_uses_its_memory_again():
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"name": "adamw", "states": [{"state": {0: {"exp_avg": weight.t()}}, "param_groups": [{"lr": 1.0}]}]}
    memory = HostCopy()
    first = memory.of(snapshot(1, model={"w": weight}, optimizer=state))
    weight.zero_()
    state["states"][0]["param_groups"][0]["lr"] = 2.0
    assert first.model["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.optimizer["states"][0]["state"][0]["exp_avg"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert first.optimizer["states"][0]["param_groups"] == [{"lr": 1.0}]
    second = memory.of(snapshot(2, model={"w": weight}, optimizer=state))
    assert second.model["w"].data_ptr() == first.model["w"].data_ptr()
    assert not second.model["w"].any()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Later(Snapshot):
    """What a later version may keep besides: one line."""

    second_moments: Mapping[str, Tensor] = added(default_factory=dict)


def test_added_state_is_copied_counted_saved_and_loaded_and_an_older_checkpoint_lacks_it(tmp_path):
    mean = torch.arange(1_000_000.0)
    plain = snapshot(7)
    fields = {each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)}
    given = _Later(**fields, second_moments={"w": mean})
    assert snapshot_bytes(given) == snapshot_bytes(plain) + 4_000_000
    copy = HostCopy().of(given)
    mean.zero_()  # as the next update does while the copy is written
    payload = torch.load(save_checkpoint(tmp_path, copy).path, weights_only=True)
    loaded = _Later.from_payload(payload, source="later")
    assert torch.equal(loaded.second_moments["w"], torch.arange(1_000_000.0))
    assert (loaded.step, loaded.progress) == (7, plain.progress)
    older = _Later.from_payload(plain.payload(), source="today's")
    assert (older.second_moments, older.progress) == ({}, plain.progress)


def test_added_progress_is_neutral_in_an_older_checkpoint(monkeypatch):
    @dataclasses.dataclass(kw_only=True)
    class Later(Progress):
        documents_seen: int = added(default=0)

    payload = snapshot(7).payload()
    monkeypatch.setattr("gpt_pipeline.checkpoints.snapshot.Progress", Later)
    older = Snapshot.from_payload(payload, source="today's")
    assert (older.step, older.progress.documents_seen) == (7, 0)
    later = Snapshot.from_payload({**payload, "documents_seen": 5}, source="later")
    assert later.progress.documents_seen == later.payload()["documents_seen"] == 5


def test_copy_of_a_snapshot_shares_no_memory_with_the_training():
    living = snapshot(7, settings={"model.n_layer": 2})
    copy = HostCopy().of(living)
    pairs = list(zip(_tensors(living.payload()), _tensors(copy.payload()), strict=True))
    assert len(pairs) > 10
    assert all(torch.equal(one, other) and one.data_ptr() != other.data_ptr() for one, other in pairs)
    living.progress.step = 8
    assert (copy.step, copy.settings) == (7, {"model.n_layer": 2})


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


@pytest.mark.parametrize("name", ["step", "best_step", "model", "model_config", "fingerprint"])
def test_payload_that_lacks_what_every_checkpoint_has_is_refused(name):
    payload = snapshot(7).payload()
    del payload[name]
    with pytest.raises(DamagedFileError, match=name):
        Snapshot.from_payload(payload, source="a file")


def test_payload_keeps_the_order_of_the_first_checkpoints():
    names = "format model model_config optimizer random step tokens_seen seconds train_loss val_loss validated_step"
    names += " best_val_loss best_step fingerprint shards_fingerprint settings"
    assert list(snapshot(7).payload()) == names.split()

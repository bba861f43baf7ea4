"""Disks that fill up under every writer: one message with a remedy, nothing half made, and the same end afterwards."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.errors import DiskFullError
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.faults.aftermath import assert_as_undisturbed, kill_every_process
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.synth_rows import write_folder
from gpt_pipeline_tests.test_parts import STAGES, bytes_of
from gpt_pipeline_tests.training_jobs import Listener, make_job

_DISK_BYTES = 512 << 20


class Disk:
    """A small disk of its own, in memory, that can be filled up to some bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Take all room but `leave` bytes."""
        self.free()
        room = shutil.disk_usage(self.folder).free - leave
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    @property
    def leftovers(self) -> list[Path]:
        """Files that are neither finished nor removed."""
        return list(self.folder.rglob(".*.tmp"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(folder)]
    if os.name == "nt" or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a disk in memory cannot be mounted here: that takes root and Linux")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _data(source: Path) -> DataConfig:
    return DataConfig(num_samples=60, local_dataset_path=str(source), validation_fraction=0.2, max_length=16)


def _prepare(config: DataConfig, data_folder: Path) -> None:
    english = prepare_documents(config, prepare_raw(config, data_folder), data_folder)
    prepare_shards(config, english, data_folder)


def _told(work: Callable[[], object]) -> str | None:
    """What a person is told of a full disk; None if there was room."""
    try:
        work()
    except DiskFullError as error:
        return str(error)
    return None


def test_data_stages_on_a_disk_that_fills_up_say_so_and_end_with_the_same_bytes(disk: Disk, tmp_path: Path) -> None:
    config = _data(write_folder(tmp_path / "synth", 50, 50))
    _prepare(config, tmp_path / "undisturbed")
    told = set()
    for pages in range(40):
        disk.fill(leave=pages * 4096)
        message = _told(lambda: _prepare(config, disk.folder / "data"))
        if message is None:
            break
        assert "free some space, and run again" in message
        told.add(Path(message.partition(":")[0]).parent.name.partition("-")[0])
        assert disk.leftovers == []
    assert len(told) > 2  # parts and stages of several kinds
    disk.free()
    _prepare(config, disk.folder / "data")
    assert bytes_of(disk.folder / "data") == bytes_of(tmp_path / "undisturbed")
    assert {name.partition("-")[0] for name in bytes_of(disk.folder / "data")} == set(STAGES)


@pytest.mark.parametrize("leave", [0, 30_000])
def test_training_on_a_disk_that_fills_up_says_so_and_ends_with_the_same_weights(
    disk: Disk, tmp_path: Path, leave: int
) -> None:
    job = make_job(tmp_path, training={"max_steps": 24}, cadence={"save_every_n_iterations": 8})
    run_job(job, Listener())
    (expected,) = [info for info in list_checkpoints(job.folder.checkpoints) if info.step == 24]
    there = dataclasses.replace(job, experiment_folder=str(disk.folder / "experiment"))
    with pytest.raises(DiskFullError, match="ree some space"):
        run_job(there, Listener(lambda step: disk.fill(leave=leave) if step == 10 else None))
    assert [info.step for info in list_checkpoints(there.folder.checkpoints)][:1] == [8]
    disk.free()
    assert run_job(there, Listener()).finished
    (found,) = [info for info in list_checkpoints(there.folder.checkpoints) if info.step == 24]
    assert found.weights_sha256 == expected.weights_sha256
    losses = [[line.get("train_loss") for line in read_metrics(each.folder.metrics)] for each in (job, there)]
    assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_evaluations_report_and_stores_on_a_full_disk_say_so_and_are_completed_afterwards(
    disk: Disk, long_finished: TinyProject, undisturbed: Mapping[int, str], empty_store: bytes
) -> None:
    project = TinyProject(root=disk.folder / "project")
    shutil.copytree(long_finished.root, project.root)
    folder = project.experiment("long").folder
    shutil.rmtree(folder.evaluations)
    folder.report.unlink()
    (project.root / "mlflow.db").write_bytes(empty_store)
    shutil.rmtree(project.root / ".dagster")
    try:
        for leave in (0, 500_000):  # nothing, and Dagster's history but not much more
            disk.fill(leave=leave)
            output = project.run("run", "experiments/long.yaml", expect=None if leave else 1)
            assert "Traceback" not in output, (leave, output)
            assert "free some space" in output or "disk is full" in output or "Everything is done" in output, output
            print(leave, output)
        disk.free()
        project.run("run", "experiments/long.yaml")
        assert_as_undisturbed(project, undisturbed)
    finally:
        kill_every_process(project)

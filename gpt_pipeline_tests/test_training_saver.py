"""Checkpoints written while the training goes on."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.checkpoints.save import DiskFullError, save_checkpoint
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.training_jobs import Listener, make_job

SAVE = "gpt_pipeline.training.saver.save_checkpoint"
KEEP_ALL = {"keep_last": 10}


def _weights(job) -> dict[int, str]:
    return {info.step: info.weights_sha256 for info in list_checkpoints(job.folder.checkpoints)}


def test_training_goes_on_while_a_checkpoint_is_written_and_changes_nothing_in_it(tmp_path, monkeypatch):
    prompt = make_job(tmp_path, training={"seed": 2}, cadence=KEEP_ALL)  # whose best is that of step 3
    run_job(prompt, Listener())

    slow = dataclasses.replace(prompt, experiment_folder=str(tmp_path / "slow"))
    later = threading.Event()

    def wait_for_later_updates(folder, state):
        assert later.wait(60), "the training waits for the disk"
        return save_checkpoint(folder, state)

    monkeypatch.setattr(SAVE, wait_for_later_updates)
    assert run_job(slow, Listener(lambda step: later.set() if step == 7 else None)).finished
    assert _weights(slow) == _weights(prompt)
    assert load_checkpoint(list_checkpoints(slow.folder.checkpoints)[0].path).step == 4
    best = [best_checkpoint(job.folder.checkpoints).weights_sha256 for job in (slow, prompt)]
    assert best[0] == best[1]


def test_training_hears_of_a_checkpoint_only_when_it_is_durable(tmp_path):
    job = make_job(tmp_path)

    class Checking(Listener):
        def checkpoint(self, info) -> None:
            load_checkpoint(info.path)  # verifies manifest and hash
            super().checkpoint(info)

    listener = Checking()
    run_job(job, listener)
    assert [info.step for info in listener.checkpoints] == [4, 8, 12]
    records = [line for line in read_metrics(job.folder.metrics) if line["kind"] == "checkpoint"]
    assert [(line["step"], line["tokens_seen"]) for line in records] == [(4, 256), (8, 512), (12, 768)]
    assert all(0 <= line["stall_seconds"] < 60 for line in records)


def test_training_on_a_disk_without_room_to_wait_for_evaluations_says_what_it_removes(tmp_path, monkeypatch):
    job = make_job(tmp_path, cadence={"keep_last": 1})
    job.folder.root.mkdir(parents=True, exist_ok=True)
    announce_evaluator(job.folder.root)
    monkeypatch.setattr("gpt_pipeline.checkpoints.retention.free_bytes", lambda folder: 5)
    listener = Listener()
    assert run_job(job, listener).finished
    told = [text for text in listener.messages if "removed before they are evaluated" in text]
    assert "step 4: found 5 bytes free" in told[0]
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)][-1] == 12


@pytest.mark.parametrize(("fails_at", "durable"), [(8, [4]), (12, [4, 8])])
def test_training_whose_disk_fills_up_in_the_background_stops_and_resumes(tmp_path, monkeypatch, fails_at, durable):
    job = make_job(tmp_path)

    def fail(folder, state):
        if state.step == fails_at:
            raise DiskFullError("no room: need 1 GB")
        return save_checkpoint(folder, state)

    monkeypatch.setattr(SAVE, fail)
    listener = Listener()
    with pytest.raises(DiskFullError, match="need 1 GB"):
        run_job(job, listener)
    assert [info.step for info in listener.checkpoints] == durable
    assert list(_weights(job)) == durable
    monkeypatch.undo()
    assert run_job(job, Listener()).finished


def test_training_that_fails_waits_for_the_checkpoint_being_written(tmp_path, monkeypatch):
    job = make_job(tmp_path, training={"seed": 2})  # whose best is that of step 3
    failed = threading.Event()

    def wait_for_the_failure(folder, state):
        assert failed.wait(60)
        return save_checkpoint(folder, state)

    def fail(self, step):
        if step == 6:
            failed.set()
            raise RuntimeError("the data are gone")
        return batch_at(self, step)

    from gpt_pipeline.training.feed import BatchFeed

    batch_at = BatchFeed.batch_at
    monkeypatch.setattr(SAVE, wait_for_the_failure)
    monkeypatch.setattr(BatchFeed, "batch_at", fail)
    listener = Listener()
    with pytest.raises(RuntimeError, match="the data are gone"):
        run_job(job, listener)
    assert [info.step for info in listener.checkpoints] == [4]

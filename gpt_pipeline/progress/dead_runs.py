"""Announced runs whose process is certainly gone. What is done about them is up to whoever keeps their history."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpt_pipeline.storage.alive import least_silence
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import SILENT_SECONDS, is_locked
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.training.heartbeat import read_heartbeat, trainer_state


def end_of_process(process: ProcessId | None, bases: Iterable[Path]) -> str | None:
    """Return how the process that executed a run ended; None if it may still live, or nothing is known of it.

    The folders `bases` have the signs of life of those that this process does not see; the newest sign counts.
    """
    if process is None:
        return None
    if process.is_dead:
        return f"{_named(process)} ended without a word: it was killed, or its machine went down."
    seconds = None if process.is_seen_here else least_silence(bases, process)
    if seconds is None or seconds <= SILENT_SECONDS:
        return None
    return (
        f"{_named(process)} gave its last sign of life {seconds / 60:.0f} minutes ago and holds no lock any more: it "
        "was killed, or its machine went down."
    )


def end_of_trainer(root: Path, run_id: str) -> str | None:
    """Return how the trainer in the experiment's folder `root` ended, if it was part of the run `run_id` and died.

    So long ago that whoever waited for it must be gone too.
    """
    if is_locked(ExperimentFolder(root=root).jobs):
        return None  # its job waits for its place again, and somebody follows it
    last = read_heartbeat(root)
    if last is None or last.run != run_id or not last.is_old or trainer_state(root) != "died":
        return None
    return (
        f"The trainer, process {last.process.pid} on {last.process.host}, gave its last sign of life after step "
        f"{last.step}, {last.age_seconds / 60:.0f} minutes ago, and nothing holds its folder any more."
    )


def _named(process: ProcessId) -> str:
    return f"Process {process.pid} on {process.host}"

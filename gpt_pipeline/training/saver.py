"""Checkpoints of a training under way: written in the background, made the best, the superseded ones removed."""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, find_checkpoint, list_checkpoints
from gpt_pipeline.checkpoints.retention import kept_checkpoints, prune
from gpt_pipeline.checkpoints.save import link_best, save_best, save_checkpoint
from gpt_pipeline.checkpoints.snapshot import HostCopy, Progress, Snapshot
from gpt_pipeline.errors import DiskFullError
from gpt_pipeline.shown import counted, size
from gpt_pipeline.storage.room import free_bytes
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import Observer


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is durable."""

    info: CheckpointInfo
    stall_seconds: float
    """How long the training stood still for it: for the one before to be written, and for the copy of its tensors."""


class Saver:
    """Keeps the checkpoints of one training. One thread writes; all methods are for the training's own thread."""

    def __init__(self, job: TrainingJob, observer: Observer) -> None:
        self._folder = job.folder
        self._keep_last = job.cadence.keep_last
        self._observer = observer
        self._memory = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._durable: queue.SimpleQueue[Saved] = queue.SimpleQueue()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()

    def require_room(self, checkpoint_size: int) -> None:
        """Raise `DiskFullError` unless the disk holds all the checkpoints that will be kept, of so many bytes each."""
        present = len(list_checkpoints(self._folder.checkpoints))
        wanted = max(1, kept_checkpoints(self._keep_last) - present)
        free = free_bytes(self._folder.checkpoints)
        if free < wanted * checkpoint_size:
            raise DiskFullError(
                f"storage.base_folder: found {size(free)} free on the disk of {self._folder.root}, need "
                f"{size(wanted * checkpoint_size)} for {counted(wanted, 'checkpoint')} of "
                f"{size(checkpoint_size)} (evaluation.keep_last={self._keep_last}, the best, and the one being "
                "written); free some space, choose another base_folder, or lower keep_last"
            )

    def begin(self, snapshot: Snapshot, *, checkpoint: bool, best: bool, since: float) -> None:
        """Copy the state of this step and have it written: as its `checkpoint`, as the `best` model, or both.

        The one before must have been waited for. `since` is when the training stopped for it, by `perf_counter`.
        """
        assert self._writing is None
        copy = self._memory.of(snapshot)
        stall_seconds = time.perf_counter() - since
        self._writing = self._thread.submit(
            self._write, copy, checkpoint=checkpoint, best=best, stall_seconds=stall_seconds
        )

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until what was begun is written or has failed, no longer than `seconds`; return whether it is."""
        return self._writing is None or not wait([self._writing], seconds).not_done

    def durable(self) -> list[Saved]:
        """Report the checkpoints that have become durable since the last call; return them, oldest first.

        So is reported what was to be said of the ones removed for them.
        """
        saved = [self._durable.get() for _ in range(self._durable.qsize())]
        for one in saved:
            self._observer.checkpoint(one.info)
        for _ in range(self._notes.qsize()):
            self._observer.message(self._notes.get())
        return saved

    def raise_failure(self) -> None:
        """Raise what the writing of the last state begun raised, once, if it has failed.

        Raises:
            DiskFullError: no room; names the GB needed. Older checkpoints are untouched.
        """
        if self._writing is not None and self._writing.done():
            written, self._writing = self._writing, None
            written.result()

    def close(self) -> None:
        """End the thread, after what was begun is written."""
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot, *, checkpoint: bool, best: bool, stall_seconds: float) -> None:
        info = save_checkpoint(self._folder.checkpoints, snapshot) if checkpoint else None
        if info is not None:
            self._durable.put(Saved(info=info, stall_seconds=stall_seconds))
        if best and info is not None:
            link_best(self._folder.checkpoints, info)
        elif best:
            save_best(self._folder.checkpoints, snapshot)
        prune(self._folder, keep_last=self._keep_last, training=snapshot.fingerprint, say=self._notes.put)

    def restore_best(self, progress: Progress) -> None:
        """After a resume: see that `best_model.pt` is the best of `progress`; if that is lost, count the best anew."""
        best = best_checkpoint(self._folder.checkpoints)
        if progress.best_step < 0 or (best is not None and best.step >= progress.best_step):
            return
        found = find_checkpoint(self._folder.checkpoints, progress.best_step)
        if found is not None:  # the process died between saving it and making it the best
            link_best(self._folder.checkpoints, found)
            return
        self._observer.message(
            f"The best model, of step {progress.best_step}, is gone; the best is counted from step {progress.step} on."
        )
        progress.forget_best()

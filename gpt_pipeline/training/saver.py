"""Checkpoints of a training under way: written, made the best, reported, and the superseded ones removed."""

from __future__ import annotations

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, find_checkpoint, list_checkpoints
from gpt_pipeline.checkpoints.retention import prune
from gpt_pipeline.checkpoints.room import free_bytes
from gpt_pipeline.checkpoints.save import DiskFullError, link_best, save_best, save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Snapshot
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import Observer
from gpt_pipeline.training.state import Progress

_BEST_AND_NEXT = 2  # besides the `keep_last` newest: the best one, and the one that is being written


class Saver:
    """Keeps the checkpoints of one training."""

    def __init__(self, job: TrainingJob, observer: Observer) -> None:
        self._folder = job.folder
        self._keep_last = job.cadence.keep_last
        self._observer = observer

    def require_room(self, checkpoint_size: int) -> None:
        """Raise `DiskFullError` unless the disk holds all the checkpoints that will be kept, of so many bytes each."""
        present = len(list_checkpoints(self._folder.checkpoints))
        wanted = max(1, self._keep_last + _BEST_AND_NEXT - present)
        free = free_bytes(self._folder.checkpoints)
        if free < wanted * checkpoint_size:
            raise DiskFullError(
                f"storage.base_folder: found {free / 1e9:.3g} GB free on the disk of {self._folder.root}, need "
                f"{wanted * checkpoint_size / 1e9:.3g} GB for {wanted} checkpoints of {checkpoint_size / 1e9:.3g} GB "
                f"(evaluation.keep_last={self._keep_last}, the best, and the one being written); free some space, "
                "choose another base_folder, or lower keep_last"
            )

    def save(self, snapshot: Snapshot) -> CheckpointInfo:
        """Write the checkpoint of this step; report it."""
        info = save_checkpoint(self._folder.checkpoints, snapshot)
        self._observer.checkpoint(info)
        return info

    def save_best(self, snapshot: Snapshot, checkpoint: CheckpointInfo | None) -> CheckpointInfo:
        """Make this step's state the best; `checkpoint` holds the same if it was written already."""
        if checkpoint is None:
            return save_best(self._folder.checkpoints, snapshot)
        return link_best(self._folder.checkpoints, checkpoint)

    def prune(self) -> None:
        """Remove the checkpoints that need not stay."""
        prune(self._folder, keep_last=self._keep_last)

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
        progress.best_val_loss, progress.best_step, progress.validated_step = None, -1, -1

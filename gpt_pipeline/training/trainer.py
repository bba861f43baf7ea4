"""The training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.checkpoints.snapshot import Snapshot
from gpt_pipeline.data.token_stream import TokenStream
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import BatchFeed
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.plan import StepPlan
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.recorder import Recorder
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.signals import StopFlag
from gpt_pipeline.training.state import Progress, take_snapshot
from gpt_pipeline.training.update import NotFiniteError, Updater
from gpt_pipeline.training.validate import estimate_val_loss


@dataclass(kw_only=True)
class Trainer:
    """All that one training needs, put together by `run.py`."""

    job: TrainingJob
    plan: StepPlan
    compute: Compute
    ranks: Ranks
    updater: Updater
    feed: BatchFeed
    validation: TokenStream
    progress: Progress
    saver: Saver
    recorder: Recorder
    stop: StopFlag
    saved: CheckpointInfo | None
    """The newest checkpoint of this training."""

    def train(self) -> bool:
        """Train to the last step; return whether it was reached. False: stopped, with a checkpoint of where it was.

        The state at a step boundary is complete: whatever was due there and not yet done is done after a resume.

        Raises:
            NotFiniteError: NaN or infinity; the last checkpoint stands.
        """
        while self._settle_boundary():
            if self.progress.step >= self.plan.max_steps:
                return True
            if self._is_stopping():
                break
            self._update()
        self.recorder.flush()
        self._save()
        return False

    def _update(self) -> None:
        progress = self.progress
        self.recorder.tick()  # what went before is no time of updates
        batch = self.feed.batch_at(progress.step)
        try:
            result = self.updater.update(progress.step, batch)
        except NotFiniteError as error:
            raise self._noted(error) from None
        progress.step += 1
        progress.tokens_seen += self.plan.tokens_per_step
        progress.train_loss = result.train_loss
        self.recorder.update(result)

    def _settle_boundary(self) -> bool:
        """Validate and save where this step wants it; return False if told to stop meanwhile."""
        is_best = False
        if self._is_due(self.job.cadence.eval_freq) and self.progress.validated_step != self.progress.step:
            self.recorder.flush()
            val_loss = self._estimate()
            if val_loss is None:
                return False
            is_best = self.progress.note_validation(val_loss)
            self.recorder.validation(val_loss, is_best=is_best)
        checkpoint = self._save() if self._is_due(self.job.cadence.save_every_n_iterations) else None
        if is_best and self.ranks.is_first:
            self.saver.save_best(self._snapshot(), checkpoint)
        if (checkpoint is not None or is_best) and self.ranks.is_first:
            self.saver.prune()
        return True

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.plan.max_steps

    def _estimate(self) -> float | None:
        config = self.job.training
        val_loss: float | None = estimate_val_loss(
            self.updater.evaluator,
            self.validation,
            n_windows=self.job.cadence.eval_iters * config.batch_size,
            plan=self.plan,
            compute=self.compute,
            ranks=self.ranks,
            should_stop=self._is_stopping,
        )
        if val_loss is not None and not math.isfinite(val_loss):
            raise self._noted(
                NotFiniteError(
                    f"training stopped: found validation loss {val_loss} after step "
                    f"{self.progress.step}, need a finite number; the last checkpoint stands"
                )
            )
        return val_loss

    def _noted(self, error: NotFiniteError) -> NotFiniteError:
        self.recorder.flush()
        self.recorder.event("not_finite", str(error))
        return error

    def _is_stopping(self) -> bool:
        return self.ranks.any(self.stop.requested)

    def _save(self) -> CheckpointInfo | None:
        """Save this step unless it is saved or nothing has been trained; return the new checkpoint, if any."""
        step = self.progress.step
        if step == 0 or not self.ranks.is_first or (self.saved is not None and self.saved.step == step):
            return None
        self.recorder.flush()
        self.recorder.tick()
        self.saved = self.saver.save(self._snapshot())
        self.recorder.checkpoint(self.saved)
        return self.saved

    def _snapshot(self) -> Snapshot:
        return take_snapshot(self.job, self.progress, self.updater)

"""The training loop."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import UserError
from gpt_pipeline.model.costs import checkpoint_bytes
from gpt_pipeline.training.config import StepLayout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Feed
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import Recorder
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.state import take_snapshot
from gpt_pipeline.training.stopping import OTHERS_SECONDS, SLOW_DISK, StopFlag, Watchdog
from gpt_pipeline.training.update import NotFiniteError, PendingUpdate, Updater
from gpt_pipeline.training.validate import estimate_losses

_COLLECT_EVERY = 1000  # updates between two collections of garbage, at the most
_LOOK_SECONDS = 5.0  # between two looks whether a checkpoint is written


@contextmanager
def quiet_garbage_collection() -> Iterator[None]:
    """Leave it to the block when garbage is collected: a collection in the middle of an update makes the GPU wait.

    What is there already lives to the end of the training and is not looked through again. Whoever has frozen objects
    before keeps them so.
    """
    was_enabled, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not was_frozen:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


@dataclass(kw_only=True)
class Trainer:
    """All that one training needs, put together by `run.py`."""

    job: TrainingJob
    layout: StepLayout
    compute: Compute
    ranks: Ranks
    updater: Updater
    feed: Feed
    validation: TokenStream
    progress: Progress
    saver: Saver
    recorder: Recorder
    stop: StopFlag
    saved: CheckpointInfo | None
    """The newest durable checkpoint of this training."""

    watchdog: Watchdog
    """Told of each step boundary and of what goes on between two."""

    _begun_step: int = field(default=-1, init=False)
    """Step of the newest checkpoint that was begun."""

    _in_flight: deque[PendingUpdate] = field(default_factory=deque, init=False)
    """Updates counted in `progress` whose results have not been looked at; none when something is due."""

    def train(self) -> bool:
        """Train to the last step; return whether it was reached. False: stopped, with a checkpoint of where it was.

        The state at a step boundary is complete: whatever was due there and not yet done is done after a resume. When
        this returns or raises, nothing is being written any more.

        Raises:
            NotFiniteError: NaN or infinity; the last checkpoint stands.
            DiskFullError: no room for a checkpoint; those before it stand.
        """
        try:
            with quiet_garbage_collection():
                finished = self._train()
            self._wait_until_saved()
        except BaseException:
            self._note_saved_after_failure()
            raise
        return finished

    def _train(self) -> bool:
        while self._settle_boundary():
            if self.progress.step >= self.layout.max_steps:
                return True
            if self._is_stopping():
                break
            self._update()
        self._look()
        self.recorder.flush()
        self._save(checkpoint=True, best=False)
        return False

    def _update(self) -> None:
        progress = self.progress
        if not self._in_flight:
            self.recorder.begin_updates()
        batch = self.feed.batch_at(progress.step)
        pending = self.updater.update(progress.step, batch)
        self._in_flight.append(pending)
        progress.step += 1
        progress.tokens_seen += pending.tokens
        self._look(leave=self.compute.updates_in_flight)

    def _look(self, *, leave: int = 0) -> None:
        """Wait for the updates under way, all but the newest `leave`, and take note of what they came to."""
        while len(self._in_flight) > leave:
            pending = self._in_flight.popleft()
            try:
                result = pending.result()
            except NotFiniteError as error:
                self._take_back([pending, *self._in_flight])
                raise self._noted(error) from None
            self.progress.train_loss = result.train_loss
            self.recorder.update(result)

    def _take_back(self, updates: Sequence[PendingUpdate]) -> None:
        """Count these, the last ones, as not made."""
        self.progress.step -= len(updates)
        self.progress.tokens_seen -= sum(update.tokens for update in updates)

    def _settle_boundary(self) -> bool:
        """Validate and save where this step wants it; return False if told to stop meanwhile."""
        self._note_saved()
        cadence = self.job.cadence
        if self._is_due(cadence.eval_freq) or self._is_due(cadence.save_every_n_iterations):
            self._look()
        if self._is_due(cadence.eval_freq) or self._is_due(_COLLECT_EVERY):
            gc.collect()
        is_best = False
        if self._is_due(cadence.eval_freq) and self.progress.validated_step != self.progress.step:
            self.recorder.flush()
            estimate = self._estimate()
            if estimate is None:
                return False
            deciding = estimate[self.job.deciding_loss]
            is_best = self.progress.note_validation(estimate["val_loss"], deciding=deciding)
            self.recorder.validation(estimate, is_best=is_best)
        self._save(checkpoint=self._is_due(cadence.save_every_n_iterations), best=is_best)
        return True

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.layout.max_steps

    def _estimate(self) -> dict[str, float] | None:
        config = self.job.training
        found: dict[str, float] | None = estimate_losses(
            self.updater.evaluator,
            self.validation,
            n_windows=self.job.cadence.eval_iters * config.batch_size,
            answers_too=config.answers_only,
            layout=self.layout,
            compute=self.compute,
            ranks=self.ranks,
            should_stop=self._is_stopping,
            watch=self.recorder.validating,
        )
        if found is not None and not all(map(math.isfinite, found.values())):
            losses = " and ".join(f"{name} {loss}" for name, loss in found.items())
            raise self._noted(
                NotFiniteError(
                    f"training stopped: found {losses} after step {self.progress.step}, need finite numbers; the last "
                    "checkpoint stands"
                )
            )
        measured = None if found is None else self.feed.measure(self.progress.step, should_stop=self._is_stopping)
        return None if found is None or measured is None else found | measured

    def _noted(self, error: NotFiniteError) -> NotFiniteError:
        self.recorder.flush()
        self.recorder.event("not_finite", str(error))
        return error

    def _is_stopping(self) -> bool:
        self.watchdog.beat(self.progress.step)
        self.watchdog.goes_on(OTHERS_SECONDS)  # one may still compile or sample
        is_stopping = self.ranks.any(self.stop.requested)
        self.watchdog.goes_on()
        return is_stopping

    def _save(self, *, checkpoint: bool, best: bool) -> None:
        """Begin to write this step as its checkpoint, unless that was done or nothing is trained, and as the best.

        Before the first update only post-training is saved: its evaluation is what later ones are compared with.
        """
        step = self.progress.step
        done = max(self._begun_step, -1 if self.saved is None else self.saved.step)
        is_trained = step > 0 or (self.job.training.is_post_training and self.job.start_from is not None)
        checkpoint = checkpoint and is_trained and step != done
        if not (checkpoint or best):
            return
        self.recorder.flush()
        self.recorder.tick()
        since = time.perf_counter()
        self._wait_until_saved()  # one at a time: it bounds the memory, and keeps the order of best models
        if self.ranks.is_first:
            self.saver.begin(self._snapshot(), checkpoint=checkpoint, best=best, since=since)
        self._begun_step = step if checkpoint else self._begun_step

    def _wait_until_saved(self) -> None:
        """Wait, in all processes, until what was begun is durable; raise what has kept it from that.

        None of them goes ahead: an exchange of gradients does not wait for the first as long as a disk may take.
        """
        self._allow_for_writing()
        while self.ranks.any(not self.saver.wait(_LOOK_SECONDS)):
            pass
        self.watchdog.goes_on()
        self._note_saved()

    def _allow_for_writing(self) -> None:
        training = self.job.training
        size = checkpoint_bytes(self.job.model, training.optimizer, averaged=training.average_weights.is_wanted)
        self.watchdog.goes_on(size / SLOW_DISK)

    def _note_saved(self) -> None:
        """Take note of checkpoints that have become durable; raise what has kept one from it."""
        for saved in self.saver.durable():
            self.saved = saved.info
            self.recorder.checkpoint(saved.info, stall_seconds=saved.stall_seconds)
        self.saver.raise_failure()

    def _note_saved_after_failure(self) -> None:
        """As `_note_saved`, while another error is on its way: that one is raised, this one is written down."""
        self._allow_for_writing()
        self.saver.wait()
        try:
            self._note_saved()
        except UserError as error:
            self.recorder.event("save_failed", str(error))

    def _snapshot(self) -> Snapshot:
        return take_snapshot(self.job, self.progress, self.updater)

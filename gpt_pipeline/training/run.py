"""One training from its job to its outcome: lock, start or continue, train, and say what came of it."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.manifest import BEST_NAME, CheckpointInfo
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot, snapshot_bytes
from gpt_pipeline.data.config import DOCUMENTS
from gpt_pipeline.data.tokens.batches import BatchSampler, Sampler
from gpt_pipeline.data.tokens.packing import DocumentSampler, require_answers
from gpt_pipeline.data.tokens.stream import TokenShards, open_shards
from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.costs import Precision, flops_per_token, memory_need, optimizer_bytes, weight_bytes
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.prompts import read_prompts
from gpt_pipeline.rl.rollouts import RolloutSampler
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.manifest import StageResult, utc_now
from gpt_pipeline.training.config import StepLayout, rollout_layout, sequences_per_step, step_layout
from gpt_pipeline.training.device import (
    Compute,
    choose_compute,
    explained_order_of_sums,
    explained_out_of_memory,
    peak_memory_bytes,
    prepare_process,
)
from gpt_pipeline.training.feed import BatchFeed, Feed
from gpt_pipeline.training.finished import FinishedTraining
from gpt_pipeline.training.heartbeat import RUN_VARIABLE, heartbeat
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.launch import ignored_launch
from gpt_pipeline.training.machine_load import MachineLoad
from gpt_pipeline.training.metrics import MetricsLog, Recorder
from gpt_pipeline.training.micro_batch import fit_micro_batch
from gpt_pipeline.training.mirroring import mirrored
from gpt_pipeline.training.observer import Observer, ShieldedObserver, SilentObserver
from gpt_pipeline.training.origin import commit_at_start, machine
from gpt_pipeline.training.ranks import Ranks, process_group
from gpt_pipeline.training.rollout_feed import RolloutFeed
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.seeds import seed_all
from gpt_pipeline.training.start import Start, prepare_start, read_start, read_start_weights
from gpt_pipeline.training.state import restore, take_snapshot
from gpt_pipeline.training.stopping import PATIENCE_SECONDS, GoesOn, StopFlag, Watchdog, stop_on_signals
from gpt_pipeline.training.trainer import Trainer
from gpt_pipeline.training.update import Updater
from gpt_pipeline.training.validate import require_validation_tokens

_LOCK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """How a training ended without an error."""

    finished: bool
    """Whether the last step was reached; otherwise it was stopped."""

    reused: bool
    """Whether it had been finished before and no work was done."""

    step: int
    """Optimizer updates done."""

    checkpoint: CheckpointInfo | None
    """The newest checkpoint; None when stopped before the first update."""

    exit_code: int
    """0 when finished; 130 or 143 when a signal stopped it."""


def run_job(
    job: TrainingJob,
    observer: Observer,
    *,
    stop: StopFlag | None = None,
    environment: Mapping[str, str] = os.environ,
    patience: float = PATIENCE_SECONDS,
) -> TrainingOutcome:
    """Train what `job` says, to its last step or until a signal or `stop` asks to stop; return what came of it.

    A stop request is heeded at the next step boundary, after a checkpoint. An observer that raises is told nothing
    more; training goes on. Started by torchrun (seen in `environment`), this is one of several processes; the first
    one writes and reports. Without progress for `patience` seconds (longer where steps are slow) the process ends.

    Raises:
        UserError: the job cannot be done, with the remedy.
    """
    stop = stop or StopFlag()
    ranks = Ranks.from_environment(environment)
    watcher = ShieldedObserver(observer) if ranks.is_first else SilentObserver()
    watchdog = Watchdog(patience=patience, say=watcher.message)
    if ignored := ignored_launch(environment):
        watcher.message(ignored)
    with stop_on_signals(stop):
        with (
            process_group(ranks, watcher.message),
            _locked(job, ranks, watcher.message),
            _heartbeat(job, ranks, watchdog, run=environment.get(RUN_VARIABLE, "")),
            watchdog,
            mirrored(job, stop=stop, say=watcher.message) if ranks.is_first else nullcontext(),
        ):
            outcome = _run(job, watcher, stop=stop, ranks=ranks, watchdog=watchdog)
        if ranks.is_first and job.mirror is not None:
            wait_until_sent(job.folder, say=watcher.message, stopped=lambda: stop.requested)
    return outcome


def _run(job: TrainingJob, observer: Observer, *, stop: StopFlag, ranks: Ranks, watchdog: Watchdog) -> TrainingOutcome:
    shards = _open_shards(job)
    sampler = None if job.rollouts else _sampler(job, shards)
    layout = _layout(job, sampler, ranks)
    commit_at_start()  # later the source may be another one
    compute = choose_compute(job.hardware, job.training, ranks=ranks, say=observer.message)
    prepare_process(compute, same_sizes=job.training.objective != "rl")  # answers differ in length
    start = _agree_on_start(job, layout, observer, ranks)
    if start.finished is not None:
        return TrainingOutcome(
            finished=True, reused=True, step=start.finished.step, checkpoint=start.checkpoint, exit_code=0
        )
    with (
        explained_out_of_memory(layout, job.training),
        explained_order_of_sums(),
        _trainer(
            job,
            observer,
            start=start,
            shards=shards,
            sampler=sampler,
            layout=layout,
            compute=compute,
            ranks=ranks,
            stop=stop,
            watchdog=watchdog,
        ) as trainer,
        explained_out_of_memory(trainer.layout, job.training),
    ):
        return _train(trainer)


def _train(trainer: Trainer) -> TrainingOutcome:
    layout, progress = trainer.layout, trainer.progress
    begun = "resumed" if progress.step else "started"
    warmup = trainer.job.training.warmup_steps
    if warmup >= layout.max_steps:
        trainer.recorder.event(
            "short",
            f"training.warmup_steps={warmup} is not below the {layout.max_steps} steps of this training: the learning "
            "rate never reaches its peak.",
        )
    trainer.recorder.event(
        begun,
        f"Training {'continues after' if progress.step else 'starts at'} step {progress.step} of {layout.max_steps}: "
        f"{trainer.updater.model.num_parameters:,} parameters, {trainer.feed.in_words(layout)}, "
        f"{trainer.compute.describe()}.",
        device=trainer.compute.device.type,
    )
    finished = trainer.train()
    if finished and trainer.ranks.is_first:
        _finished_training(trainer).write(trainer.job.folder)
        trainer.recorder.event("finished", f"Training reached its last step, {progress.step}.")
    elif not finished:
        saved = f"{trainer.saved.path.name} is saved" if trainer.saved else "nothing was trained yet"
        trainer.recorder.event("stopped", f"Training stopped after step {progress.step} as asked; {saved}.")
    return TrainingOutcome(
        finished=finished,
        reused=False,
        step=progress.step,
        checkpoint=trainer.saved,
        exit_code=0 if finished else trainer.stop.exit_code,
    )


def _open_shards(job: TrainingJob) -> TokenShards:
    shards = open_shards(Path(job.shards_folder))
    found = shards.manifest.fingerprint
    if found != job.shards_fingerprint:
        raise ConfigError(
            "shards_folder", found=f"{job.shards_folder} with fingerprint {found}", need=job.shards_fingerprint
        )
    require_validation_tokens(shards.validation)
    if job.max_length > job.model.context_length:
        raise ConfigError(
            "data.max_length", found=job.max_length, need=f"at most model.context_length={job.model.context_length}"
        )
    return shards


def _layout(job: TrainingJob, sampler: Sampler | None, ranks: Ranks) -> StepLayout:
    length, size = job.max_length, ranks.world_size
    if sampler is None:
        assert job.rollouts is not None
        return rollout_layout(job.training, job.rollouts.config, max_length=length, world_size=size)
    return step_layout(job.training, max_length=length, steps_per_epoch=sampler.steps_per_epoch, world_size=size)


def _sampler(job: TrainingJob, shards: TokenShards) -> Sampler:
    kind = (
        partial(DocumentSampler, answers_only=job.training.answers_only) if job.packing == DOCUMENTS else BatchSampler
    )
    sampler = kind(
        stream=shards.train,
        sequence_length=job.max_length,
        batch_size=sequences_per_step(job.training, max_length=job.max_length),
        batch_key=job.training.size_key,
        seed=job.training.seed,
    )
    if isinstance(sampler, DocumentSampler) and sampler.answers_only:
        require_answers(sampler.answers, job.max_length)
    return sampler


def _agree_on_start(job: TrainingJob, layout: StepLayout, observer: Observer, ranks: Ranks) -> Start:
    """Return the start that the first process decides on; the others read the same checkpoint."""
    if ranks.is_first:
        start = prepare_start(job, max_steps=layout.max_steps, say=observer.message)
        ranks.from_first((start.checkpoint.to_json() if start.checkpoint else None, start.finished))
        return start
    found, finished = ranks.from_first(None)
    if found is None:
        return Start(weights=None if job.start_from is None else read_start_weights(job, job.start_from))
    info = CheckpointInfo.from_json(found)
    return Start(checkpoint=info, snapshot=None if finished else read_start(job, info), finished=finished)


def _model(job: TrainingJob, start: Start) -> LanguageModel:
    """Return the model with its first weights."""
    seed_all(job.training.seed)
    # What answers are sampled from and what is trained on them have to be the same model, so without dropout.
    model = make_model(dataclasses.replace(job.model, dropout=0.0) if job.rollouts else job.model)
    if start.weights is not None:
        model.load_state_dict(dict(start.weights))
    return model


def _progress(start: Start, updater: Updater) -> Progress:
    """Return how far the training is that `start` goes on with, whose state is put into `updater`."""
    if start.snapshot is None:
        return Progress()
    return restore(start.snapshot, updater)


@contextmanager
def _trainer(
    job: TrainingJob,
    observer: Observer,
    *,
    start: Start,
    shards: TokenShards,
    sampler: Sampler | None,
    layout: StepLayout,
    compute: Compute,
    ranks: Ranks,
    stop: StopFlag,
    watchdog: Watchdog,
) -> Iterator[Trainer]:
    """Yield the training, in the state that it starts from."""
    model = _model(job, start).to(compute.device)
    goes_on = watchdog.goes_on
    updater = Updater(
        model, job.training, layout=layout, compute=compute, ranks=ranks, say=observer.message, goes_on=goes_on
    )
    progress = _progress(start, updater)
    is_resumed = start.snapshot is not None
    start.let_go()
    feed: Feed = (
        _rollout_feed(job, model, shards, layout=layout, compute=compute, ranks=ranks, goes_on=goes_on)
        if sampler is None
        else BatchFeed(sampler, ranks=ranks, device=compute.device)
    )
    saver = Saver(job, observer)
    if ranks.is_first:
        snapshot = take_snapshot(job, progress, updater)
        saver.require_room(_bytes_to_come(job, snapshot, is_resumed=is_resumed))
        saver.restore_best(progress)
    progress = ranks.from_first(progress)  # what is due and what is best, all decide alike
    watchdog.beat(progress.step)
    layout = fit_micro_batch(
        updater,
        feed,
        job,
        compute=compute,
        ranks=ranks,
        estimate=lambda size: _memory_estimate(job, compute, size),
        say=observer.message,
        goes_on=goes_on,
    )
    recorder = _recorder(job, observer, progress, layout=layout, compute=compute, ranks=ranks)
    # best_model.pt does not stand in for the checkpoint that is due at its step.
    saved = start.checkpoint if start.checkpoint and start.checkpoint.path.name != BEST_NAME else None
    try:
        yield Trainer(
            job=job,
            layout=layout,
            compute=compute,
            ranks=ranks,
            updater=updater,
            feed=feed,
            validation=shards.validation,
            progress=progress,
            saver=saver,
            recorder=recorder,
            stop=stop,
            saved=saved,
            watchdog=watchdog,
        )
    finally:
        saver.close()
        feed.close()
        recorder.close()


def _bytes_to_come(job: TrainingJob, snapshot: Snapshot, *, is_resumed: bool) -> int:
    """Return the bytes of a checkpoint of the training once it holds all that the first updates add."""
    size = snapshot_bytes(snapshot)
    if not is_resumed:
        size += optimizer_bytes(job.model, job.training.optimizer)
    if snapshot.average is None and job.training.average_weights.is_wanted:
        size += weight_bytes(job.model)
    return size


def _recorder(
    job: TrainingJob, observer: Observer, progress: Progress, *, layout: StepLayout, compute: Compute, ranks: Ranks
) -> Recorder:
    return Recorder(
        progress,
        log=MetricsLog(job.folder.metrics) if ranks.is_first else None,
        observer=observer,
        layout=layout,
        flops_per_token=flops_per_token(job.model, max_length=job.max_length),
        # Of sampled answers, an update has more work than its tokens tell.
        peak_flops=compute.peak_flops * ranks.world_size if compute.peak_flops and not job.rollouts else None,
        peak_memory=lambda: peak_memory_bytes(compute.device),
        machine_load=MachineLoad(gpus=compute.device.type == "cuda").sample if ranks.is_first else dict,
    )


def _memory_estimate(job: TrainingJob, compute: Compute, micro_batch_size: int) -> int:
    """Return the bytes that one process is thought to need."""
    piece = compute.loss_piece
    return memory_need(
        job.model,
        optimizer=job.training.optimizer,
        micro_batch_size=micro_batch_size,
        max_length=job.max_length,
        precision=Precision(cuda=compute.on_gpu, bf16=compute.half, compiled=compute.compile, loss_piece=piece),
        recompute=job.training.gradient_checkpointing,
        averaged=job.training.average_weights.is_wanted,
        asked_tokens=0 if job.rollouts is None else job.rollouts.config.asked_tokens(job.max_length),
    ).device


def _rollout_feed(
    job: TrainingJob,
    model: LanguageModel,
    shards: TokenShards,
    *,
    layout: StepLayout,
    compute: Compute,
    ranks: Ranks,
    goes_on: GoesOn,
) -> RolloutFeed:
    rollouts, weights = job.rollouts, job.start_from
    assert rollouts is not None
    assert weights is not None
    reference = None
    if rollouts.config.kl:
        reference = make_model(job.model)
        reference.load_state_dict(dict(read_start_weights(job, weights)))
        reference.to(compute.device)
    stage = StageResult(folder=Path(job.shards_folder), manifest=shards.manifest, reused=True)
    return RolloutFeed(
        model=model,
        reference=reference,
        prompts=read_prompts(Path(rollouts.prompts_folder), rollouts.prompts_fingerprint),
        sampler=RolloutSampler(
            config=rollouts.config,
            tokenizer=tokenizer_of(stage),
            context_length=job.max_length,
            batch_size=layout.micro_batch_size,
        ),
        seed=job.training.seed,
        measured=job.cadence.eval_iters * rollouts.config.prompts_per_step,
        compute=compute,
        ranks=ranks,
        samples_file=job.folder.samples,
        goes_on=goes_on,
    )


def _finished_training(trainer: Trainer) -> FinishedTraining:
    progress, saved = trainer.progress, trainer.saved
    assert saved is not None
    assert progress.train_loss is not None
    assert progress.val_loss is not None
    assert progress.best_val_loss is not None
    return FinishedTraining(
        fingerprint=trainer.job.fingerprint,
        experiment_name=trainer.job.experiment_name,
        step=progress.step,
        tokens_seen=progress.tokens_seen,
        train_loss=progress.train_loss,
        val_loss=progress.val_loss,
        best_val_loss=progress.best_val_loss,
        decided_by=trainer.job.deciding_loss,
        best_step=progress.best_step,
        seconds=progress.seconds,
        parameters=trainer.updater.model.num_parameters,
        checkpoint=saved.path.name,
        weights_sha256=saved.weights_sha256,
        versions=_origin(trainer),
        created_at=utc_now(),
    )


def _origin(trainer: Trainer) -> dict[str, str]:
    """Return what the training ran with and on, by name."""
    commit = commit_at_start()
    return {
        "gpt_pipeline": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        **({} if commit is None else {"commit": commit}),
        "machine": machine(),
        "device": trainer.compute.describe(),
    }


def _locked(job: TrainingJob, ranks: Ranks, say: Say) -> AbstractContextManager[None]:
    if not ranks.is_first:
        return nullcontext()
    # Waits for those who hold the lock for an instant, to see whether a trainer does.
    purpose = f"training {job.experiment_name}"
    return folder_lock(job.folder.root, purpose=purpose, wait_seconds=_LOCK_SECONDS, say=say)


def _heartbeat(job: TrainingJob, ranks: Ranks, watchdog: Watchdog, *, run: str) -> AbstractContextManager[None]:
    return heartbeat(job.folder.root, run=run, step=lambda: watchdog.step) if ranks.is_first else nullcontext()

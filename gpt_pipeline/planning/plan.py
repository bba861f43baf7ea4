"""A plan: everything known about an experiment before anything is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt_pipeline.data.tokens.choose import known_shards
from gpt_pipeline.data.tokens.packing import Answers
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.resume import require_checkpoint_to_resume
from gpt_pipeline.experiment.sizes import TrainingSize, size_on, training_size
from gpt_pipeline.experiment.start_from import StartNotReadyError
from gpt_pipeline.experiment.training import find_start, start_in_words, training_job
from gpt_pipeline.findings import Finding, problem, problem_of
from gpt_pipeline.model.costs import MemoryNeed, Precision, flops_per_token, parameter_count
from gpt_pipeline.planning.device import Device, absent_gpu, choose_device
from gpt_pipeline.planning.disk import Disk, disks
from gpt_pipeline.planning.findings import Known, findings, too_long
from gpt_pipeline.planning.memory import expected_micro_batch, training_need
from gpt_pipeline.planning.probe import Request
from gpt_pipeline.planning.speed import (
    LIMIT_SECONDS,
    Duration,
    OutOfMemoryError,
    Sampling,
    Speed,
    TooSlowError,
    Work,
    duration,
    measure,
    speed_of_lines,
)
from gpt_pipeline.planning.tokens import TokenCount, count_tokens
from gpt_pipeline.progress.evaluations import pending_evaluations
from gpt_pipeline.progress.stages import StageProgress, data_progress
from gpt_pipeline.progress.training import newest_records
from gpt_pipeline.shown import Say
from gpt_pipeline.training.config import Objective, StepLayout
from gpt_pipeline.training.decision import StartDecision, decide_start, refuse_newer
from gpt_pipeline.training.heartbeat import trainer_state

_RESUME = "storage.checkpoint_to_resume"
_ANEW = StartDecision(kind="anew")

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the training is."""

    steps: int
    """Optimizer updates in all."""

    steps_left: int
    steps_per_epoch: int | None
    """None: sampled answers are trained on, without epochs."""

    tokens_per_step: int
    sequences_per_step: int
    micro_batch_size: int
    grad_accum_steps: int
    world_size: int
    """Processes that share an update: one per GPU."""

    padding: float | None
    """Share of the positions that no token fills, in [0, 1); None: not counted, since the shards do not exist yet."""

    answers: Answers | None
    """What of the documents counts, where only answers do and the shards exist."""

    checkpoints: int
    """Still to be written, including those that are deleted again."""

    flops_per_token: float
    """Forward and backward, 6 for each weight of a matrix product and 12 * n_layer * n_embd * T for attention: PaLM
    (Chowdhery et al. 2022, appendix B). The same as `mfu` is computed with; see `model.costs.flops_per_token`."""

    @property
    def epochs(self) -> float | None:
        """Passes over the training tokens; None where sampled answers are trained on."""
        return None if self.steps_per_epoch is None else self.steps / self.steps_per_epoch

    @property
    def tokens(self) -> int:
        """Tokens trained on, including repeated ones."""
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """Of the whole training, without validation."""
        return self.tokens * self.flops_per_token


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates for an experiment; None where there is none, and then a finding says why."""

    file: Path
    name: str
    folder: Path
    objective: Objective
    place: str
    """Where it trains, in words; empty: on this machine."""

    parameters: int
    """All are trained."""

    tokens: TokenCount
    length: Length | None
    stages: tuple[StageProgress, ...]
    start: StartDecision
    start_from: str
    """The weights it begins with, or why they are not there yet; empty: random ones."""

    start_is_ready: bool

    is_running: bool
    """Whether its training is running."""

    disks: tuple[Disk, ...]
    memory: MemoryNeed | None
    device: Device | None
    """None where this machine lacks the device that the file asks for; `memory` is then that of a GPU."""

    speed: Speed | None
    duration: Duration | None
    not_measured: str | None
    """Why the speed is unknown, or not measured now."""

    findings: tuple[Finding, ...]

    @property
    def tokens_per_parameter(self) -> float | None:
        return None if self.length is None else self.length.tokens / self.parameters

    @property
    def mfu(self) -> float | None:
        """Share of the GPUs' peak FLOP/s in [0, 1]; None where the peak is unknown."""
        if self.speed is None or self.speed.peak_flops is None or self.length is None:
            return None
        peak = self.speed.peak_flops * self.length.world_size
        return self.speed.tokens_per_second * self.length.flops_per_token / peak

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What would make the run fail."""
        return tuple(each for each in self.findings if each.severity == "problem")


def make_plan(experiment: Experiment, *, measured: bool, say: Say) -> Plan:
    """Return the plan of `experiment`; if `measured`, a child process makes a few real updates for it.

    Raises:
        ConfigError: the base folder is not a path on this machine.
        NewerFileError: only a newer version can read what is in the experiment's folder.
    """
    refuse_newer(experiment.folder)
    found: list[Finding] = []
    tokens, stages = count_tokens(experiment), data_progress(experiment)
    config = experiment.config
    size = None  # where nothing is known of the files, as a finding says
    if tokens.documents:
        size = _or_problem(found, "data.num_samples", lambda: _size(experiment, tokens))
    running = trainer_state(experiment.folder.root) == "running"
    start = _running(experiment) if running else _or_problem(found, _RESUME, lambda: _start(experiment)) or _ANEW
    device = _device_here(config, found)
    precision = absent_gpu(config.training) if device is None else device.precision
    size = None if size is None else _with_micro_batch(size, config, device, precision)
    length = None if size is None else _length(experiment, size, start)
    need = (
        None if length is None else training_need(config, micro_batch_size=length.micro_batch_size, precision=precision)
    )
    measuring = _Measuring(experiment=experiment, length=length, device=device, need=need, start=start, running=running)
    speed, not_measured = measuring.speed(found, measured=measured, say=say)
    to_come = None if length is None else length.checkpoints
    known = Known(
        experiment=experiment,
        tokens=tokens,
        stages=stages,
        size=size,
        disks=_or_problem(found, "disk", lambda: disks(experiment, tokens, stages, start, checkpoints=to_come)) or (),
        need=need,
        device=device,
        is_measured=speed is not None and speed.source == "measured",
        duration=None if length is None else _duration(experiment, tokens, length, start, speed),
    )
    begins = start_in_words(experiment)
    return Plan(
        file=experiment.file,
        name=experiment.display_name,
        folder=experiment.folder.root,
        objective=config.training.objective,
        place=config.hardware.place,
        parameters=parameter_count(config.model),
        tokens=tokens,
        length=length,
        stages=stages,
        start=start,
        start_from=begins.text,
        start_is_ready=begins.is_ready,
        is_running=running,
        disks=known.disks,
        memory=need,
        device=device,
        speed=speed,
        duration=known.duration,
        not_measured=not_measured,
        findings=(*found, *findings(known)),
    )


def _or_problem(found: list[Finding], key: str, make: Callable[[], _Value]) -> _Value | None:
    """Return what `make` returns; an error for the user becomes a finding."""
    try:
        return make()
    except UserError as error:
        found.append(problem_of(error, key))
    return None


def _device_here(config: ExperimentConfig, found: list[Finding]) -> Device | None:
    """Return the device to train on; None where it is a GPU elsewhere, or this machine lacks it, which is a finding."""
    hardware = config.hardware
    if hardware.is_remote and hardware.device != "cpu":
        return None
    return _or_problem(found, "hardware", lambda: choose_device(hardware, config.training))


def _with_micro_batch(
    size: TrainingSize, config: ExperimentConfig, device: Device | None, precision: Precision
) -> TrainingSize:
    """Return the size with the micro-batch that the trainer is expected to take."""
    free = None if device is None else device.memory_free
    micro = expected_micro_batch(config, size.layout, precision=precision, memory=free)
    return dataclasses.replace(size, layout=dataclasses.replace(size.layout, micro_batch_size=micro))


def _start(experiment: Experiment) -> StartDecision:
    """Return where the training would start: at step 0 until the shards exist, which are part of its identity."""
    require_checkpoint_to_resume(experiment)
    shards = known_shards(experiment.data, experiment.data_folder)
    anew = _ANEW if experiment.config.start_from is None else StartDecision(kind="weights")
    try:
        if shards is not None:
            return decide_start(training_job(experiment, shards))
        find_start(experiment)  # what cannot be had is not there with the shards either
        return anew
    except StartNotReadyError:
        return anew


def _running(experiment: Experiment) -> StartDecision:
    """Return how far the running training is."""
    step = int(newest_records(experiment.folder.metrics).get("train", {}).get("step", 0))
    return StartDecision(kind="continue", step=step)


def _size(experiment: Experiment, tokens: TokenCount) -> TrainingSize:
    shards = known_shards(experiment.data, experiment.data_folder)
    if shards is None:
        return training_size(experiment.config, train_tokens=tokens.train_tokens)
    return size_on(shards.folder, shards.manifest, experiment.config)


def _length(experiment: Experiment, size: TrainingSize, start: StartDecision) -> Length:
    config, layout = experiment.config, size.layout
    left = max(0, layout.max_steps - start.step)
    every = config.evaluation.save_every_n_iterations
    multiples = layout.max_steps // every - start.step // every
    is_kept = start.kind == "weights" and config.training.is_post_training  # what it starts from, to compare with
    return Length(
        steps=layout.max_steps,
        steps_left=left,
        steps_per_epoch=None if config.has_rollouts else size.steps_per_epoch,
        padding=size.padding,
        answers=size.answers,
        tokens_per_step=layout.tokens_per_step,
        sequences_per_step=layout.batch_size,
        micro_batch_size=layout.micro_batch_size,
        grad_accum_steps=layout.grad_accum_steps,
        world_size=layout.world_size,
        checkpoints=multiples + (1 if left and layout.max_steps % every else 0) + is_kept,
        flops_per_token=flops_per_token(config.model, max_length=config.data.max_length),
    )


def _duration(
    experiment: Experiment, tokens: TokenCount, length: Length, start: StartDecision, speed: Speed | None
) -> Duration:
    config = experiment.config
    pending = 0 if start.moves_checkpoints else len(pending_evaluations(experiment))
    work = Work(
        steps=length.steps_left,
        tokens_per_step=length.tokens_per_step,
        max_length=config.data.max_length,
        batch_size=config.training.batch_size,
        validation_tokens=tokens.validation_tokens,
        tokens_per_document=tokens.tokens / tokens.documents,
        estimates=count_estimates(length.steps, done=start.step, every=config.evaluation.eval_freq),
        evaluations=length.checkpoints + pending,
        sampling=_sampling(config, length) if config.has_rollouts else None,
    )
    return duration(work, config.evaluation, speed, read_evaluations(experiment.folder.evaluations))


def count_estimates(steps: int, *, done: int, every: int) -> int:
    """Return how often the losses are still estimated: at multiples of `every`, 0 being one, and at the last step."""
    if done >= steps:
        return 0
    return steps // every - done // every + (done == 0) + (steps % every != 0)


def _sampling(config: ExperimentConfig, length: Length) -> Sampling:
    rl = config.rl
    each = rl.samples_per_prompt * rl.max_new_tokens
    measured = min(config.evaluation.eval_iters * rl.prompts_per_step, rl.candidates)
    return Sampling(
        update=rl.prompts_per_step * each // length.world_size,
        asked=length.tokens_per_step // length.world_size if rl.kl else 0,
        estimate=measured * each // length.world_size,
        prompts=rl.candidates * each,
    )


@dataclass(frozen=True, kw_only=True)
class _Measuring:
    """Whether to measure, and how."""

    experiment: Experiment
    length: Length | None
    device: Device | None
    need: MemoryNeed | None
    start: StartDecision
    running: bool

    def speed(self, found: list[Finding], *, measured: bool, say: Say) -> tuple[Speed | None, str | None]:
        """Return the speed, and why it was not measured; too little memory becomes a finding."""
        why_not = self._why_not(measured=measured)
        if why_not is not None or self.length is None:
            return self._of_lines(), why_not
        try:
            # Processes on a CPU share its cores, so that one with all of them makes the whole update meanwhile.
            devices = self.length.world_size if self.device is not None and self.device.precision.cuda else 1
            return measure(self._request(self.length, devices), world_size=devices, say=say), None
        except OutOfMemoryError as error:
            found.append(problem("memory", str(error), self._smaller(self.length)))
            return None, str(error)
        except TooSlowError as error:
            if self.device is not None:
                found.extend(too_long(self.device, LIMIT_SECONDS * self.length.steps_left, how="more than"))
            return self._of_lines(), str(error)
        except UserError as error:
            return self._of_lines(), str(error)

    def _of_lines(self) -> Speed | None:
        sequences = 0 if self.length is None else self.length.sequences_per_step
        return speed_of_lines(self.experiment.folder.metrics, running=self.running, sequences=sequences)

    def _why_not(self, *, measured: bool) -> str | None:
        place = self.experiment.config.hardware.place
        if self.running or place:
            return f"not measured: {'its training is running' if self.running else f'it trains {place}'}"
        if not measured:
            return "not measured (--no-measure)"
        if self.start.kind == "finished":
            return "the training is finished"
        if self.length is None or self.device is None or self.need is None:
            return "not measured: it cannot be started as it is"
        free = self.device.memory_free
        if not self.device.precision.cuda and free is not None and self.need.device > free:
            return "not measured: this machine's memory might not hold it"
        return None

    def _request(self, length: Length, devices: int) -> Request:
        config = self.experiment.config
        share = length.sequences_per_step // devices
        return Request(
            model=config.trained_model,
            training=config.training,
            hardware=dataclasses.replace(config.hardware, num_gpus=1),
            layout=StepLayout(
                batch_size=share,
                micro_batch_size=length.micro_batch_size,
                max_length=config.data.max_length,
                world_size=1,
                max_steps=length.steps,
            ),
            answers=min(16, config.evaluation.num_questions),  # as many as an evaluation generates at once
            samples=length.micro_batch_size if config.has_rollouts else 0,
            rl=config.rl,
        )

    def _smaller(self, length: Length) -> str:
        from gpt_pipeline.training.device import largest_proper_divisor

        smaller = largest_proper_divisor(length.micro_batch_size)
        if smaller is not None:
            return f"set training.micro_batch_size: {smaller}"
        is_on = self.experiment.config.training.gradient_checkpointing
        return "lower data.max_length or the model" if is_on else "set training.gradient_checkpointing: true"

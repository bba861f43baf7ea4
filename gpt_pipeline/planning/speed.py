"""How fast this device trains this model, measured by a child process or taken from the training's own lines; and the
hours that a training and its evaluations take at that speed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.progress.training import newest_records
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.training.metrics import read_metrics

if TYPE_CHECKING:
    from gpt_pipeline.planning.probe import Request

LIMIT_SECONDS = 120.0
"""Of a measurement, from the start of its process on."""

_PROBE = "gpt_pipeline.planning.probe"
_FORWARD_SHARE = 1 / 3  # of the FLOPs of an update: forward 2, backward 4 for each weight (see `flops_per_token`)
_LAST_LINES = 5  # of what a failed probe printed


class OutOfMemoryError(UserError):
    """The device's memory does not hold an update."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast training is; None where not measured."""

    tokens_per_second: float
    """Of updates on all GPUs together, without validation and checkpoints."""

    source: Literal["measured", "running", "earlier"]
    """By a few real updates now, from the last line of the running training, or of one that ended."""

    device: str | None = None
    """Device, precision, compiled or not."""

    updates: int | None = None
    """Measured, without the first."""

    update_seconds: float | None = None
    """Of a training's own lines, where answers are sampled alone: with the sampling."""

    estimate_seconds: float | None = None
    """Of such lines: of an estimate of the losses, with the answers that are sampled for it."""

    first_update_seconds: float | None = None
    """Including compilation and allocation."""

    peak_memory: int | None = None
    """Bytes of tensors on a GPU, else of the whole process."""

    peak_flops: float | None = None
    """Of one device in this precision; None where unknown."""

    reading_tokens_per_second: float | None = None
    """Of a forward pass without gradients, on one device."""

    writing_tokens_per_second: float | None = None
    """Of answers generated in one batch, on one device."""

    sampling_tokens_per_second: float | None = None
    """Of answers sampled as a training on them does, on one device."""

    notes: tuple[str, ...] = ()


def speed_of_lines(metrics: Path, *, running: bool, sequences: int) -> Speed | None:
    """Return the speed in the newest line of a training, with updates of so many sequences; None without one."""
    train = newest_records(metrics).get("train")
    if train is None:
        return None
    memory, speed, answer = train.get("memory_gb"), float(train["tokens_per_second"]), train.get("answer_tokens")
    return Speed(
        tokens_per_second=speed,
        source="running" if running else "earlier",
        update_seconds=None if answer is None else answer * sequences / speed,
        estimate_seconds=None if answer is None else _newest_estimate_seconds(metrics),
        peak_memory=None if memory is None else round(memory * 1e9),
    )


def _newest_estimate_seconds(metrics: Path) -> float | None:
    """Return the training time between the newest estimate of the losses and the line of updates before it.

    The trainer writes that line right before it estimates.
    """
    found, before = None, 0.0
    for record in read_metrics(metrics):
        if record["kind"] == "validation":
            found = record["seconds"] - before
        elif record["kind"] == "train":
            before = record["seconds"]
    return found


class TooSlowError(UserError):
    """No update finished in the time that there is for measuring."""


def measure(request: Request, *, world_size: int, say: Say, limit_seconds: float = LIMIT_SECONDS) -> Speed:
    """Return the speed of a few real updates, made by a child process that has ended when this returns.

    Raises:
        OutOfMemoryError: they do not fit into the GPU's memory.
        TooSlowError: none finished in `limit_seconds`.
        UserError: they failed.
    """
    records: list[Mapping[str, Any]] = []
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with _probe(request, limit_seconds, cast(TextIO, errors)) as (child, is_late):
            for line in child.stdout or ():
                if line.endswith("\n"):  # not cut off with the process
                    records.append(record := json.loads(line))
                    _tell(record, say)
        errors.seek(0)
        _check(records, child.returncode, errors.read(), late=is_late(), limit_seconds=limit_seconds)
    return _speed(request, records, world_size=world_size, late=is_late())


@contextmanager
def _probe(
    request: Request, limit_seconds: float, errors: TextIO
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], bool]]]:
    """Run the child for the block, for a limited time; it is never left behind."""
    child = subprocess.Popen(
        [sys.executable, "-m", _PROBE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_seconds, end)
    timer.start()
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(dataclasses.asdict(request)))
        child.stdin.close()
        yield child, late.is_set
        child.wait()
    finally:
        timer.cancel()
        child.kill()
        child.wait()


def _tell(record: Mapping[str, Any], say: Say) -> None:
    if record["kind"] == "device":
        say(f"measuring a few updates on {record['text']}")
    elif record["kind"] == "first":
        say(f"first update: {record['seconds']:.1f} s")


def _check(records: list[Mapping[str, Any]], exit_code: int, errors: str, *, late: bool, limit_seconds: float) -> None:
    kinds = {record["kind"] for record in records}
    if "out_of_memory" in kinds:
        raise OutOfMemoryError("an update does not fit into the GPU's memory")
    for record in records:
        if record["kind"] == "refused":
            raise UserError(str(record["text"]))
    if "first" in kinds and (late or exit_code == 0):
        return
    if late:
        raise TooSlowError(f"no update finished in {limit_seconds:.0f} s")
    last = "\n".join(errors.strip().splitlines()[-_LAST_LINES:])
    killed = " (it was killed, most likely out of memory)" if exit_code in (-9, 137) else ""
    raise UserError(f"the measuring process ended with exit code {exit_code}{killed}\n{last}".rstrip())


def _speed(request: Request, records: list[Mapping[str, Any]], *, world_size: int, late: bool) -> Speed:
    by_kind = {record["kind"]: record for record in records}
    updates = [record for record in records if record["kind"] == "update"]
    seconds = update_seconds(updates or [by_kind["first"]], micro_batches=request.layout.grad_accum_steps)
    share = request.layout.batch_size * request.layout.max_length
    notes = [str(record["text"]) for record in records if record["kind"] == "note"]
    if late and updates:
        notes.append(f"stopped by the time limit after {counted(len(updates), 'update')}, so less certain")
    elif late:
        notes.append("only the first update finished in time, which is slower than the others")
    if world_size > 1:
        notes.append(f"measured on one GPU and multiplied by {world_size}; communication is not included")
    return Speed(
        tokens_per_second=world_size * share / seconds,
        source="measured",
        device=by_kind["device"]["text"],
        updates=len(updates),
        update_seconds=seconds,
        first_update_seconds=by_kind["first"]["seconds"],
        peak_memory=max((record["memory"] for record in updates if record["memory"] is not None), default=None),
        peak_flops=by_kind["device"]["peak_flops"],
        reading_tokens_per_second=_rate(by_kind.get("reading")),
        writing_tokens_per_second=_rate(by_kind.get("writing")),
        sampling_tokens_per_second=_rate(by_kind.get("sampling")),
        notes=tuple(notes),
    )


def update_seconds(updates: list[Mapping[str, Any]], *, micro_batches: int) -> float:
    """Return the seconds of an update of `micro_batches`, from the medians of updates of one or two sizes.

    The difference of two sizes separates the micro-batches from what each update costs once: clipping and optimizer.
    """
    by_size: dict[int, list[float]] = {}
    for record in updates:
        by_size.setdefault(int(record["micro_batches"]), []).append(float(record["seconds"]))
    (small, first), *rest = sorted((size, median(seconds)) for size, seconds in by_size.items())
    if not rest:
        return first * micro_batches / small
    large, second = rest[-1]
    each = max(0.0, second - first) / (large - small)
    return first + each * (micro_batches - small)


def _rate(record: Mapping[str, Any] | None) -> float | None:
    return None if record is None else record["tokens"] / record["seconds"]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds; None where unknown."""

    training_seconds: float | None
    """All remaining steps with the estimates of the losses, if known, without the stalls of checkpoints."""

    validation_seconds: float | None
    """Of these, the estimates of the losses."""

    checkpoint_interval_seconds: float | None
    """Between two checkpoints: the most that a crash can cost."""

    evaluation_seconds: float | None
    """Of all remaining evaluations, roughly, on an otherwise idle device."""

    evaluations: int
    """Remaining."""

    sampling_seconds: float | None = None
    """Of the training's, those of sampling answers if none ends early; None where unknown, or where none are."""

    prompts_seconds: float | None = None
    """Before the training, to choose questions by answers to all candidates, likewise."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The remaining work."""

    steps: int
    tokens_per_step: int
    max_length: int
    batch_size: int
    """`training.batch_size`: an estimate of the validation loss reads `eval_iters` times as many sequences."""

    validation_tokens: int
    tokens_per_document: float
    estimates: int
    """Of the validation loss: one at the start, and those that the steps bring."""

    evaluations: int
    sampling: Sampling | None = None
    """Of a training on sampled answers."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Tokens of answers that one process samples if none ends early."""

    update: int
    asked: int
    """In an update, those of question and answer that the start weights are asked about."""

    estimate: int
    """In a measurement on held-out questions, which comes with each estimate of the losses."""

    prompts: int
    """To choose questions once."""


def duration(work: Work, config: EvaluationConfig, speed: Speed | None, done: Sequence[EvaluationResult]) -> Duration:
    """Return how long `work` takes; the evaluations `done` already serve as the measure where there are any."""
    evaluation = _evaluation_seconds(work, config, speed, done)
    if speed is None:
        return Duration(
            training_seconds=None,
            validation_seconds=None,
            checkpoint_interval_seconds=None,
            evaluation_seconds=None if evaluation is None else evaluation * work.evaluations,
            evaluations=work.evaluations,
        )
    sampled, measured, prompts = _sampling_seconds(work.sampling, speed)
    step = _step_seconds(work, speed, sampled or 0.0)
    estimate = _estimate_seconds(work, config, speed, measured or 0.0)
    each = estimate or 0.0
    return Duration(
        training_seconds=work.steps * step + each * work.estimates,
        validation_seconds=None if estimate is None else each * work.estimates,
        sampling_seconds=None
        if sampled is None or measured is None
        else work.steps * sampled + measured * work.estimates,
        prompts_seconds=prompts,
        checkpoint_interval_seconds=min(work.steps, config.save_every_n_iterations) * (step + each / config.eval_freq),
        evaluation_seconds=None if evaluation is None else evaluation * work.evaluations,
        evaluations=work.evaluations,
    )


def _has_own_seconds(speed: Speed) -> bool:
    """Whether updates and estimates are timed as a whole, with the answers that are sampled for them."""
    return speed.source != "measured" and speed.update_seconds is not None


def _estimate_seconds(work: Work, config: EvaluationConfig, speed: Speed, sampled: float) -> float | None:
    if _has_own_seconds(speed):
        return speed.estimate_seconds
    tokens = min(config.eval_iters * work.batch_size * work.max_length, work.validation_tokens)
    return 1.5 * tokens / _reading_speed(speed) + sampled  # windows, and documents of half as many


def _step_seconds(work: Work, speed: Speed, sampled: float) -> float:
    if speed.update_seconds is not None and _has_own_seconds(speed):
        return speed.update_seconds
    asked = 0 if work.sampling is None else work.sampling.asked
    return work.tokens_per_step / speed.tokens_per_second + sampled + asked / _reading_speed(speed)


def _sampling_seconds(sampling: Sampling | None, speed: Speed) -> tuple[float | None, float | None, float | None]:
    """Return what sampling takes if no answer ends early: in an update, in an estimate, and once before."""
    rate = speed.sampling_tokens_per_second
    if sampling is None or rate is None:
        return None, None, None
    return sampling.update / rate, sampling.estimate / rate, sampling.prompts / rate


def _evaluation_seconds(
    work: Work, config: EvaluationConfig, speed: Speed | None, done: Sequence[EvaluationResult]
) -> float | None:
    """Return the seconds of one evaluation: reading validation tokens and documents, generating answers."""
    if done:
        return float(median(result.seconds for result in done))
    if speed is None or speed.writing_tokens_per_second is None:
        return None
    documents = config.num_documents * min(work.tokens_per_document, work.max_length)
    read = min(config.max_validation_tokens, work.validation_tokens) + documents
    answers = config.num_questions * (1 + config.samples_per_question)
    written = answers * min(config.max_new_tokens, work.max_length // 2)
    return read / _reading_speed(speed) + written / speed.writing_tokens_per_second


def _reading_speed(speed: Speed) -> float:
    return speed.reading_tokens_per_second or speed.tokens_per_second / _FORWARD_SHARE

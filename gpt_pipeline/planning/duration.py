"""The hours that a training and its evaluations take, from its length and a measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.planning.speed import Speed

_FORWARD_SHARE = 1 / 3  # of the FLOPs of an update: forward 2, backward 4 for each weight (see `flops_per_token`)


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds; None where nothing is known to tell it from."""

    training_seconds: float | None
    """All steps that are left, with the estimates of the validation loss, without the stalls of checkpoints."""

    validation_seconds: float | None
    """Of these, those of the estimates of the validation loss."""

    checkpoint_interval_seconds: float | None
    """Between two checkpoints: what a crash costs at the most."""

    evaluation_seconds: float | None
    """Of all evaluations that are left, roughly, on an otherwise idle device."""

    evaluations: int
    """That are left."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is left to do."""

    steps: int
    tokens_per_step: int
    max_length: int
    batch_size: int
    """As `training.batch_size` says: an estimate of the validation loss is on `eval_iters` times so many sequences."""

    validation_tokens: int
    tokens_per_document: float
    evaluations: int


def duration(work: Work, config: EvaluationConfig, speed: Speed | None, done: Sequence[EvaluationResult]) -> Duration:
    """Return how long `work` takes; evaluations go by those that are `done` where there are any."""
    evaluation = _evaluation_seconds(work, config, speed, done)
    if speed is None:
        return Duration(
            training_seconds=None,
            validation_seconds=None,
            checkpoint_interval_seconds=None,
            evaluation_seconds=None if evaluation is None else evaluation * work.evaluations,
            evaluations=work.evaluations,
        )
    step = work.tokens_per_step / speed.tokens_per_second
    tokens = min(config.eval_iters * work.batch_size * work.max_length, work.validation_tokens)
    each = tokens / _reading_speed(speed)
    validation = each * -(-work.steps // config.eval_freq)
    return Duration(
        training_seconds=work.steps * step + validation,
        validation_seconds=validation,
        checkpoint_interval_seconds=min(work.steps, config.save_every_n_iterations) * (step + each / config.eval_freq),
        evaluation_seconds=None if evaluation is None else evaluation * work.evaluations,
        evaluations=work.evaluations,
    )


def _evaluation_seconds(
    work: Work, config: EvaluationConfig, speed: Speed | None, done: Sequence[EvaluationResult]
) -> float | None:
    """Return the seconds of one evaluation: validation tokens and documents read, answers written."""
    if done:
        return float(median(result.seconds for result in done))
    if speed is None or speed.writing_tokens_per_second is None:
        return None
    documents = config.num_documents * min(work.tokens_per_document, work.max_length)
    read = min(config.max_validation_tokens, work.validation_tokens) + documents
    written = config.num_questions * min(config.max_new_tokens, work.max_length // 2)
    return read / _reading_speed(speed) + written / speed.writing_tokens_per_second


def _reading_speed(speed: Speed) -> float:
    return speed.reading_tokens_per_second or speed.tokens_per_second / _FORWARD_SHARE

"""Evaluate one checkpoint once: losses on held-out documents and answers to held-out questions.

Torch and the model are imported only to compute, so that a finished evaluation is found in milliseconds.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_key
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    evaluation_fingerprint,
    evaluation_identity,
    evaluation_path,
    exercise_names,
    find_evaluation,
    write_evaluation,
)
from gpt_pipeline.row import Row, Watch, drawn, has_terminal_alone, unwatched
from gpt_pipeline.shown import duration
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.storage.manifest import StageResult, utc_now

if TYPE_CHECKING:
    from gpt_pipeline.model.gpt import GPT

_TOKENS_AT_ONCE = 4096  # their logits take 0.8 GB in float32, and as much again while the loss is computed


class CheckpointGoneError(UserError):
    """The checkpoint was removed before it could be evaluated. Nothing is wrong; later ones are evaluated."""


class UnusableCheckpointError(UserError):
    """The checkpoint can be read, but its weights predict nothing: NaN or infinity among them."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Everything that decides an evaluation, and where it runs."""

    checkpoint: CheckpointInfo
    shards: StageResult
    documents: StageResult
    data: DataConfig
    config: EvaluationConfig
    max_length: int
    """Tokens of a training sequence."""

    device: str
    """`auto`, `cuda` or `cpu`."""

    folder: Path
    """Keeps the results, and the chosen questions and documents."""

    @property
    def fingerprint(self) -> str:
        return evaluation_fingerprint(
            self.config,
            weights_sha256=self.checkpoint.weights_sha256,
            shards_fingerprint=self.shards.fingerprint,
            max_length=self.max_length,
        )


def evaluate_checkpoint(task: EvaluationTask, *, force: bool = False) -> EvaluationResult:
    """Evaluate the checkpoint's weights and keep the result in the task's folder, or return the result kept there.

    Runs in float32. Meanwhile retention spares the checkpoint, and a second process that wants the same evaluation
    waits for the first and takes its result. `force` evaluates again.

    Raises:
        CheckpointGoneError: there is no such checkpoint, or no longer.
        DamagedFileError: the file is not what its manifest says.
        UnusableCheckpointError: its loss is not a number.
    """
    if not force and (kept := find_evaluation(task.folder, task.fingerprint)) is not None:
        return kept
    with _one_at_a_time(task.folder, task.fingerprint):
        if not force and (kept := find_evaluation(task.folder, task.fingerprint)) is not None:
            return kept
        result = _evaluate(task)
        write_evaluation(result)
    return result


@contextmanager
def _one_at_a_time(folder: Path, fingerprint: str) -> Iterator[None]:
    """Hold this evaluation's lock, waiting for another process that does the same."""
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with hold_lock(locks / f"{fingerprint[:SHORT]}.lock", wait_seconds=-1):
        yield


def _evaluate(task: EvaluationTask) -> EvaluationResult:
    started_at, start = utc_now(), time.monotonic()
    model, device = _load(task)
    with _on_terminal(task.checkpoint.path.name) as watch:
        metrics, answers = _measure(task, model, watch)
    key = checkpoint_key(task.checkpoint.step)
    return EvaluationResult(
        fingerprint=task.fingerprint,
        key=key,
        checkpoint=_checkpoint_record(task.checkpoint),
        config=evaluation_identity(task.config, max_length=task.max_length),
        upstream={"shards": task.shards.fingerprint, "english": task.documents.fingerprint},
        metrics=metrics,
        answers=tuple(answers),
        started_at=started_at,
        created_at=utc_now(),
        seconds=round(time.monotonic() - start, 3),
        device=device,
        versions=_versions(),
        path=evaluation_path(task.folder, key, task.fingerprint),
        reused=False,
    )


def _load(task: EvaluationTask) -> tuple[GPT, str]:
    """Return the checkpoint's model, verified, and the name of the device it is on."""
    import torch

    from gpt_pipeline.checkpoints.leases import hold
    from gpt_pipeline.checkpoints.load import load_model
    from gpt_pipeline.evaluation.generate import inference_device

    device = inference_device(task.device)
    path = task.checkpoint.path
    try:
        with hold(path):
            model, found = load_model(path, device=device)
    except (UserError, FileNotFoundError) as error:
        if path.is_file():
            raise
        raise CheckpointGoneError(f"{path} no longer exists; only the last checkpoints are kept") from error
    if found.weights_sha256 != task.checkpoint.weights_sha256:  # best_model.pt was replaced in between
        raise CheckpointGoneError(f"{path} now holds step {found.step}, no longer step {task.checkpoint.step}")
    return model, torch.cuda.get_device_name() if device == "cuda" else "cpu"


@contextmanager
def _on_terminal(checkpoint: str) -> Iterator[Callable[[str], Watch]]:
    """Yield what shows how far each part of the evaluation is; to nobody where there is no terminal for it."""
    title = f"evaluating {checkpoint}"
    if not has_terminal_alone(sys.stderr):
        yield lambda _: unwatched
        return
    with drawn(sys.stderr, Row(title=title)) as row:

        def watch(part: str) -> Watch:
            began = time.monotonic()

            def show(done: int, total: int) -> None:
                seconds = (time.monotonic() - began) / max(done, 1) * (total - done)
                details = (f"{duration(seconds)} left for them",) if done < total else ()
                amount = f"{part} {done:,}/{total:,}"
                row.show(Row(title=title, done=done, total=total, amount=amount, details=details))

            return show

        yield watch


def _measure(
    task: EvaluationTask, model: GPT, watch: Callable[[str], Watch]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the metrics by name and the answers as records."""
    from gpt_pipeline.data.tokens.stream import open_shards
    from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
    from gpt_pipeline.evaluation.answers import answer_metrics, answer_questions, as_record
    from gpt_pipeline.evaluation.document_loss import document_losses, loss_metrics
    from gpt_pipeline.evaluation.held_out import cached_choice
    from gpt_pipeline.evaluation.questions import cached_questions
    from gpt_pipeline.evaluation.validation import validation_loss

    stream, config, tokenizer = open_shards(task.shards.folder).validation, task.config, tokenizer_of(task.shards)
    loss = validation_loss(
        model,
        stream,
        tokenizer,
        sequence_length=task.max_length,
        max_tokens=config.max_validation_tokens,
        batch_size=max(1, _TOKENS_AT_ONCE // task.max_length),
        watch=watch("tokens"),
    )
    if not math.isfinite(loss.val_loss):
        raise UnusableCheckpointError(
            f"{task.checkpoint.path}: found a validation loss of {loss.val_loss}, need a finite number; "
            "go back to an earlier checkpoint and lower training.learning_rate"
        )
    # Beyond the length it was trained at, a model's position embeddings are still random.
    context = min(task.max_length, model.config.context_length)
    documents = cached_choice(
        task.folder / "documents", task.documents, task.data, count=config.num_documents, seed=config.seed
    )
    questions = cached_questions(
        task.folder / "questions", task.documents, task.data, count=config.num_questions, seed=config.seed
    )
    answers = answer_questions(
        model,
        questions,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        context_length=context,
        watch=watch("questions"),
    )
    losses = document_losses(
        model,
        stream,
        documents,
        context_length=context,
        in_answers=stream.in_spans if task.data.format == "chat" else None,  # a conversation has several answers
        watch=watch("documents"),
    )
    names = exercise_names([*(each.exercise for each in losses), *(each.exercise for each in questions)])
    metrics = {
        "val_loss": loss.val_loss,
        "perplexity": loss.perplexity,
        "val_bpb": loss.val_bpb,
        "validation_tokens": float(loss.n_tokens),
        **loss_metrics(losses, names, have_answers=has_questions(task.data)),
        **answer_metrics(answers, names),
    }
    return metrics, [as_record(answer, tokenizer) for answer in answers]


def _checkpoint_record(info: CheckpointInfo) -> dict[str, Any]:
    return {
        "file": info.path.name,
        "step": info.step,
        "tokens_seen": info.tokens_seen,
        "sha256": info.sha256,
        "weights_sha256": info.weights_sha256,
        "training_fingerprint": info.fingerprint,
        "created_at": info.created_at,
        "metrics": dict(info.metrics),
    }


def _versions() -> dict[str, str]:
    import torch

    return {"gpt_pipeline": __version__, "torch": torch.__version__, "python": platform.python_version()}

"""Evaluate one checkpoint once: losses on held-out documents, and what it writes: answers or continuations.

Torch and the model are imported only to compute, so that a finished evaluation is found in milliseconds.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.manifest import TOKENIZER, CheckpointInfo, checkpoint_key
from gpt_pipeline.data.config import GPT2, PLAIN, DataConfig
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.result import (
    BASE_LOSS,
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
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.lock import hold_lock, is_held
from gpt_pipeline.storage.manifest import StageResult, utc_now

if TYPE_CHECKING:
    from gpt_pipeline.data.tokens.stream import TokenStream
    from gpt_pipeline.data.tokens.tokenizer import Tokenizer
    from gpt_pipeline.evaluation.answers import ScoredAnswer
    from gpt_pipeline.evaluation.document_loss import DocumentLoss, InAnswers
    from gpt_pipeline.evaluation.validation import ValidationLoss
    from gpt_pipeline.model.language_model import LanguageModel

_LOCKS = "locks"
_SHARE_OF_DOCUMENTS = 0.25  # of max_validation_tokens, for each loss of documents by themselves
_TOKENS_AT_ONCE = 4096  # their logits take 0.8 GB in float32, and as much again while the loss is computed


class CheckpointGoneError(UserError):
    """The checkpoint was removed before it could be evaluated. Nothing is wrong; later ones are evaluated."""


class UnusableCheckpointError(UserError):
    """The checkpoint can be read, but predicts nothing here: NaN among its weights, or a model of other sequences."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedPart:
    """Data that is measured by itself."""

    name: str
    """Of the part of a mix; empty without one."""

    share: float
    """Of the training tokens, in (0, 1]."""

    shards: StageResult
    documents: StageResult
    data: DataConfig

    def kind_of(self, kind: str) -> str:
        """Return what the results call a kind of this part's documents."""
        if not self.name:
            return kind
        return self.name if kind == "unknown" else f"{self.name}: {kind}"


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Everything that decides an evaluation, and where it runs."""

    checkpoint: CheckpointInfo
    shards: StageResult
    """Those that the training reads."""

    parts: tuple[EvaluatedPart, ...]
    """What of the data is measured by itself: each part of a mix, or all of it."""

    config: EvaluationConfig
    max_length: int
    """Tokens of a training sequence."""

    device: str
    """As `hardware.device`."""

    folder: Path
    """Keeps the results, and the chosen questions and documents."""

    base: StageResult | None = None
    """Shards of the pretraining that the checkpoint goes on from, if others: what it may unlearn. None: they are the
    same, or not here. Not part of the fingerprint, so that removing them makes no evaluation outdated."""

    def count_of(self, part: EvaluatedPart, count: int) -> int:
        """Return how many of `count` documents or questions come from a part: of each one as many, but for rounding."""
        return even_counts(count, len(self.parts))[self.parts.index(part)]

    @property
    def fingerprint(self) -> str:
        return evaluation_fingerprint(
            self.config,
            weights_sha256=self.checkpoint.weights_sha256,
            shards_fingerprint=self.shards.fingerprint,
            max_length=self.max_length,
            parts={part.name: part.shards.fingerprint for part in self.parts if part.name},
        )


def even_counts(count: int, parts: int) -> list[int]:
    """Return how many of `count` each of `parts` gets: as many as the others, the first ones one more."""
    return [count // parts + (place < count % parts) for place in range(parts)]


def evaluate_checkpoint(task: EvaluationTask, *, force: bool = False) -> EvaluationResult:
    """Evaluate the checkpoint's weights and keep the result in the task's folder, or return the result kept there.

    Runs in float32. Meanwhile retention spares the checkpoint, and a second process that wants the same evaluation
    waits for the first and takes its result. `force` evaluates again.

    Raises:
        CheckpointGoneError: there is no such checkpoint, or no longer.
        DamagedFileError: the file is not what its manifest says.
        UnusableCheckpointError: its loss is not finite, or it has fewer positions than the data's sequences or another
            tokenizer than the data.
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
def _one_at_a_time(folder: Path, identity: str) -> Iterator[None]:
    """Hold this evaluation's lock, waiting for another process that does the same."""
    locks = folder / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with hold_lock(locks / f"{identity[:SHORT]}.lock", wait_seconds=-1):
        yield


def evaluation_is_under_way(folder: Path) -> bool:
    """Whether a process, of whichever project or machine, evaluates for the folder of results `folder` now."""
    return any(is_held(lock) for lock in (folder / _LOCKS).glob("*.lock"))


def _evaluate(task: EvaluationTask) -> EvaluationResult:
    started_at, start = utc_now(), time.monotonic()
    model, average, device = _load(task)
    with _on_terminal(task.checkpoint.path.name) as watch:
        metrics, answers, continuations = _measure(task, model, watch)
        if average is not None:
            metrics["averaged_val_loss"] = _loss(task, average, watch("tokens, mean weights"))
    key = checkpoint_key(task.checkpoint.step)
    return EvaluationResult(
        fingerprint=task.fingerprint,
        key=key,
        checkpoint=_checkpoint_record(task.checkpoint),
        config=evaluation_identity(task.config, max_length=task.max_length),
        upstream={"shards": task.shards.fingerprint, "english": _documents_fingerprint(task)},
        metrics=metrics,
        answers=tuple(answers),
        continuations=tuple(continuations),
        started_at=started_at,
        created_at=utc_now(),
        seconds=round(time.monotonic() - start, 3),
        device=device,
        versions=_versions(),
        path=evaluation_path(task.folder, key, task.fingerprint),
        reused=False,
    )


def _documents_fingerprint(task: EvaluationTask) -> str:
    documents = sorted(part.documents.fingerprint for part in task.parts)
    return documents[0] if len(documents) == 1 else fingerprint("mix", config={}, upstream=documents, code_version="1")


def _load(task: EvaluationTask) -> tuple[LanguageModel, LanguageModel | None, str]:
    """Return the checkpoint's model, verified, that of the mean of its weights, and the name of their device."""
    from gpt_pipeline.checkpoints.leases import hold
    from gpt_pipeline.checkpoints.load import load_with_average
    from gpt_pipeline.hardware import devices

    device = devices.choose_kind(task.device)
    path = task.checkpoint.path
    try:
        with hold(path):
            model, average, found = load_with_average(path, device=device)
    except (UserError, FileNotFoundError) as error:
        if path.is_file():
            raise
        raise CheckpointGoneError(f"{path} no longer exists; only the last checkpoints are kept") from error
    if found.weights_sha256 != task.checkpoint.weights_sha256:  # best_model.pt was replaced in between
        raise CheckpointGoneError(f"{path} now holds step {found.step}, no longer step {task.checkpoint.step}")
    _require_fit(task, found)
    return model, average, "cpu" if device == "cpu" else devices.name_of(device)


def _require_fit(task: EvaluationTask, found: CheckpointInfo) -> None:
    """Raise `UnusableCheckpointError` where the model cannot read the data's sequences, as of another experiment."""
    theirs, ours = found.settings.get(TOKENIZER) or GPT2, task.shards.manifest.facts.get("tokenizer") or GPT2
    length = found.model.context_length
    problem = ""
    if length < task.max_length:
        problem = f"found a model of {length} positions, need data.max_length={task.max_length} at least"
    elif theirs != ours:
        problem = f"found a model of the tokenizer {theirs}, need that of the data, {ours}"
    if problem:
        raise UnusableCheckpointError(
            f"{task.checkpoint.path}: {problem}; move it to the folder of an experiment that it fits"
        )


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
    task: EvaluationTask, model: LanguageModel, watch: Callable[[str], Watch]
) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the metrics by name, and the answers and the continuations as records."""
    from gpt_pipeline.data.tokens.tokenizer import common_tokenizer
    from gpt_pipeline.evaluation.answers import answer_metrics, as_record
    from gpt_pipeline.evaluation.document_loss import loss_metrics
    from gpt_pipeline.evaluation.validation import mixed_loss

    measured = [_measure_part(task, part, model, watch) for part in task.parts]
    loss = mixed_loss([each.loss for each in measured], [each.part.share for each in measured])
    answers = [answer for each in measured for answer in each.answers]
    of_texts, of_questions = (
        [loss for each in measured if has_questions(each.part.data) == asked for loss in each.documents]
        for asked in (False, True)
    )
    names = exercise_names(
        [
            *(each.exercise for each in (*of_texts, *of_questions)),
            *(each.question.exercise for each in answers),
            *(each.part.name for each in measured if each.part.name),
        ]
    )
    of_documents = [loss_metrics(of_texts, names, have_answers=False), loss_metrics(of_questions, names)]
    both = {name: sum(each[name] for each in of_documents) for name in set(of_documents[0]) & set(of_documents[1])}
    metrics = {
        "val_loss": loss.val_loss,
        "perplexity": loss.perplexity,
        "val_bpb": loss.val_bpb,
        "validation_tokens": float(loss.n_tokens),
        **of_documents[0],
        **of_documents[1],
        **both,
        **answer_metrics(answers, names),
        **_losses_by_part(measured, names),
        **_together(measured, "document_loss"),
        **_together(measured, "completion_loss"),
        **_loss_on_base(task, model, watch("the base's tokens")),
    }
    tokenizer = common_tokenizer([part.shards for part in task.parts])
    continuations = [continuation for each in measured for continuation in each.continuations]
    return metrics, [as_record(answer, tokenizer) for answer in answers], continuations


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was measured on one part of the data."""

    part: EvaluatedPart
    loss: ValidationLoss
    packed: Mapping[str, float]
    """Losses of documents by themselves, by name."""

    documents: Sequence[DocumentLoss]
    answers: Sequence[ScoredAnswer]
    continuations: Sequence[dict[str, Any]]


def _measure_part(
    task: EvaluationTask, part: EvaluatedPart, model: LanguageModel, watch: Callable[[str], Watch]
) -> _Measured:
    from gpt_pipeline.data.tokens.stream import open_shards
    from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
    from gpt_pipeline.evaluation.continuations import continue_documents
    from gpt_pipeline.evaluation.document_loss import document_losses
    from gpt_pipeline.evaluation.held_out import NO_DOCUMENTS, cached_choice

    stream, config, tokenizer = open_shards(part.shards.folder).validation, task.config, tokenizer_of(part.shards)
    loss = _loss_of_part(task, part, model, watch("tokens"))
    if not math.isfinite(loss.val_loss):
        raise UnusableCheckpointError(
            f"{task.checkpoint.path}: found a validation loss of {loss.val_loss}, need a finite number; "
            "go back to an earlier checkpoint and lower training.learning_rate"
        )
    # Beyond the length it was trained at, a model's position embeddings are still random.
    context = min(task.max_length, model.config.context_length)
    ask, n_questions = has_questions(part.data), task.count_of(part, config.num_questions)
    choose = partial(cached_choice, task.folder / "documents", part.documents, part.data, seed=config.seed)
    # One by one, only kinds and answers are measured.
    is_measured = ask or part.data.kind is not None
    documents = choose(count=task.count_of(part, config.num_documents)) if is_measured else NO_DOCUMENTS
    answers = _answers_of_part(task, part, model, tokenizer, count=n_questions, context=context, watch=watch)
    continuations = continue_documents(
        model,
        stream,
        NO_DOCUMENTS if ask else choose(count=n_questions),
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        context_length=context,
        watch=watch("continuations"),
    )
    losses = document_losses(
        model,
        stream,
        documents,
        context_length=context,
        in_answers=_answers_in(stream, part.data),
        watch=watch("documents"),
    )
    return _Measured(
        part=part,
        loss=loss,
        packed=_losses_of_documents(task, part, model, stream, watch),
        documents=[replace(each, exercise=part.kind_of(each.exercise)) for each in losses],
        answers=[
            replace(each, question=replace(each.question, exercise=part.kind_of(each.question.exercise)))
            for each in answers
        ],
        continuations=[{**each, "kind": part.kind_of(each["kind"])} for each in continuations],
    )


def _answers_of_part(
    task: EvaluationTask,
    part: EvaluatedPart,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    count: int,
    context: int,
    watch: Callable[[str], Watch],
) -> list[ScoredAnswer]:
    """Have the model answer `count` held-out questions of the part; it sees at most `context` tokens at once."""
    from gpt_pipeline.evaluation.answers import answer_questions, with_samples
    from gpt_pipeline.evaluation.questions import cached_questions
    from gpt_pipeline.evaluation.sampling import Sampling

    config = task.config
    questions = cached_questions(task.folder / "questions", part.documents, part.data, count=count, seed=config.seed)
    answers = answer_questions(
        model,
        questions,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        context_length=context,
        watch=watch("questions"),
    )
    if config.samples_per_question:
        answers = with_samples(
            answers,
            model,
            tokenizer,
            samples=config.samples_per_question,
            sampling=Sampling(temperature=config.sample_temperature),
            seed=config.seed,
            max_new_tokens=config.max_new_tokens,
            context_length=context,
            watch=watch("samples"),
        )
    return answers


def _answers_in(stream: TokenStream, data: DataConfig) -> InAnswers | None:
    """Return what tells which tokens are answers; None: all from where a document's answer begins."""
    from gpt_pipeline.evaluation.document_loss import in_last_part

    if data.format == "chat":  # a conversation has several answers
        return stream.in_spans
    if data.template == PLAIN:
        return None
    in_last = in_last_part(stream)
    return lambda positions: in_last(positions) & stream.in_spans(positions)  # without what follows the end


def _losses_of_documents(
    task: EvaluationTask,
    part: EvaluatedPart,
    model: LanguageModel,
    stream: TokenStream,
    watch: Callable[[str], Watch],
) -> dict[str, float]:
    """Return the losses that a training on whole documents, or on answers alone, brings down."""
    from gpt_pipeline.evaluation.validation import packed_losses

    return packed_losses(
        model,
        stream,
        row_length=task.max_length,
        max_tokens=max(1, round(task.config.max_validation_tokens * part.share * _SHARE_OF_DOCUMENTS)),
        batch_size=max(1, _TOKENS_AT_ONCE // task.max_length),
        answers_too=has_questions(part.data) and stream.has_spans,
        watch=watch("tokens of documents"),
    )


def _together(measured: Sequence[_Measured], name: str) -> dict[str, float]:
    """Return such a loss of all parts that have it, each by its share of the training tokens."""
    having = [each for each in measured if name in each.packed]
    total = sum(each.part.share for each in having)
    return {name: sum(each.part.share * each.packed[name] for each in having) / total} if having else {}


def _losses_by_part(measured: Sequence[_Measured], names: Mapping[str, str]) -> dict[str, float]:
    """Return the validation loss of each part of a mix; nothing without one.

    It is that of the part's held-out tokens, as `val_loss` is, also where the part's documents are of no kinds and were
    measured one by one.
    """
    if len(measured) == 1:
        return {}
    return {f"val_loss/{names[each.part.name]}": each.loss.val_loss for each in measured}


def _loss(task: EvaluationTask, model: LanguageModel, watch: Watch) -> float:
    """Return the validation loss."""
    from gpt_pipeline.evaluation.validation import mixed_loss

    losses = [_loss_of_part(task, part, model, watch) for part in task.parts]
    return mixed_loss(losses, [part.share for part in task.parts]).val_loss


def _loss_of_part(task: EvaluationTask, part: EvaluatedPart, model: LanguageModel, watch: Watch) -> ValidationLoss:
    from gpt_pipeline.data.tokens.stream import open_shards
    from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
    from gpt_pipeline.evaluation.validation import validation_loss

    return validation_loss(
        model,
        open_shards(part.shards.folder).validation,
        tokenizer_of(part.shards),
        sequence_length=task.max_length,
        max_tokens=max(1, round(task.config.max_validation_tokens * part.share)),
        batch_size=max(1, _TOKENS_AT_ONCE // task.max_length),
        watch=watch,
    )


def _loss_on_base(task: EvaluationTask, model: LanguageModel, watch: Watch) -> dict[str, float]:
    """Return the validation loss on what the pretraining held out; nothing where `val_loss` is that."""
    from gpt_pipeline.data.tokens.stream import open_shards
    from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
    from gpt_pipeline.evaluation.validation import validation_loss

    if task.base is None:
        return {}
    loss = validation_loss(
        model,
        open_shards(task.base.folder).validation,
        tokenizer_of(task.base),
        sequence_length=task.max_length,
        max_tokens=task.config.max_validation_tokens,
        batch_size=max(1, _TOKENS_AT_ONCE // task.max_length),
        watch=watch,
    )
    return {BASE_LOSS: loss.val_loss}


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

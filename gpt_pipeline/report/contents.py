"""What the report shows, read from an experiment's folder. Whatever does not exist yet is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, list_checkpoints
from gpt_pipeline.data.config import STREAM
from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    question_id,
    rank_of,
    ranking_metric,
    read_evaluations,
    same_answers,
    same_losses,
    same_samples,
)
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.report.cost import Cost, Record, cost_of
from gpt_pipeline.report.metrics import Metric
from gpt_pipeline.storage.atomic import read_kept
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.config import deciding_loss
from gpt_pipeline.training.metrics import read_metrics

_COLUMNS_SIDE_BY_SIDE = 4
_TEXTS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """One checkpoint: what is on disk and how it was evaluated."""

    step: int
    tokens_seen: int | None
    train_loss: float | None
    on_disk: bool
    evaluation: EvaluationResult | None
    comparable: bool
    """Whether its loss compares with that of the newest evaluation."""

    same_questions: bool
    """Whether its answers compare with those of the newest evaluation too."""

    same_samples: bool
    """Whether its drawn answers do so as well."""

    best: bool
    """Whether it ranks first of all comparable evaluations."""

    is_best_model: bool
    """Whether `best_model.pt` is of this step: the best by the trainer's estimates, on fewer tokens."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of its evaluation; empty if there is none."""
        return {} if self.evaluation is None else self.evaluation.metrics

    def result_of(self, metric: Metric) -> EvaluationResult | None:
        """Return its evaluation if this metric of it compares with that of the newest one."""
        if metric.of_samples:
            return self.evaluation if self.same_samples else None
        return self.evaluation if (self.same_questions if metric.of_answers else self.comparable) else None


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """What one checkpoint wrote: its answer to a question, or its continuation of a document."""

    step: int
    best: bool
    written: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One question, or one document that was begun, with what several checkpoints wrote."""

    number: int
    given: Mapping[str, Any]
    columns: tuple[TextColumn, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that the page shows of an experiment."""

    ranked_by: str
    """The metric by which `best` is the best of the evaluated checkpoints."""

    records: Sequence[Record]
    training: Record | None
    """`training.json`, once training is finished."""

    job: Record | None
    """What the trainer was asked to do."""

    cost: Cost

    rows: tuple[CheckpointRow, ...]
    """By step."""

    questions: tuple[TextRow, ...]
    num_questions: int
    """Asked in all; `questions` are the first of them."""

    continuations: tuple[TextRow, ...]
    """The first of the held-out documents that were begun."""

    num_continuations: int

    @property
    def vocab_size(self) -> int:
        """Tokens that the model chooses among."""
        return int(((self.job or {}).get("model") or {}).get("vocab_size", ModelConfig().vocab_size))

    def last(self, kind: str) -> Record | None:
        """Return the newest record of a kind."""
        return next((record for record in reversed(self.records) if record["kind"] == kind), None)

    @property
    def evaluated(self) -> tuple[CheckpointRow, ...]:
        """The rows whose losses can be compared with each other, by step."""
        return tuple(row for row in self.rows if row.comparable)

    @property
    def answered(self) -> tuple[CheckpointRow, ...]:
        """Those of them that answered the same questions, by step."""
        return tuple(row for row in self.rows if row.same_questions)

    @property
    def best(self) -> CheckpointRow | None:
        return next((row for row in self.rows if row.best), None)

    @property
    def newest(self) -> CheckpointRow | None:
        """The last checkpoint that answered the questions."""
        return self.answered[-1] if self.answered else None


def read_contents(folder: ExperimentFolder) -> Contents:
    """Return what is in the experiment's folder now."""
    records = read_metrics(folder.metrics)
    training, job = _json_or_none(folder.training), _json_or_none(folder.job)
    evaluations = {result.step: result for result in read_evaluations(folder.evaluations)}  # the newest of each step
    rows, ranked_by = _rows(
        best_checkpoint(folder.checkpoints),
        list_checkpoints(folder.checkpoints),
        evaluations,
        records,
        decides=_deciding_loss(job or {}),
    )
    questions = _side_by_side(rows, lambda result: result.answers, question_id)
    continuations = _side_by_side(rows, lambda result: result.continuations, _document_of)
    return Contents(
        ranked_by=ranked_by,
        records=records,
        training=training,
        job=job,
        cost=cost_of(
            records,
            checkpoints=folder.checkpoints,
            hardware=(job or {}).get("hardware") or {},
            evaluation_seconds=sum(row.evaluation.seconds for row in rows if row.evaluation is not None),
        ),
        rows=rows,
        questions=questions[:_TEXTS_SHOWN],
        num_questions=len(questions),
        continuations=continuations[:_TEXTS_SHOWN],
        num_continuations=len(continuations),
    )


def _deciding_loss(job: Record) -> str:
    training = job.get("training")
    objective = training.get("objective", "pretrain") if isinstance(training, dict) else "pretrain"
    return deciding_loss(objective, str(job.get("packing", STREAM)))


def _document_of(continuation: Record) -> tuple[Any, Any]:
    """Return what tells a document from others; each part of a mix counts its own, and has kinds of its own."""
    return continuation.get("kind"), continuation.get("document")


def _json_or_none(path: Path) -> Record | None:
    return read_kept(path, lambda value: value if isinstance(value, dict) else None, otherwise="the report lacks it")


def _rows(
    best_model: CheckpointInfo | None,
    kept: Sequence[CheckpointInfo],
    evaluations: Mapping[int, EvaluationResult],
    records: Sequence[Record],
    *,
    decides: str,
) -> tuple[tuple[CheckpointRow, ...], str]:
    """Return the rows, and the metric by which one of them is the best; `decides` is what the trainer went by."""
    checkpoints = {info.step: info for info in (*([best_model] if best_model else []), *kept)}
    said = {int(record["step"]): record for record in records if record["kind"] == "checkpoint"}
    newest = max(evaluations.values(), key=lambda result: result.created_at, default=None)
    comparable = {step for step, result in evaluations.items() if newest is not None and same_losses(result, newest)}
    same_questions = {step for step in comparable if newest is not None and same_answers(evaluations[step], newest)}
    drawn_alike = {step for step in comparable if newest is not None and same_samples(evaluations[step], newest)}
    metric = ranking_metric([evaluations[step] for step in comparable], decides)
    best = min(comparable, key=lambda step: (rank_of(evaluations[step], metric), step), default=None)
    rows = []
    for step in sorted({*checkpoints, *evaluations, *said}):
        info, result, record = checkpoints.get(step), evaluations.get(step), said.get(step, {})
        evaluated = result.checkpoint if result else {}
        train_losses = [
            each.get("train_loss") for each in (info.metrics if info else {}, evaluated.get("metrics", {}), record)
        ]
        rows.append(
            CheckpointRow(
                step=step,
                tokens_seen=info.tokens_seen if info else (evaluated or record).get("tokens_seen"),
                train_loss=next((loss for loss in train_losses if loss is not None), None),
                on_disk=info is not None,
                evaluation=result,
                comparable=step in comparable,
                same_questions=step in same_questions,
                same_samples=step in drawn_alike,
                best=step == best,
                is_best_model=best_model is not None and best_model.step == step,
            )
        )
    return tuple(rows), metric


def _side_by_side(
    rows: Sequence[CheckpointRow],
    texts_of: Callable[[EvaluationResult], Sequence[Record]],
    identity: Callable[[Record], Any],
) -> tuple[TextRow, ...]:
    """Return what the newest evaluation asked or began, with what a few checkpoints from first to last wrote."""
    written = {row.step: texts for row in rows if row.evaluation and (texts := texts_of(row.evaluation))}
    chosen = spread([row for row in rows if row.same_questions and row.step in written])
    result = []
    for number, given in enumerate(written[chosen[-1].step] if chosen else (), start=1):
        columns = tuple(
            TextColumn(
                step=row.step,
                best=row.best,
                written=next((each for each in written[row.step] if identity(each) == identity(given)), None),
            )
            for row in chosen
        )
        result.append(TextRow(number=number, given=given, columns=columns))
    return tuple(result)


def spread(rows: Sequence[CheckpointRow]) -> list[CheckpointRow]:
    """Return the first and the last row, the best, and others evenly between: as many as stand side by side."""
    count = min(len(rows), _COLUMNS_SIDE_BY_SIDE)
    places = {round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)}
    best = next((place for place, row in enumerate(rows) if row.best), None)
    if best is not None and best not in places:
        nearest = min((place for place in places if 0 < place < len(rows) - 1), key=lambda place: abs(place - best))
        places = {*places, best} - {nearest}
    return [rows[place] for place in sorted(places)]

"""What the report shows, read from an experiment's folder. Whatever is not there yet is simply absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, list_checkpoints
from gpt_pipeline.evaluation.result import EvaluationResult, read_evaluations, same_test
from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.metrics import read_metrics

Record = Mapping[str, Any]

_COLUMNS_SIDE_BY_SIDE = 4
_QUESTIONS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """One checkpoint: what is on disk and what was found of it."""

    step: int
    tokens_seen: int | None
    train_loss: float | None
    on_disk: bool
    evaluation: EvaluationResult | None
    comparable: bool
    """False when it was evaluated with other questions or settings than the newest one."""

    best: bool
    """Lowest validation loss of all comparable evaluations."""

    is_best_model: bool
    """Its weights are those of `best_model.pt`: the lowest estimate of the trainer, on fewer tokens."""


@dataclass(frozen=True, kw_only=True)
class AnswerColumn:
    """What one checkpoint wrote to one question."""

    step: int
    best: bool
    answer: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    """One question with the answers of several checkpoints."""

    number: int
    question: Mapping[str, Any]
    columns: tuple[AnswerColumn, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that the page shows of an experiment."""

    records: Sequence[Record]
    training: Record | None
    """`training.json`, once training is finished."""

    job: Record | None
    """What the trainer was asked to do."""

    rows: tuple[CheckpointRow, ...]
    """By step."""

    questions: tuple[QuestionRow, ...]
    num_questions: int
    """Asked in all; `questions` are the first of them."""

    def last(self, kind: str) -> Record | None:
        """Return the newest record of a kind."""
        return next((record for record in reversed(self.records) if record["kind"] == kind), None)

    @property
    def evaluated(self) -> tuple[CheckpointRow, ...]:
        """The rows whose evaluations can be compared with each other, by step."""
        return tuple(row for row in self.rows if row.evaluation is not None and row.comparable)

    @property
    def best(self) -> CheckpointRow | None:
        return next((row for row in self.rows if row.best), None)

    @property
    def newest(self) -> CheckpointRow | None:
        """The newest evaluated checkpoint."""
        return self.evaluated[-1] if self.evaluated else None


def read_contents(folder: ExperimentFolder) -> Contents:
    """Return what is in the experiment's folder now."""
    records = read_metrics(folder.metrics)
    training, job = _json_or_none(folder.training), _json_or_none(folder.job)
    evaluations = _newest_of_each_step(read_evaluations(folder.evaluations))
    rows = _rows(best_checkpoint(folder.checkpoints), list_checkpoints(folder.checkpoints), evaluations, records)
    questions = _questions(rows)
    return Contents(
        records=records,
        training=training,
        job=job,
        rows=rows,
        questions=questions[:_QUESTIONS_SHOWN],
        num_questions=len(questions),
    )


def _json_or_none(path: Path) -> Record | None:
    try:
        value = read_json(path)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _newest_of_each_step(evaluations: Sequence[EvaluationResult]) -> dict[int, EvaluationResult]:
    return {result.step: result for result in evaluations}  # sorted by step, then by time


def _rows(
    best_model: CheckpointInfo | None,
    kept: Sequence[CheckpointInfo],
    evaluations: Mapping[int, EvaluationResult],
    records: Sequence[Record],
) -> tuple[CheckpointRow, ...]:
    checkpoints = {info.step: info for info in (*([best_model] if best_model else []), *kept)}
    said = {int(record["step"]): record for record in records if record["kind"] == "checkpoint"}
    newest = max(evaluations.values(), key=lambda result: result.created_at, default=None)
    comparable = {step for step, result in evaluations.items() if newest is not None and same_test(result, newest)}
    best = min(comparable, key=lambda step: evaluations[step].metrics["val_loss"], default=None)
    rows = []
    for step in sorted({*checkpoints, *evaluations, *said}):
        info, result, record = checkpoints.get(step), evaluations.get(step), said.get(step, {})
        seen: Callable[[str], Any] = _first_of(info.metrics if info else {}, _evaluated_metrics(result), record)
        rows.append(
            CheckpointRow(
                step=step,
                tokens_seen=info.tokens_seen if info else _tokens_seen(result, record),
                train_loss=seen("train_loss"),
                on_disk=info is not None,
                evaluation=result,
                comparable=step in comparable,
                best=step == best,
                is_best_model=best_model is not None and best_model.step == step,
            )
        )
    return tuple(rows)


def _evaluated_metrics(result: EvaluationResult | None) -> Record:
    metrics: Record = result.checkpoint.get("metrics", {}) if result else {}
    return metrics


def _tokens_seen(result: EvaluationResult | None, record: Record) -> int | None:
    tokens: int | None = (result.checkpoint if result else record).get("tokens_seen")
    return tokens


def _first_of(*sources: Record) -> Callable[[str], Any]:
    """Return a function that gives a key's first value that is there."""
    return lambda key: next((source[key] for source in sources if source.get(key) is not None), None)


def _questions(rows: Sequence[CheckpointRow]) -> tuple[QuestionRow, ...]:
    """Return the questions of the newest evaluation with the answers of a few checkpoints from first to last."""
    evaluated = [row for row in rows if row.evaluation is not None and row.comparable]
    if not evaluated or evaluated[-1].evaluation is None:
        return ()
    chosen = spread(evaluated)
    result = []
    for number, question in enumerate(evaluated[-1].evaluation.answers, start=1):
        columns = tuple(
            AnswerColumn(step=row.step, best=row.best, answer=_answer_to(question, row.evaluation)) for row in chosen
        )
        result.append(QuestionRow(number=number, question=question, columns=columns))
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


def _answer_to(question: Record, evaluation: EvaluationResult | None) -> Record | None:
    answers = evaluation.answers if evaluation else ()
    wanted = (question["synth_id"], question["question"])
    return next((answer for answer in answers if (answer["synth_id"], answer["question"]) == wanted), None)

"""Tables of checkpoints: by kind for the report, and in a few columns of markdown for other pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_pipeline.evaluation.shares import right_by_kind
from gpt_pipeline.report import wording
from gpt_pipeline.report.contents import CheckpointRow, read_contents, spread
from gpt_pipeline.report.metrics import Metric, measured
from gpt_pipeline.sheet import Line, markdown_table
from gpt_pipeline.storage.layout import ExperimentFolder

_COLUMNS = ("val_loss", "val_bpb", "answer_loss", "well_formed", "correct", "choice_match", "token_f1")
_LOSS, _RIGHT = "val_loss", "correct"


@dataclass(frozen=True, kw_only=True)
class KindCell:
    """One checkpoint at one kind."""

    val_loss: float | None
    right: str
    """Share of its questions answered right, with its interval; empty where none was asked."""


@dataclass(frozen=True, kw_only=True)
class KindTable:
    """Kinds of documents by name, each with a cell per checkpoint."""

    steps: tuple[int, ...]
    rows: tuple[tuple[str, tuple[KindCell, ...]], ...]


def kind_table(evaluated: Sequence[CheckpointRow]) -> KindTable | None:
    """Return losses and right answers by kind for a few evaluated checkpoints; None if there are none."""
    chosen = spread(evaluated)
    names = sorted({key.partition("/")[2] for row in chosen for key in row.metrics if key.startswith(f"{_LOSS}/")})
    if not names:
        return None
    rows = tuple((name.replace("_", " "), tuple(_kind_cell(row, name) for row in chosen)) for name in names)
    return KindTable(steps=tuple(row.step for row in chosen), rows=rows)


def checkpoints_as_markdown(folder: ExperimentFolder) -> str:
    """Return the evaluated checkpoints of the experiment in `folder` by step, the best in bold."""
    contents = read_contents(folder)
    evaluated = contents.evaluated
    if not evaluated:
        return "No checkpoint is evaluated yet."
    metrics = [
        metric for metric in measured(row.metrics for row in evaluated) if metric.key in (*_COLUMNS, contents.ranked_by)
    ]
    heads = ["step", "tokens", *(metric.label for metric in metrics)]
    return markdown_table(heads, [_cells(row, metrics) for row in evaluated])


def _kind_cell(row: CheckpointRow, name: str) -> KindCell:
    return KindCell(val_loss=row.metrics.get(f"{_LOSS}/{name}"), right=_right(row, name))


def _right(row: CheckpointRow, name: str) -> str:
    value = row.metrics.get(f"{_RIGHT}/{name}")
    if row.evaluation is None or not row.same_questions or value is None:
        return ""
    share = right_by_kind(row.evaluation).get(name)
    return wording.percent(value) if share is None else str(share)


def _cells(row: CheckpointRow, metrics: Sequence[Metric]) -> Line:
    step = f"{wording.number(row.step)} best_model" if row.is_best_model else wording.number(row.step)
    cells = [step, wording.count(row.tokens_seen), *(metric.text(row.result_of(metric)) for metric in metrics)]
    return [(cell, "bold") if row.best else cell for cell in cells]

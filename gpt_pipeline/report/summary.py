"""The table of checkpoints in a few columns, as markdown, for pages that are not ours."""

from __future__ import annotations

from gpt_pipeline.report import wording
from gpt_pipeline.report.contents import CheckpointRow, read_contents
from gpt_pipeline.report.metrics import METRICS, Metric
from gpt_pipeline.storage.layout import ExperimentFolder

_COLUMNS = ("val_loss", "val_bpb", "answer_loss", "well_formed", "correct", "choice_match", "token_f1")


def checkpoints_as_markdown(folder: ExperimentFolder) -> str:
    """Return the evaluated checkpoints of the experiment in `folder`, by step; the best in bold."""
    evaluated = read_contents(folder).evaluated
    if not evaluated:
        return "No checkpoint is evaluated yet."
    metrics = [metric for metric in METRICS if metric.key in _COLUMNS and _is_measured(metric, evaluated)]
    heads = ["step", "tokens", *(metric.label for metric in metrics)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    return "\n".join([*lines, *(_line(row, metrics) for row in evaluated)])


def _line(row: CheckpointRow, metrics: list[Metric]) -> str:
    step = f"{wording.number(row.step)} best_model" if row.is_best_model else wording.number(row.step)
    cells = [step, wording.count(row.tokens_seen), *(_cell(row, metric) for metric in metrics)]
    return "| " + " | ".join(f"**{cell}**" if row.best else cell for cell in cells) + " |"


def _cell(row: CheckpointRow, metric: Metric) -> str:
    value = row.evaluation.metrics.get(metric.key) if row.evaluation is not None else None
    return wording.percent(value) if metric.share else wording.decimal(value, metric.places)


def _is_measured(metric: Metric, rows: tuple[CheckpointRow, ...]) -> bool:
    return any(row.evaluation is not None and metric.key in row.evaluation.metrics for row in rows)

"""A comparison to read: experiments as columns, figures as rows; and their losses in one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.comparison.compare import Comparison, Reached, Standing
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import INSET_HEIGHT, INSET_WIDTH, Chart, Series, draw_standalone, points_of
from gpt_pipeline.report.metrics import METRICS, Metric
from gpt_pipeline.sheet import Line, Sheet, markdown_table
from gpt_pipeline.shown import in_markdown
from gpt_pipeline.training.metrics import read_metrics

_COSTLY = "cost"
_CURVES = 4  # as many colours as can be told apart
_MARK = "*"  # before a value that is the best of its row


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of every experiment."""

    section: str
    label: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Places of the best cells; empty where nothing is better, or nothing can be compared."""


def rows_of(comparison: Comparison) -> list[Row]:
    """Return the figures as rows; what no experiment has is left out."""
    rows = [
        _row(comparison, "", "status", lambda standing: standing.status),
        _row(comparison, "", "rank", lambda standing: wording.number(standing.rank)),
        *_checkpoint_rows(comparison),
        *_cost_rows(comparison),
        *(
            Row(section="config", label=each.key, cells=tuple(wording.setting(value) for value in each.values))
            for each in comparison.differences
        ),
    ]
    return [row for row in rows if any(cell != wording.NOTHING for cell in row.cells)]


def notes_of(comparison: Comparison) -> list[str]:
    """Return what a reader must know before comparing, one sentence each."""
    notes = [f"Not comparable, so not ranked: {each}." for each in comparison.obstacles]
    notes += [f"Answers are not comparable: {each}." for each in comparison.answer_obstacles]
    if waiting := [standing.name for standing in comparison.standings if standing.best is None]:
        notes.append(f"Without an evaluation, so not ranked: {', '.join(waiting)}.")
    if any(standing.rank for standing in comparison.standings):
        notes.append("Ranked by the lowest validation loss of any checkpoint.")
    return notes


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return the comparison as columns; the best of a row is marked by a `*`, and by its colour."""
    names = [(standing.name, "bold") for standing in comparison.standings]
    rows: list[Line] = [("", "", *names)]
    for row in rows_of(comparison):
        cells = [(f"{_MARK}{cell}", "bold green") if n in row.best else cell for n, cell in enumerate(row.cells)]
        rows.append(((row.section, "dim"), row.label, *cells))
    notes = [[(note, "yellow" if note.startswith(("Not", "Answers")) else "")] for note in notes_of(comparison)]
    return [Sheet(rows=rows, numbers_from=2, closing=notes)]


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a markdown table; the best of a row is bold."""
    rows: list[Line] = []
    for row in rows_of(comparison):
        label = f"{row.section} · {row.label}" if row.section else row.label
        rows.append([label, *((cell, "bold") if n in row.best else cell for n, cell in enumerate(row.cells))])
    table = markdown_table(["", *(standing.name for standing in comparison.standings)], rows)
    return "\n".join([table, "", *(f"- {in_markdown(note)}" for note in notes_of(comparison))])


def losses_svg(experiments: Sequence[Experiment]) -> str:
    """Return the trainers' validation loss against tokens seen, of the first four experiments that have any, as SVG.

    Give them in the order of a comparison: the best stand first.
    """
    curves: list[Series] = []
    for experiment in experiments:
        points = points_of(read_metrics(experiment.folder.metrics), "validation", "tokens_seen", "val_loss")
        if points and len(curves) < _CURVES:
            curves.append(Series(name=experiment.name, points=points, colour=len(curves) + 1))
    chart = Chart(
        title="Validation loss in nats per token against training tokens",
        x_label="training tokens",
        y_label="nats per token",
        series=tuple(curves),
        width=INSET_WIDTH,
        height=INSET_HEIGHT,
    )
    return draw_standalone(chart)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values, with figures in full."""
    return {
        "comparable": not comparison.obstacles,
        "answers_comparable": not comparison.obstacles and not comparison.answer_obstacles,
        "obstacles": list(comparison.obstacles),
        "answer_obstacles": list(comparison.answer_obstacles),
        "experiments": [dataclasses.asdict(standing) for standing in comparison.standings],
        "differences": {each.key: list(each.values) for each in comparison.differences},
    }


def _checkpoint_rows(comparison: Comparison) -> Iterable[Row]:
    """Return the rows of the best and of the last checkpoints, once where each experiment's last is its best."""
    if all(standing.best == standing.last for standing in comparison.standings):
        return _reached_rows(comparison, "best = last", lambda standing: standing.best)
    return [
        *_reached_rows(comparison, "best", lambda standing: standing.best),
        *_reached_rows(comparison, "last", lambda standing: standing.last),
    ]


def _reached_rows(comparison: Comparison, section: str, of: Callable[[Standing], Reached | None]) -> Iterable[Row]:
    def cell(show: Callable[[Reached], str]) -> Callable[[Standing], str]:
        return lambda standing: wording.NOTHING if (reached := of(standing)) is None else show(reached)

    yield _row(comparison, section, "step", cell(lambda reached: wording.number(reached.step)))
    yield _row(comparison, section, "tokens", cell(lambda reached: wording.count(reached.tokens_seen)))
    yield _row(comparison, section, "time", cell(lambda reached: wording.duration(reached.seconds)))
    for metric in METRICS:
        values = [reached.metrics.get(metric.key) if (reached := of(each)) else None for each in comparison.standings]
        yield Row(
            section=section,
            label=metric.label,
            cells=tuple(metric.text(value) for value in values),
            best=_best_places(metric, values) if _may_rank(comparison, metric) else frozenset(),
        )


def _cost_rows(comparison: Comparison) -> Iterable[Row]:
    def row(label: str, show: Callable[[Standing], str]) -> Row:
        return _row(comparison, _COSTLY, label, show)

    yield row("parameters", lambda standing: wording.count(standing.parameters))
    yield row("tokens", lambda standing: wording.count(standing.cost.tokens_seen))
    yield row("time", lambda standing: wording.duration(standing.cost.seconds))
    yield row("tokens/s", lambda standing: wording.count(standing.cost.tokens_per_second))
    yield row("GPU hours", lambda standing: wording.decimal(standing.cost.gpu_hours, 2))
    yield row("memory GB", lambda standing: wording.decimal(standing.cost.memory_gb, 2))


def _row(comparison: Comparison, section: str, label: str, show: Callable[[Standing], str]) -> Row:
    return Row(section=section, label=label, cells=tuple(show(standing) for standing in comparison.standings))


def _may_rank(comparison: Comparison, metric: Metric) -> bool:
    if comparison.obstacles or not metric.ranked:
        return False
    return not (metric.of_answers and comparison.answer_obstacles)


def _best_places(metric: Metric, values: Sequence[float | None]) -> frozenset[int]:
    best = metric.best_of(values)
    return frozenset(place for place, value in enumerate(values) if best is not None and value == best)

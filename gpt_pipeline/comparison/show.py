"""A comparison to read: for each group a table and a picture of its losses, then what all experiments cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from gpt_pipeline.comparison.by_key import key_chart, key_sheet, key_values
from gpt_pipeline.comparison.compare import alike_by
from gpt_pipeline.comparison.curves import Records, main_chart, read_records
from gpt_pipeline.comparison.standings import ByKey, Comparison, Group, Reached, Standing
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.evaluation.shares import CHANCE, share_of
from gpt_pipeline.experiment.differences import Difference
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import INSET_HEIGHT, INSET_WIDTH, draw_standalone
from gpt_pipeline.report.metrics import METRICS, Metric
from gpt_pipeline.sheet import Line, Sheet, markdown_table
from gpt_pipeline.shown import counted, in_markdown

_COSTLY = "cost"
_INSET_CURVES = 4  # as many as can be told apart in a small picture
_BEST, _NEAR = "*", "~"  # before the best value of a row, and before the best and those within noise of it

_LEGEND = (
    f"{_NEAR} marks the best of a row and what is equal or within noise of it: on the same questions, a sign test does "
    f"not tell them apart ({100 * CHANCE:.0f} %). Shares have 95 % intervals."
)
_RANKED = (
    "Ranked by the {metric} of their best checkpoints. How far chance (the seed, the order of the data) moves it is "
    "not recorded: close ones may be equally good."
)

_ACROSS = (
    "Losses per token of different tokenizers do not compare; bits per byte of the same held-out text do, lower first."
)

_PARTLY = (
    "Each reads the first evaluation.max_validation_tokens tokens of it, which are more text with a larger vocabulary; "
    "raise that number for all of it."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of every experiment."""

    section: str
    label: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Places of the best cell and of those within noise of it; empty where nothing is better or can be compared."""

    @property
    def mark(self) -> str:
        return _BEST if len(self.best) == 1 else _NEAR


@dataclass(frozen=True, kw_only=True)
class Table:
    """Experiments as columns, figures as rows."""

    title: str
    """Empty for the only one."""

    standings: Sequence[Standing]
    rows: Sequence[Row]
    notes: Sequence[str]
    """What a reader must know, one sentence each."""

    is_group: bool = False
    """Whether another table follows: that of all experiments."""


def tables_of(comparison: Comparison) -> list[Table]:
    """Return a table for each group, then one of all experiments' costs and settings; for one group all in one."""
    everyone = comparison.standings
    costs = [*_cost_rows(everyone), *_difference_rows(comparison.differences)]
    waiting = ", ".join(standing.name for standing in comparison.waiting)
    last = [f"Without an evaluation, so not ranked: {waiting}."] if waiting else []
    if len(comparison.groups) < 2:
        rows = _with_values([*_quality_rows(everyone), *costs])
        notes = [note for group in comparison.groups for note in _notes(group, rows)]
        return [Table(title="", standings=everyone, rows=rows, notes=[*last, *notes])]
    tables = [_group_table(number, group) for number, group in enumerate(comparison.groups, start=1)]
    tables += [_table_across(standings) for standings in comparison.across]
    return [*tables, Table(title="All experiments", standings=everyone, rows=_with_values(costs), notes=last)]


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return the tables as columns; the best of a row has a colour and a `*`, several within noise of it a `~`."""
    tables = [_sheet(table) for table in tables_of(comparison)]
    lead = [Sheet(heading=("",))] if comparison.by_key and not tables_of(comparison)[-1].is_group else []
    return [*tables, *lead, *map(key_sheet, comparison.by_key)]


def markdown(comparison: Comparison) -> str:
    """Return the tables as markdown; the best of a row is bold, several within noise are marked by `~`."""
    return "\n\n".join(_table_markdown(table) for table in tables_of(comparison))


def key_markdown(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return, for each metric against a key, its title, its picture as SVG, and its figures as markdown."""
    return [
        (by.title, draw_standalone(replace(key_chart(by), width=INSET_WIDTH, height=INSET_HEIGHT)), _key_table(by))
        for by in comparison.by_key
    ]


def _key_table(by: ByKey) -> str:
    head, *rows = key_sheet(by).rows
    names = [cell if isinstance(cell, str) else cell[0] for cell in head]
    return "\n".join([markdown_table([by.key, *names[1:]], rows), "", *(f"- {in_markdown(note)}" for note in by.notes)])


def pictures(comparison: Comparison, experiments: Sequence[Experiment]) -> dict[str, str]:
    """Return a picture of the losses of each group by its title, as SVG: losses that do not compare share none."""
    by_name = {experiment.name: experiment for experiment in experiments}
    titles = [_title(number, group) for number, group in enumerate(comparison.groups, start=1)]
    groups = [[by_name[standing.name] for standing in group.standings] for group in comparison.groups]
    return {title: losses_svg(group, known=comparison.records) for title, group in zip(titles, groups, strict=True)}


def ranking(comparison: Comparison) -> str:
    """Return who is best in each group, in a line."""
    told = [
        ", ".join(_ranked_text(standing, group.ranked_by) for standing in group.standings)
        for group in comparison.groups
    ]
    if len(told) == 1:
        return told[0]
    groups = [f"group {number}: {text}" for number, text in enumerate(told, start=1)]
    across = [f"in bits per byte: {', '.join(map(_bits_text, standings))}" for standings in comparison.across]
    return "; ".join([*groups, *across])


def losses_svg(experiments: Sequence[Experiment], *, known: Records | None = None) -> str:
    """Return the validation losses of the first four that have any as an SVG document of the size that pages show.

    Give those of a group, the best first; trainings whose metrics are `known` are not read again. Where all of them go
    by rewards, the picture is of right answers instead.
    """
    chart = main_chart(read_records(experiments, known=known, most=_INSET_CURVES))
    return draw_standalone(replace(chart, width=INSET_WIDTH, height=INSET_HEIGHT))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values, with figures in full."""
    answer_obstacles = [reason for group in comparison.groups for reason in group.answer_obstacles]
    return {
        "comparable": not comparison.obstacles,
        "answers_comparable": not comparison.obstacles and not answer_obstacles,
        "obstacles": list(comparison.obstacles),
        "answer_obstacles": answer_obstacles,
        "groups": [
            {
                "experiments": [standing.name for standing in group.standings],
                "ranked_by": group.ranked_by,
                "held_out_of": group.held_out_of,
                "apart": list(group.apart),
                "answer_obstacles": list(group.answer_obstacles),
            }
            for group in comparison.groups
        ],
        "across_tokenizers": [[standing.name for standing in standings] for standings in comparison.across],
        "experiments": [_standing_values(standing) for standing in comparison.standings],
        "by_key": [key_values(by) for by in comparison.by_key],
        "differences": {each.key: list(each.values) for each in comparison.differences},
    }


def _standing_values(standing: Standing) -> dict[str, Any]:
    plain = dataclasses.asdict(dataclasses.replace(standing, best=None, last=None))
    return {**plain, "best": _reached_values(standing.best), "last": _reached_values(standing.last)}


def _reached_values(reached: Reached | None) -> dict[str, Any] | None:
    if reached is None:
        return None
    shares = {metric.key: share_of(reached.evaluation.answers, metric.key) for metric in METRICS if metric.share}
    return {
        "step": reached.step,
        "tokens_seen": reached.tokens_seen,
        "seconds": reached.seconds,
        "metrics": dict(reached.metrics),
        "shares": {
            key: {**dataclasses.asdict(share), "interval": list(share.interval)}
            for key, share in shares.items()
            if share is not None
        },
    }


def _title(number: int, group: Group) -> str:
    names = ", ".join(standing.name for standing in group.standings)
    return f"Group {number}: {names} (held out of {group.held_out_of})"


def _ranked_text(standing: Standing, metric: str) -> str:
    assert standing.best is not None
    found = standing.best.metrics[metric]
    value = f"{standing.name} {f'{wording.percent(found)} right' if metric == 'correct' else wording.decimal(found)}"
    return value if standing.rank is None else f"{standing.rank}. {value}"


def _bits_text(standing: Standing) -> str:
    assert standing.best is not None
    return f"{standing.name} {wording.decimal(standing.best.metrics['val_bpb'])}"


def _group_table(number: int, group: Group) -> Table:
    rows = _with_values(_quality_rows(group.standings))
    return Table(
        title=_title(number, group), standings=group.standings, rows=rows, notes=_notes(group, rows), is_group=True
    )


def _table_across(standings: Sequence[Standing]) -> Table:
    reached = [standing.best for standing in standings]
    results = [None if each is None else each.evaluation for each in reached]
    [bits] = [metric for metric in METRICS if metric.key == "val_bpb"]
    rows = [
        Row(section="best", label="step", cells=tuple(wording.number(each.step if each else None) for each in reached)),
        _metric_row("best", bits.label, bits, results),
    ]
    names = ", ".join(standing.name for standing in standings)
    notes = [_ACROSS, _PARTLY] if any(map(_reads_a_part, results)) else [_ACROSS]
    return Table(title=f"Across tokenizers: {names}", standings=standings, rows=rows, notes=notes, is_group=True)


def _reads_a_part(result: EvaluationResult | None) -> bool:
    """Whether the loss is that of the first held-out tokens only."""
    return result is not None and result.metrics.get("validation_tokens", 0) >= result.config["max_validation_tokens"]


def _notes(group: Group, rows: Sequence[Row]) -> list[str]:
    notes = [f"Not comparable with group 1, so ranked apart: {each}." for each in group.apart]
    notes += [
        f"Answers are not comparable, so each set of questions has rows of its own: {each}."
        for each in group.answer_obstacles
    ]
    begun = [each.name for each in group.standings if each.best and not each.best.step and each.best != each.last]
    if begun:
        notes.append(
            f"Best at step 0, the weights that it began with, and no better at a later step: {', '.join(begun)}."
        )
    if any(len(row.best) > 1 for row in rows):
        notes.append(_LEGEND)
    if len(group.standings) > 1:
        notes.append(_RANKED.format(metric=wording.of_metric(group.ranked_by)))
    return notes


def _sheet(table: Table) -> Sheet:
    lines: list[Line] = [("", "", *((standing.name, "bold") for standing in table.standings))]
    for row in table.rows:
        cells = [(f"{row.mark}{cell}", "bold green") if n in row.best else cell for n, cell in enumerate(row.cells)]
        lines.append(((row.section, "dim"), row.label, *cells))
    closing: list[Line] = [[(note, "yellow" if note.startswith(("Not", "Answers")) else "")] for note in table.notes]
    closing += [()] if table.is_group else []  # a line between it and the next
    heading = [(table.title, "bold")] if table.title else ()
    return Sheet(heading=heading, rows=lines, numbers_from=2, closing=closing)


def table_lines(table: Table) -> list[Line]:
    """Return the table with its head first; the best cell of a row has a style."""
    lines: list[Line] = [["", *(standing.name for standing in table.standings)]]
    for row in table.rows:
        label = f"{row.section} · {row.label}" if row.section else row.label
        lines.append([label, *(_marked(row, place) for place in range(len(row.cells)))])
    return lines


def _table_markdown(table: Table) -> str:
    head = [f"### {in_markdown(table.title)}", ""] if table.title else []
    names, *lines = table_lines(table)
    body = markdown_table([str(name) for name in names], lines)
    return "\n".join([*head, body, "", *(f"- {in_markdown(note)}" for note in table.notes)])


def _marked(row: Row, place: int) -> str | tuple[str, str]:
    cell = row.cells[place]
    if place not in row.best:
        return cell
    return (cell, "bold") if row.mark == _BEST else f"{row.mark} {cell}"


def _with_values(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without those of which no experiment has a figure."""
    return [row for row in rows if any(cell != wording.NOTHING for cell in row.cells)]


def _quality_rows(standings: Sequence[Standing]) -> Iterable[Row]:
    yield _row(standings, "", "status", lambda standing: standing.status)
    yield _row(standings, "", "rank", lambda standing: wording.number(standing.rank))
    yield from _checkpoint_rows(standings)


def _difference_rows(differences: Sequence[Difference]) -> Iterable[Row]:
    for each in differences:
        yield Row(section="config", label=each.key, cells=tuple(wording.setting(value) for value in each.values))


def _checkpoint_rows(standings: Sequence[Standing]) -> Iterable[Row]:
    """Return the rows of the best and of the last checkpoints, once where each experiment's last is its best."""
    if all(standing.best == standing.last for standing in standings):
        return _reached_rows("best = last", [standing.best for standing in standings])
    return [
        *_reached_rows("best", [standing.best for standing in standings]),
        *_reached_rows("last", [standing.last for standing in standings]),
    ]


def _reached_rows(section: str, reached: Sequence[Reached | None]) -> Iterable[Row]:
    def row(label: str, show: Callable[[Reached], str]) -> Row:
        return Row(
            section=section,
            label=label,
            cells=tuple(wording.NOTHING if each is None else show(each) for each in reached),
        )

    yield row("step", lambda each: wording.number(each.step))
    yield row("tokens", lambda each: wording.count(each.tokens_seen))
    yield row("time", lambda each: wording.duration(each.seconds))
    results = [None if each is None else each.evaluation for each in reached]
    for metric in METRICS:
        sets = alike_by(metric, results) if metric.of_answers else []
        if len(sets) < 2:
            yield _metric_row(section, metric.label, metric, results)
            continue
        found = [[result if place in places else None for place, result in enumerate(results)] for places in sets]
        for some, asked in zip(found, _told_apart(found, metric), strict=True):
            yield _metric_row(section, f"{metric.label}, {asked}", metric, some)


def _told_apart(sets: Sequence[Sequence[EvaluationResult | None]], metric: Metric) -> list[str]:
    """Return what tells the answers of each set, on which a metric is measured, from those of the others."""
    asked = [_asked(next(filter(None, results)), metric) for results in sets]
    differs = [len({*facts}) > 1 for facts in zip(*asked, strict=True)]
    return [", ".join(compress(facts, differs if any(differs) else [True])) for facts in asked]


def _asked(result: EvaluationResult, metric: Metric) -> tuple[str, ...]:
    """Return how many questions were asked and, for a metric of drawn answers, how these were drawn."""
    questions, config = counted(len(result.answers), "question"), result.config
    if not metric.of_samples:
        return (questions,)
    drawn, temperature = config.get("samples_per_question", 0), config.get("sample_temperature", 1.0)
    return questions, f"{drawn} drawn", f"temperature {temperature:g}"


def _metric_row(section: str, label: str, metric: Metric, results: Sequence[EvaluationResult | None]) -> Row:
    cells = tuple(metric.text(result) for result in results)
    return Row(section=section, label=label, cells=cells, best=metric.leaders(results))


def _cost_rows(standings: Sequence[Standing]) -> Iterable[Row]:
    def row(label: str, show: Callable[[Standing], str]) -> Row:
        return _row(standings, _COSTLY, label, show)

    yield row("parameters", lambda standing: wording.count(standing.parameters))
    yield row("tokens", lambda standing: wording.count(standing.cost.tokens_seen))
    yield row("time", lambda standing: wording.duration(standing.cost.seconds))
    yield row("tokens/s", lambda standing: wording.count(standing.cost.tokens_per_second))
    yield row("GPU hours", lambda standing: wording.decimal(standing.cost.gpu_hours, 2))
    yield row("memory GB", lambda standing: wording.decimal(standing.cost.memory_gb, 2))


def _row(standings: Sequence[Standing], section: str, label: str, show: Callable[[Standing], str]) -> Row:
    return Row(section=section, label=label, cells=tuple(map(show, standings)))

"""A metric of the experiments' best checkpoints against a key of their files, a line for each combination of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log10
from typing import Any

from gpt_pipeline.comparison.compare import are_alike
from gpt_pipeline.comparison.standings import ByKey, Comparison, Group, KeyLine, Standing
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import EvaluationResult
from gpt_pipeline.experiment.problems import listed, nearest
from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import CURVES, Chart, Point, Series, curve_style
from gpt_pipeline.report.metrics import METRICS
from gpt_pipeline.sheet import Line as SheetLine
from gpt_pipeline.sheet import Sheet

_WIDE = 8  # times the smallest value: from there on the axis has equal steps for equal factors


def with_key(comparison: Comparison, *, key: str | None = None, metric: str | None = None) -> Comparison:
    """Return the comparison with its metric against a key, for each group of experiments in which the key differs.

    Without a key, that with the most different numbers; without a metric, the one that ranks the group.

    Raises:
        UserError: the key differs nowhere, or only between experiments that do not compare; or there is no such metric.
    """
    known = [each.key for each in METRICS]
    if metric is not None and metric not in known:
        raise UserError(f"--metric: found {metric}, need {listed(known)}{_meant(metric, known)}")
    everywhere = [each.key for each in comparison.differences]
    settings = [_settings(comparison, group) for group in comparison.groups]
    within = list(dict.fromkeys(own for each in settings for own in each))
    need = "a key that differs within a group" + (f": {listed(within)}" if within else "")
    if key is not None and key not in everywhere:
        raise UserError(f"--by: found {key}, need {need}{_meant(key, within)}")
    found = [_of_group(group, own, key, metric) for group, own in zip(comparison.groups, settings, strict=True)]
    if key is not None and not any(found):
        where = "only between experiments that do not compare or have no evaluation yet"
        raise UserError(f"--by: found {key}, which differs {where}, need {need}; see the groups without --by")
    return replace(comparison, by_key=tuple(each for each in found if each is not None))


def _meant(word: str, known: Sequence[str]) -> str:
    meant = nearest(word, known)
    return f"; did you mean {meant}?" if meant else ""


def _settings(comparison: Comparison, group: Group) -> Mapping[str, Sequence[Any]]:
    """Return the keys that differ in the group, with the values of its standings, in their order."""
    places = {standing.name: place for place, standing in enumerate(comparison.standings)}
    values = {
        each.key: [each.values[places[standing.name]] for standing in group.standings]
        for each in comparison.differences
    }
    return {key: own for key, own in values.items() if len(_distinct(own)) > 1}


def _of_group(group: Group, settings: Mapping[str, Sequence[Any]], key: str | None, metric: str | None) -> ByKey | None:
    key = key or _most_telling(settings)
    if key is None or key not in settings:
        return None
    [chosen] = [each for each in METRICS if each.key == (metric or group.ranked_by)]
    values = _sorted(_distinct(settings[key]))
    others = [other for other in settings if other != key and not _follows(settings[other], settings[key])]
    lines, notes = _lines(group, settings[key], {other: settings[other] for other in others})
    if not are_alike(_results(lines), chosen):
        notes.append("The answers are not to the same questions, or were drawn otherwise, so that none is called best.")
    if len(lines) > CURVES:
        notes.append(f"Of {len(lines)} lines, the picture shows the first {CURVES}.")
    return ByKey(key=key, metric=chosen, values=tuple(values), lines=tuple(lines), notes=tuple(notes))


def _lines(group: Group, along: Sequence[Any], others: Mapping[str, Sequence[Any]]) -> tuple[list[KeyLine], list[str]]:
    """Return a line for each combination of the other keys' values, in their order, and what it leaves out."""
    values = _sorted(_distinct(along))
    ranks = {key: _sorted(_distinct(own)) for key, own in others.items()}
    lines: dict[str, dict[int, Standing]] = {}
    order: dict[str, tuple[int, ...]] = {}
    notes = []
    for place, standing in enumerate(group.standings):  # the best first
        name = ", ".join(f"{key} {wording.setting(own[place])}" for key, own in others.items())
        order[name] = tuple(ranks[key].index(own[place]) for key, own in others.items())
        line, at = lines.setdefault(name, {}), values.index(along[place])
        if at in line:
            notes.append(f"{standing.name} has the settings of {line[at].name}, which is better and stands for both.")
        else:
            line[at] = standing
    names = sorted(lines, key=order.__getitem__)
    return [KeyLine(name=name, standings=tuple(map(lines[name].get, range(len(values))))) for name in names], notes


def _most_telling(settings: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the key with the most different values, a number's before others'; None where none differs."""
    return max(settings, key=lambda key: (_are_numbers(settings[key]), len(_distinct(settings[key]))), default=None)


def _follows(other: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether the values of `other` are known from those of `given`, with which they vary."""
    pairs = _distinct([*zip(given, other, strict=True)])
    return len(pairs) == len(_distinct(given))


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values) if _are_numbers(values) else values


def key_sheet(by: ByKey) -> Sheet:
    """Return the figures as a table: a row for each value of the key, a column for each line."""
    head: SheetLine = ["", *((line.name or by.metric.label, "bold") for line in by.lines)]
    best = _best(by)
    rows: list[SheetLine] = [head]
    for at, value in enumerate(by.values):
        cells = [
            (f"*{_text(by, standing)}", "bold green") if standing in best else _text(by, standing)
            for standing in (line.standings[at] for line in by.lines)
        ]
        rows.append([wording.setting(value), *cells])
    closing: list[SheetLine] = [(note,) for note in by.notes]
    return Sheet(heading=((by.title, "bold"),), rows=rows, numbers_from=0, closing=closing)


def _text(by: ByKey, standing: Standing | None) -> str:
    return wording.NOTHING if standing is None or standing.best is None else by.metric.text(standing.best.evaluation)


def _best(by: ByKey) -> list[Standing | None]:
    """Return the best experiment, if it is better than the others beyond noise, and what was measured compares."""
    flat = [standing for line in by.lines for standing in line.standings]
    results = _results(by.lines)
    leaders = by.metric.leaders(results) if are_alike(results, by.metric) else ()
    return [flat[place] for place in leaders] if len(leaders) == 1 else []


def _results(lines: Sequence[KeyLine]) -> list[EvaluationResult | None]:
    """Return the evaluations of the best checkpoints, line by line."""
    flat = [standing for line in lines for standing in line.standings]
    return [standing.best.evaluation if standing and standing.best else None for standing in flat]


def key_chart(by: ByKey) -> Chart:
    """Return the figures as a picture, with the key along its x axis; a line without any is left out."""
    places = _places(by.values)
    curves = [
        (line, tuple((x, y) for x, y in zip(places, _figures(by, line), strict=True) if y is not None))
        for line in by.lines[:CURVES]
    ]
    return Chart(
        title=by.title,
        x_label=by.key,
        y_label=by.metric.label,
        series=tuple(
            each
            for number, (line, points) in enumerate(curves)
            if points
            for each in _series(number, line.name or by.metric.label, points)
        ),
        x_ticks=tuple(zip(places, map(wording.setting, by.values), strict=True)),
    )


def _figures(by: ByKey, line: KeyLine) -> list[float | None]:
    reached = [standing.best if standing else None for standing in line.standings]
    return [each.metrics.get(by.metric.key) if each else None for each in reached]


def _places(values: Sequence[Any]) -> list[float]:
    """Return where values stand on the axis: numbers as they are, or by their factors; others one after the other."""
    if not _are_numbers(values):
        return [float(place) for place in range(len(values))]
    if values[0] > 0 and values[-1] / values[0] >= _WIDE:
        return [log10(value) for value in values]
    return [float(value) for value in values]


def _series(number: int, name: str, points: tuple[Point, ...]) -> list[Series]:
    """Return the line through the points, which has the name, and the points."""
    style = curve_style(number)
    return [
        Series(name=name, points=points, **style),
        Series(name="", points=points, colour=style["colour"], look="dots"),
    ]


def key_values(by: ByKey) -> dict[str, Any]:
    """Return the figures as JSON values."""
    return {
        "key": by.key,
        "metric": by.metric.key,
        "values": list(by.values),
        "lines": [
            {
                "name": line.name,
                "experiments": [standing.name if standing else None for standing in line.standings],
                "figures": _figures(by, line),
            }
            for line in by.lines
        ],
        "notes": list(by.notes),
    }

"""A chart on a page: its picture, its points for the page's script, and some of its numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from gpt_pipeline.report.charts import Chart, Point, Series, draw

_TABLE_ROWS = 12  # of numbers below a figure, for readers who cannot see the curves
_X_DIGITS, _Y_DIGITS = 7, 5


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart as a page shows it."""

    name: str
    chart: Chart

    @property
    def svg(self) -> Markup:
        return Markup(draw(self.chart))

    @property
    def data(self) -> Markup:
        """What the page's script draws again, as JSON that may stand in HTML."""
        return htmlsafe_json_dumps(chart_values(self.chart), separators=(",", ":"))

    @property
    def table(self) -> tuple[tuple[str, ...], ...]:
        """The header, then some points of each curve as rows (curve, x, y)."""
        chart, texts = self.chart, dict(self.chart.x_ticks)
        rows: list[tuple[str, ...]] = [("curve", chart.x_label, chart.y_label)]
        for series in chart.series:
            if not series.name or series.look in ("faint", "dashed"):
                continue
            every = max(1, -(-len(series.points) // _TABLE_ROWS))
            shown = sorted({*range(0, len(series.points), every), len(series.points) - 1})
            rows.extend(
                (series.name, texts.get(x) or f"{x:,.10g}", f"{y:.6g}")
                for x, y in map(series.points.__getitem__, shown)
            )
        return tuple(rows)


def chart_values(chart: Chart) -> dict[str, Any]:
    """Return the chart as JSON values. A curve that was smoothed has the points from before."""
    return {
        "title": chart.title,
        "x": chart.x_label,
        "y": chart.y_label,
        "width": chart.width,
        "height": chart.height,
        "fromZero": chart.y_from_zero,
        "time": chart.x_is_time,
        "ticks": [[_rounded(x, _X_DIGITS), text] for x, text in chart.x_ticks],
        "series": [*map(_series_values, chart.series)],
    }


def figures_of(charts: Sequence[tuple[str, Chart]]) -> list[Figure]:
    """Return those of the charts that show something."""
    return [Figure(name=name, chart=chart) for name, chart in charts if not chart.is_empty]


def _series_values(series: Series) -> Mapping[str, Any]:
    points: tuple[Point, ...] = series.unsmoothed or series.points
    return {
        "name": series.name,
        "colour": series.colour,
        "dash": series.dash,
        "look": series.look,
        "smooth": bool(series.unsmoothed),
        "xs": [_rounded(x, _X_DIGITS) for x, _ in points],
        "ys": [_rounded(y, _Y_DIGITS) for _, y in points],
    }


def _rounded(value: float, digits: int) -> float:
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short

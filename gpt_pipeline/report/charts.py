"""Line charts and a histogram as SVG, drawn by hand: no script, no network, the same in the report and in Dagster."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, TypedDict

from gpt_pipeline.shown import duration
from gpt_pipeline.training.config import ESTIMATES, PASSES

Point = tuple[float, float]
Look = Literal["line", "faint", "dots", "dashed"]

INSET_WIDTH, INSET_HEIGHT = 600, 340
"""Of a picture in Dagster's or MLflow's pages, which show it small: the letters keep their size."""

_SMALL_WIDTH, _SMALL_HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 24.0, 14.0, 46.0
_LEGEND_ROW = 20.0
_LETTER = 6.5  # width of a letter, on average
ESTIMATE_COLOURS = (2, 5, 6)
"""Of the curves of `training.config.ESTIMATES`."""

_COLOURS, _DASHES = 6, 4  # of the palette; whole lines count as one
CURVES = 12
"""Of several experiments in one chart: so many pairs of colour and dashes does `curve_style` tell apart."""

_RAW_POINTS = 900  # more than a screen shows
_SMOOTH_POINTS = 360
_UNSMOOTHED_POINTS = 400  # for a reader who smooths them otherwise
_SMOOTH_SHARE = 60  # the moving average covers this part of all points
_STEEP_SHARE = 0.1  # of the x axis; the loss falls so far there that it would flatten the rest of the curve
_FEW_POINTS = 8
_LONGEST_TEXT = 24  # letters of a value below the x axis; a longer one is cut
_TEXT_GAP = 10.0

# The colours of a picture that stands alone; the pages define the same classes and the same palette, whose colours
# differ in lightness too and are at least three times as bright or dark as the paper.
_STANDALONE_STYLE = """
svg{background:#fff;font-family:system-ui,sans-serif;--ink:#1d2430;--muted:#5d6675;--grid:#e3e6eb;
--c1:#1f5fae;--c2:#dd6b1d;--c3:#1b8561;--c4:#4c2a85;--c5:#9c8412;--c6:#b5306f}
@media(prefers-color-scheme:dark){svg{background:#14181f;--ink:#e8ebf0;--muted:#9aa4b2;--grid:#2a313c;
--c1:#6ea8e6;--c2:#f2793f;--c3:#8fe0bd;--c4:#9a76cf;--c5:#f0d46a;--c6:#e0568f}}
.grid{stroke:var(--grid)}.axis{stroke:var(--muted)}text{fill:var(--muted);font-size:12px}.label{fill:var(--ink)}
.line,.faint,.dashed{fill:none;stroke-linejoin:round}.line{stroke-width:2}.faint{stroke-width:1;opacity:.45}
.dashed{stroke-dasharray:5 5}.dash1{stroke-dasharray:9 4}.dash2{stroke-dasharray:2 4}.dash3{stroke-dasharray:11 4 2 4}
.dots{stroke:none}
"""

_BARS_WIDTH, _BARS_HEIGHT, _BARS_SIDE, _BARS_BOTTOM, _BARS_TOP = 760, 260, 8, 46, 30
_BARS_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}rect{fill:#3b6fb6}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}rect{fill:#7aa7e0}}"
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve."""

    name: str
    points: tuple[Point, ...]
    """By ascending x, finite."""

    colour: int
    """1 to 6, of the palette."""

    look: Look = "line"
    dash: int = 0
    """Of a line, 1 to 3: broken in one of three ways; 0: whole."""

    unsmoothed: tuple[Point, ...] = ()
    """What `points` were smoothed from, thinned; empty where they were not."""


class CurveStyle(TypedDict):
    """What tells a curve of `Series` from others."""

    colour: int
    dash: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves on common axes."""

    title: str
    """For readers who cannot see it."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    width: float = 960
    height: float = 400
    y_from_zero: bool = False
    x_is_time: bool = False
    """Whether x are seconds, shown as a duration."""

    x_ticks: tuple[tuple[float, str], ...] = ()
    """The texts of values on the x axis, of which those stand there that have room; empty: round numbers."""

    @property
    def is_empty(self) -> bool:
        return not any(each.points for each in self.series)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where values lie in the picture."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_range: Point
    y_range: Point
    top: float
    width: float
    height: float

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - self.top - _BOTTOM)


def draw(chart: Chart) -> str:
    """Return the chart as an `<svg>` element that takes its colours from the page around it; "" if it is empty."""
    return "" if chart.is_empty else _svg(chart)


def draw_standalone(chart: Chart) -> str:
    """Return the chart as an SVG document with its own colours, light and dark."""
    # With a size: MLflow shows a picture without one as nothing.
    size = f'width="{chart.width:g}" height="{chart.height:g}" '
    return _svg(chart, size=size, style=f"<style>{_STANDALONE_STYLE}</style>")


def loss_curve_svg(records: Sequence[Mapping[str, Any]], *, vocab_size: int) -> str:
    """Return the training loss and the estimates against the step, or the rewards, as an SVG document."""
    chart = reward_chart(records)
    if chart.is_empty:
        chart = settled(loss_chart(records, x_key="step", x_label="step", vocab_size=vocab_size))
    return draw_standalone(replace(chart, width=INSET_WIDTH, height=INSET_HEIGHT))


def histogram_svg(counts: Sequence[int], edges: Sequence[int], *, title: str) -> str:
    """Return the counts as bars of equal width, without the empty bins at both ends; "" if there is nothing to show.

    `edges` are the bins' limits: len(counts) + 1 of them, or as many as counts where the last bin is open.
    """
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, last = filled[0], filled[-1]
    shown = counts[first : last + 1]
    step = (_BARS_WIDTH - 2 * _BARS_SIDE) / len(shown)
    scale = (_BARS_HEIGHT - _BARS_TOP - _BARS_BOTTOM) / max(shown)
    parts = [f'<text x="{_BARS_SIDE}" y="18">{html.escape(title)}</text>']
    every = -(-len(shown) // 12)  # labels that do not run into each other
    for place, count in enumerate(shown):
        left, height = _BARS_SIDE + place * step, count * scale
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{_BARS_HEIGHT - _BARS_BOTTOM - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}"/>'
        )
        if place % every == 0:
            parts.append(f'<text x="{left:.1f}" y="{_BARS_HEIGHT - _BARS_BOTTOM + 18}">{edges[first + place]:,}</text>')
    size = f'viewBox="0 0 {_BARS_WIDTH} {_BARS_HEIGHT}" width="{_BARS_WIDTH}" height="{_BARS_HEIGHT}"'
    body = f"<style>{_BARS_STYLE}</style>{''.join(parts)}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html.escape(title)}">{body}</svg>'


def loss_chart(
    records: Sequence[Mapping[str, Any]],
    *,
    x_key: str,
    x_label: str,
    vocab_size: int,
    x_is_time: bool = False,
    evaluations: Sequence[Point] = (),
) -> Chart:
    """Return the chart of training loss (raw and smoothed), the trainer's estimates and the evaluations' loss.

    Where the losses come near that of a uniform guess among `vocab_size` tokens, it is shown too.
    """
    # The loss that moves rewarded answers is no measure of a model.
    train = points_of([each for each in records if each.get("reward") is None], "train", x_key, "train_loss")
    series = [
        Series(name="train, each record", points=thinned_to_extremes(train, _RAW_POINTS), colour=1, look="faint"),
        smooth_series("train, smoothed", train, colour=1),
        *(
            Series(name=f"{word}, while training", points=thinned_to_extremes(points, _RAW_POINTS), colour=colour)
            for (key, word), colour in zip(ESTIMATES.items(), ESTIMATE_COLOURS, strict=True)
            if (points := points_of(records, "validation", x_key, key))
        ),
        Series(name="validation, each checkpoint", points=tuple(evaluations), colour=3, look="dots"),
    ]
    every = [point for each in series for point in each.points]
    uniform = math.log(vocab_size)
    if every and max(y for _, y in every) > uniform - 2:
        ends = (min(x for x, _ in every), uniform), (max(x for x, _ in every), uniform)
        series.append(Series(name=f"uniform guess: ln {vocab_size:,}", points=ends, colour=4, look="dashed"))
    return Chart(
        title=f"Loss in nats per token against {x_label}",
        x_label=x_label,
        y_label="nats per token",
        series=tuple(each for each in series if each.points),
        x_is_time=x_is_time,
    )


def reward_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """Return how often sampled answers are right, in training and on held-out questions; empty without rewards."""
    held_out = (("held out, pass@1", PASSES, 2), ("held out, pass@k", "pass_at_k", 3))
    series = (
        smooth_series("training, mean reward", points_of(records, "train", "step", "reward"), colour=1),
        *(
            Series(name=name, points=points_of(records, "validation", "step", key), colour=colour)
            for name, key, colour in held_out
        ),
    )
    return small_chart("Rewards", "share of answers", tuple(each for each in series if each.points))


def small_chart(name: str, y_label: str, series: tuple[Series, ...], *, x_label: str = "step") -> Chart:
    """Return a chart that stands beside others."""
    return Chart(
        title=f"{name} against {x_label}",
        x_label=x_label,
        y_label=y_label,
        series=series,
        y_from_zero=True,
        width=_SMALL_WIDTH,
        height=_SMALL_HEIGHT,
    )


def settled(chart: Chart) -> Chart:
    """Return the chart with its height given to what comes after the first tenth, and without what lies above that.

    So each curve enters from above, where it comes down for the last time. A chart of few points stays whole.
    """
    xs = [x for each in chart.series for x, _ in each.points]
    start = min(xs, default=0.0) + _STEEP_SHARE * (max(xs, default=0.0) - min(xs, default=0.0))
    later = [y for each in chart.series if each.look != "dashed" for x, y in each.points if x >= start]
    if len(later) < _FEW_POINTS:
        return chart
    top = nice_ticks(min(later), max(later), _y_tick_count(chart))[-1]
    series = tuple(_below(each, top) for each in chart.series)
    return replace(chart, series=tuple(each for each in series if each.points))


def _below(series: Series, top: float) -> Series:
    """Return the curve from where it stays below `top`; points from before smoothing, from the same place on."""
    points = _from_top(series.points, top)
    start = points[0][0] if points else math.inf
    return replace(series, points=points, unsmoothed=tuple(point for point in series.unsmoothed if point[0] >= start))


def _from_top(points: tuple[Point, ...], top: float) -> tuple[Point, ...]:
    """Return the points after the last one above `top`, and before them where the line between crosses it."""
    above = max((place for place, (_, y) in enumerate(points) if y > top), default=None)
    if above is None:
        return points
    rest = points[above + 1 :]
    if not rest:
        return ()
    (x0, y0), (x1, y1) = points[above], rest[0]
    return ((x0 + (y0 - top) / (y0 - y1) * (x1 - x0), top), *rest)


def points_of(records: Iterable[Mapping[str, Any]], kind: str, x_key: str, y_key: str) -> tuple[Point, ...]:
    """Return (x, y) of the records of a kind that have both as finite numbers, by ascending x."""
    found = []
    for record in records:
        x, y = _number(record.get(x_key)), _number(record.get(y_key))
        if record.get("kind") == kind and x is not None and y is not None:
            found.append((x, y))
    return tuple(sorted(found))


def smoothed(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return a centred moving average over a sixtieth of the points, thinned to what a screen shows."""
    reach = len(points) // _SMOOTH_SHARE // 2
    sums = [0.0, *accumulate(y for _, y in points)]
    every = max(1, len(points) // _SMOOTH_POINTS)
    kept = sorted({*range(0, len(points), every), *range(max(len(points) - 1, 0), len(points))})
    result = []
    for i in kept:
        low, high = max(0, i - reach), min(len(points), i + reach + 1)
        result.append((points[i][0], (sums[high] - sums[low]) / (high - low)))
    return tuple(result)


def smooth_series(name: str, points: Sequence[Point], *, colour: int, dash: int = 0) -> Series:
    """Return a curve of the smoothed points, which keeps what it was smoothed from."""
    kept = thinned_to_means(points, _UNSMOOTHED_POINTS)
    return Series(name=name, points=smoothed(points), colour=colour, dash=dash, unsmoothed=kept)


def curve_style(number: int) -> CurveStyle:
    """Return colour and dashes of the curve with this number, from 0: no two of the first `CURVES` share both."""
    return CurveStyle(colour=number % _COLOURS + 1, dash=number % _DASHES)


def thinned_to_means(points: Sequence[Point], limit: int) -> tuple[Point, ...]:
    """Return at most `limit` points: the mean of each stretch of equally many, at its middle."""
    size = -(-len(points) // limit)
    if size < 2:
        return tuple(points)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((each[len(each) // 2][0], sum(y for _, y in each) / len(each)) for each in stretches)


def thinned_to_extremes(points: Sequence[Point], limit: int) -> tuple[Point, ...]:
    """Return at most about `limit` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= limit:
        return tuple(points)
    size = math.ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept.extend(sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}))
    return tuple(kept)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values that enclose [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """Return a number for an axis: 0.0003, 12.5, 50 k, 1.6 B."""
    value = float(f"{value:.4g}") if abs(value) >= 1e3 else value
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if size == 1e4 else size):.4g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.10g}" if value == int(value) else f"{value:.4g}"


def _svg(chart: Chart, *, size: str = "", style: str = "") -> str:
    frame = _frame(chart)
    title = html.escape(chart.title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {chart.width:g} {chart.height:g}" {size}role="img" '
        f'aria-label="{title}" class="chart">',
        style,
        f"<title>{title}</title>",
        *_axes(chart, frame),
        *(_curve(series, frame) for series in chart.series),
        *_legend(chart),
        "</svg>",
    ]
    return "".join(parts)


def _frame(chart: Chart) -> _Frame:
    xs = [x for series in chart.series for x, _ in series.points] or [0, 1]
    ys = [y for series in chart.series for _, y in series.points] or [0, 1]
    low = min(0.0, *ys) if chart.y_from_zero else min(ys)
    y_ticks = nice_ticks(low, max(ys), _y_tick_count(chart))
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = min(0.0, x_low), max(0.0, x_high * 1.25) or 1.25
    x_low = 0.0 if 0 < x_low < 0.15 * x_high and not chart.x_ticks else x_low
    x_ticks = [x for x, _ in chart.x_ticks] or nice_ticks(x_low, x_high, max(5, round(chart.width / 130)))
    return _Frame(
        x_ticks=[tick for tick in x_ticks if x_low <= tick <= x_high],
        y_ticks=y_ticks,
        x_range=(x_low, x_high),
        y_range=(y_ticks[0], y_ticks[-1]),
        top=_TOP + _LEGEND_ROW * (1 + max((row for row, _, _ in _legend_places(chart)), default=-1)),
        width=chart.width,
        height=chart.height,
    )


def _y_tick_count(chart: Chart) -> int:
    return max(3, round(chart.height / 70))


def _axes(chart: Chart, frame: _Frame) -> Iterable[str]:
    right, bottom = chart.width - _RIGHT, chart.height - _BOTTOM
    for tick in frame.y_ticks:
        y = frame.y(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
    texts = dict(chart.x_ticks)
    for tick in frame.x_ticks:
        x = frame.x(tick)
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:g}" y2="{bottom + 5:g}"/>'
    marks = [(frame.x(tick), texts.get(tick) or _x_text(chart, tick)) for tick in frame.x_ticks]
    for x, text in texts_with_room(marks, chart.width):
        yield f'<text x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{html.escape(text)}</text>'
    yield (
        f'<text class="label" x="{(_LEFT + right) / 2:g}" y="{chart.height - 8:g}" text-anchor="middle">'
        f"{html.escape(chart.x_label)}</text>"
    )
    middle = (frame.top + bottom) / 2
    yield (
        f'<text class="label" x="11" y="{middle:g}" text-anchor="middle" transform="rotate(-90 11 {middle:g})">'
        f"{html.escape(chart.y_label)}</text>"
    )


def texts_with_room(marks: Iterable[tuple[float, str]], width: float) -> Iterator[tuple[float, str]]:
    """Yield middle and text of the marks whose texts, below an axis, lie in the picture and do not touch.

    `marks` ascend; one that would touch the one before is left out. A long text is cut.
    """
    end = -math.inf
    for place, whole in marks:
        text = whole if len(whole) <= _LONGEST_TEXT else whole[: _LONGEST_TEXT - 1] + "…"
        half = len(text) * _LETTER / 2
        middle = min(max(place, half), width - half)
        if middle - half >= end:
            yield middle, text
            end = middle + half + _TEXT_GAP


def _x_text(chart: Chart, value: float) -> str:
    return duration(value) if chart.x_is_time and value else short_number(value)


def _curve(series: Series, frame: _Frame) -> str:
    colour = f"var(--c{series.colour})"
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    if series.look == "dots" or len(places) == 1:
        return "".join(f'<circle class="dots" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{_classes(series)}" stroke="{colour}" points="{path}"/>'


def _classes(series: Series) -> str:
    return f"{series.look} dash{series.dash}" if series.dash else series.look


def _legend_places(chart: Chart) -> list[tuple[int, float, Series]]:
    """Return the row and the left edge of each curve's name above the plot; a chart of one curve needs no names."""
    places: list[tuple[int, float, Series]] = []
    row, left = 0, _LEFT
    named = [series for series in chart.series if series.name]
    for series in named if len(named) > 1 else ():
        width = 30 + len(series.name) * _LETTER
        if left > _LEFT and left + width > chart.width - _RIGHT:
            row, left = row + 1, _LEFT
        places.append((row, left, series))
        left += width + 18
    return places


def _legend(chart: Chart) -> Iterable[str]:
    for row, left, series in _legend_places(chart):
        y, colour = 16 + row * _LEGEND_ROW, f"var(--c{series.colour})"
        if series.look == "dots":
            yield f'<circle class="dots" cx="{left + 11:g}" cy="{y - 4:g}" r="4" fill="{colour}"/>'
        else:
            yield (
                f'<line class="{_classes(series)}" stroke="{colour}" x1="{left:g}" x2="{left + 22:g}" '
                f'y1="{y - 4:g}" y2="{y - 4:g}"/>'
            )
        yield f'<text class="label" x="{left + 28:g}" y="{y:g}">{html.escape(series.name)}</text>'


def _number(value: Any) -> float | None:
    """Return `value` if it is a finite number, else None."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None

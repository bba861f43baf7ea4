from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpt_pipeline.report import charts
from gpt_pipeline.report.charts import (
    CURVES,
    Chart,
    Series,
    curve_style,
    draw,
    draw_standalone,
    loss_chart,
    loss_curve_svg,
    nice_ticks,
    points_of,
    settled,
    short_number,
    small_chart,
    smooth_series,
    smoothed,
    texts_with_room,
    thinned_to_extremes,
    thinned_to_means,
)
from gpt_pipeline.report.figures import Figure

SVG = "{http://www.w3.org/2000/svg}"
FINITE = st.floats(-1e9, 1e9)


def records(steps: int) -> list[dict[str, object]]:
    train = [{"kind": "train", "step": s, "tokens_seen": s * 64, "train_loss": 11 / s**0.1} for s in range(1, steps)]
    validation = [{"kind": "validation", "step": s, "val_loss": 11 / s**0.1} for s in range(10, steps, 10)]
    return [*train, *validation]


@given(FINITE, FINITE, st.integers(2, 12))
def test_nice_ticks_enclose_the_range_in_equal_steps(low: float, high: float, count: int) -> None:
    assume(high - low > 1e-3 * max(abs(low), abs(high), 1e-3))
    ticks = nice_ticks(low, high, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert all(math.isclose(b - a, step, rel_tol=1e-4) for a, b in itertools.pairwise(ticks))
    assert len(ticks) <= 2 * count + 2


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_nice_ticks_of_one_value_still_make_a_range(value: float) -> None:
    ticks = nice_ticks(value, value, 4)
    assert ticks[0] < value < ticks[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3e-4, "3e-4"),
        (0.25, "0.25"),
        (1500, "1,500"),
        (50_000, "50 k"),
        (1.6e9, "1.6 B"),
        (-2e6, "-2 M"),
        (9999.6, "10 k"),
    ],
)
def test_short_number_fits_an_axis(value: float, text: str) -> None:
    assert short_number(value) == text


@given(st.lists(st.tuples(FINITE, FINITE), max_size=3000), st.integers(10, 200))
def test_thinned_to_extremes_keeps_lowest_highest_and_order(points: list[tuple[float, float]], limit: int) -> None:
    points.sort()
    thin = thinned_to_extremes(points, limit)
    assert len(thin) <= max(limit, 2)
    assert set(thin) <= set(points)
    assert list(thin) == sorted(thin)
    if points:
        ys = [y for _, y in points]
        assert {min(ys), max(ys)} <= {y for _, y in thin}


@given(st.integers(0, 5000), st.floats(-100, 100))
def test_smoothed_of_a_constant_is_the_constant_from_end_to_end(number: int, value: float) -> None:
    smooth = smoothed([(float(i), value) for i in range(number)])
    assert all(math.isclose(y, value, abs_tol=1e-9) for _, y in smooth)
    assert [x for x, _ in smooth][:1] == [0.0][:number]
    assert [x for x, _ in smooth][-1:] == [number - 1.0][:number]


def test_smoothed_of_few_points_leaves_them() -> None:
    points = ((1.0, 5.0), (2.0, 1.0), (3.0, 4.0))
    assert smoothed(points) == points


def test_points_of_leaves_out_what_is_no_number() -> None:
    mixed = [
        {"kind": "train", "step": 3, "train_loss": 1},
        {"kind": "train", "step": 1, "train_loss": 2.5},
        {"kind": "train", "step": 2, "train_loss": float("nan")},
        {"kind": "train", "step": 4, "train_loss": None},
        {"kind": "train", "step": 5},
        {"kind": "validation", "step": 6, "train_loss": 3.0},
    ]
    assert points_of(mixed, "train", "step", "train_loss") == ((1.0, 2.5), (3.0, 1.0))


@pytest.mark.parametrize("steps", [0, 2, 3, 50, 5000])
def test_loss_curve_svg_is_a_small_picture_of_any_training(steps: int) -> None:
    svg = loss_curve_svg(records(steps), vocab_size=50257)
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert len(svg) < 60_000
    for line in root.iter(f"{SVG}polyline"):
        for pair in (line.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 960
            assert 0 <= y <= 400


def test_loss_curve_shows_the_uniform_guess_of_the_vocabulary_where_the_losses_are_near() -> None:
    assert "uniform guess: ln 1,024" in loss_curve_svg(records(3), vocab_size=1024)
    low = [{"kind": "train", "step": step, "train_loss": 1.0} for step in range(3)]
    assert "uniform" not in loss_curve_svg(low, vocab_size=1024)


def test_loss_chart_draws_each_estimate_that_the_training_recorded() -> None:
    estimates = {"val_loss": 3.0, "document_loss": 2.5, "completion_loss": 2.0}
    recorded = [{"kind": "validation", "step": step, **estimates} for step in (4, 8)]
    drawn = {each.name: each for each in loss_chart(recorded, x_key="step", x_label="step", vocab_size=50257).series}
    for name, loss in (("validation", 3.0), ("documents", 2.5), ("answers", 2.0)):
        assert drawn[f"{name}, while training"].points == ((4.0, loss), (8.0, loss))
    assert len({each.colour for each in drawn.values()}) == 3


def test_draw_escapes_names() -> None:
    series = Series(name="<b>&", points=((0, 0), (1, 1)), colour=1)
    other = Series(name="b", points=((0, 1), (1, 0)), colour=2)
    svg = draw(Chart(title='"<script>', x_label="<i>", y_label="&", series=(series, other)))
    assert "<script>" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == '"<script>'


def test_draw_from_zero_leaves_no_value_below_it_out_of_the_picture() -> None:
    rewards = small_chart("Rewards", "mean", (Series(name="own", points=((0.0, -1.0), (1.0, 0.5)), colour=1),))
    [points] = re.findall(r'points="([^"]+)"', draw(rewards))
    bottom = max(float(y) for y in re.findall(r'class="axis"[^>]* y1="([\d.]+)"', draw(rewards)))
    assert all(float(each.split(",")[1]) <= bottom for each in points.split())


def test_draw_of_no_points_is_empty() -> None:
    assert draw(loss_chart([], x_key="step", x_label="step", vocab_size=50257)) == ""


def test_settled_gives_the_height_to_what_comes_after_the_steep_beginning() -> None:
    steep = [(0.0, 10.8), (5.0, 6.0), (10.0, 2.5), *((x, 2.0) for x in range(20, 80, 10)), (100.0, 1.5)]
    guess = Series(name="guess", points=((0.0, 10.8), (100.0, 10.8)), colour=4, look="dashed")
    chart = Chart(title="t", x_label="x", y_label="y", series=(Series(name="a", points=tuple(steep), colour=1), guess))
    [shown] = settled(chart).series  # not the guess, which lies above
    assert shown.points == ((pytest.approx(5 + 5 * 3.4 / 3.5), 2.6), *steep[2:])  # 2.6: the last tick
    assert shown.name == "a"


def test_settled_keeps_what_was_before_smoothing_behind_a_spike() -> None:
    raw = tuple((float(x), 9.0 if x == 80 else 3 + 6 * 0.8**x) for x in range(101))
    shown = tuple((x, min(y, 3.5) if x > 10 else y) for x, y in raw)
    series = Series(name="train", points=shown, colour=1, unsmoothed=raw)
    [curve] = settled(Chart(title="t", x_label="x", y_label="y", series=(series,))).series
    assert curve.unsmoothed[-1] == raw[-1]
    assert 0 <= curve.unsmoothed[0][0] - curve.points[0][0] < 1


def test_settled_keeps_a_chart_whose_beginning_is_not_above_the_rest() -> None:
    chart = Chart(title="t", x_label="x", y_label="y", series=(Series(name="a", points=((0, 1), (9, 2)), colour=1),))
    assert settled(chart) == chart
    empty = loss_chart([], x_key="step", x_label="step", vocab_size=50257)
    assert settled(empty) == empty


def test_thinned_to_means_keeps_the_mean_and_steps_that_there_are() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    thin = thinned_to_means(points, 100)
    assert len(thin) == 100
    assert {x for x, _ in thin} <= {x for x, _ in points}
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thinned_to_means(points[:100], 100) == tuple(points[:100])


def test_curves_of_several_differ_in_colour_or_dashes_and_neighbours_in_both() -> None:
    styles = [(style["colour"], style["dash"]) for style in map(curve_style, range(CURVES))]
    assert len({*styles}) == CURVES
    for (colour, dash), (other, another) in itertools.pairwise(styles):
        assert colour != other
        assert dash != another
    curve = Series(name="a", points=((0, 1), (1, 2)), **curve_style(1))
    assert 'class="line dash1" stroke="var(--c2)"' in draw(Chart(title="t", x_label="x", y_label="y", series=(curve,)))


def _luminance(colour: str) -> float:
    """As WCAG 2.2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _palettes(css: str) -> list[dict[str, str]]:
    """The colours of curves and of the card behind them, light and dark."""
    found = [(name, colour.lower()) for name, colour in re.findall(r"--(c\d|card): ?(#\w{6})", css)]
    return [dict(found[: len(found) // 2]), dict(found[len(found) // 2 :])]


@given(st.lists(st.tuples(st.floats(0, 960), st.text(max_size=40)), max_size=40))
def test_texts_below_an_axis_lie_in_the_picture_and_do_not_touch(marks: list[tuple[float, str]]) -> None:
    width, end = 960.0, 0.0
    for middle, text in texts_with_room(sorted(marks), width):
        half = len(text) * 6.5 / 2
        assert end <= middle - half + 1e-6
        assert middle + half <= width + 1e-6
        end = middle + half


def test_texts_below_an_axis_are_all_there_where_they_have_room_and_cut_where_they_are_long() -> None:
    marks = [(100.0, "a"), (500.0, "../books/of/a/very/long/path"), (900.0, "b")]
    assert [text for _, text in texts_with_room(marks, 960)] == ["a", "../books/of/a/very/long…", "b"]


def _drawn_with_ticks(*xs: float) -> str:
    """A chart of points at these places, with texts at -4 to -1."""
    ticks = tuple((float(place), f"at {place}") for place in range(-4, 0))
    points = tuple((x, 1.0) for x in xs)
    series = (Series(name="a", points=points, colour=1),)
    return draw(Chart(title="t", x_label="x", y_label="y", series=series, x_ticks=ticks))


def test_texts_of_an_axis_outside_of_what_is_drawn_are_left_out() -> None:
    assert re.findall(r">(at [^<]+)<", _drawn_with_ticks(-3.0, -2.0)) == ["at -3", "at -2"]


def test_axis_of_one_negative_value_ascends_and_has_its_text() -> None:
    assert re.findall(r">(at [^<]+)<", _drawn_with_ticks(-3.0)) == ["at -3", "at -2", "at -1"]


def test_palette_is_one_for_all_pages_and_stands_out_from_the_paper() -> None:
    package = Path(charts.__file__).parents[1]
    report, start = (
        _palettes((package / name).read_text(encoding="utf-8"))
        for name in ("report/templates/style.css.j2", "start_page/static/start.css")
    )
    alone = _palettes(draw_standalone(Chart(title="t", x_label="x", y_label="y", series=())))
    assert report == start
    for palette, drawn in zip(report, alone, strict=True):
        paper = _luminance(palette.pop("card"))
        assert palette == drawn
        assert len(palette) == 6
        for colour in palette.values():
            low, high = sorted((paper, _luminance(colour)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_figure_hands_the_script_what_was_smoothed_and_no_markup() -> None:
    points = tuple((float(step), float(step % 2)) for step in range(100_000))
    chart = Chart(title="t", x_label="x", y_label="y", series=(smooth_series("</script><b>", points, colour=1),))
    text = str(Figure(name="f", chart=chart).data)
    assert "<" not in text
    assert len(text) < 10_000
    (series,) = json.loads(text)["series"]
    assert series["name"] == "</script><b>"
    assert series["smooth"]
    assert len(series["xs"]) == len(series["ys"]) == 400
    assert series["ys"] == pytest.approx([0.5] * 400)

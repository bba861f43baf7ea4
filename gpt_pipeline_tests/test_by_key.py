"""A metric against a key: which experiments share a line, and what is said where there is nothing to show."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.comparison.by_key import key_chart, key_sheet, with_key
from gpt_pipeline.comparison.compare import compare_experiments, compare_with_families, families
from gpt_pipeline.comparison.page import render_page, require_page
from gpt_pipeline.comparison.show import as_json, key_markdown, markdown
from gpt_pipeline.comparison.standings import ByKey
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.report.charts import draw
from gpt_pipeline.report.figures import Figure, chart_values
from gpt_pipeline.sheet import plain_text
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_comparison import add_metrics, trained


@pytest.fixture
def grid(tmp_path: Path) -> list[Experiment]:
    project = TinyProject(root=tmp_path)
    made = []
    for seed in (2, 1):
        for rate, loss in ((0.01, 2.5), (0.001, 3.0), (0.002, 2.75)):
            name = f"r-{rate}-{seed}"
            trained(project, name, {4: loss + seed / 100}, learning_rate=f"{rate}, seed: {seed}")
            file = project.root / "experiments" / f"{name}.yaml"
            file.write_text(file.read_text().replace("data:", "family: r\ndata:"))
            made.append(load_experiment(file))
    return made


def _only(experiments: list[Experiment], **asked: str) -> ByKey:
    (found,) = with_key(compare_experiments(experiments), **asked).by_key
    return found


def _losses(by: ByKey) -> list[list[float | None]]:
    lines = [[each.best if each else None for each in line.standings] for line in by.lines]
    return [[round(each.metrics["val_loss"], 3) if each else None for each in line] for line in lines]


def test_by_key_without_a_key_takes_the_one_with_the_most_numbers(grid: list[Experiment]) -> None:
    by = _only(grid)
    assert (by.key, by.metric.key, by.values) == ("training.learning_rate", "val_loss", (0.001, 0.002, 0.01))
    assert [line.name for line in by.lines] == ["training.seed 1", "training.seed 2"]
    assert _losses(by) == [[3.01, 2.76, 2.51], [3.02, 2.77, 2.52]]


def test_by_key_of_another_key_and_metric_has_a_line_for_each_rate(grid: list[Experiment]) -> None:
    by = _only(grid[1:], key="training.seed", metric="val_bpb")
    assert (by.metric.key, by.values) == ("val_bpb", (1, 2))
    assert [line.name for line in by.lines] == [f"training.learning_rate {rate}" for rate in (0.001, 0.002, 0.01)]
    assert _losses(by) == [[3.01, 3.02], [2.76, 2.77], [2.51, None]]


def test_by_key_leaves_out_a_key_that_only_follows_it(grid: list[Experiment]) -> None:
    by = _only([grid[0], grid[4]])
    assert [line.name for line in by.lines] == [""]


def test_by_key_of_answers_to_other_questions_calls_none_best(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    few, many = ([{"correct": n < count} for n in range(10)] for count in (0, 9))
    same = [
        trained(project, name, {4: 2.5}, learning_rate=rate, answers=answers)
        for name, rate, answers in (("a", 0.1, few), ("b", 0.2, many))
    ]
    other = trained(project, "c", {4: 2.5}, learning_rate=0.3, answers=many, question="Who?")
    told = "so that none is called best"
    for experiments, is_ranked in ((same, True), ([*same, other], False)):
        shown = plain_text([key_sheet(_only(experiments, key="training.learning_rate", metric="correct"))])
        assert ("*90 %" in shown, told in shown) == (is_ranked, not is_ranked)


def test_by_key_of_drawn_answers_names_the_best_beside_one_without_any(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    experiments = [trained(project, "base", {4: 2.5}, learning_rate=0.1, answers=[{"correct": True}] * 10)]
    for name, rate, share in (("a", 0.2, 0.1), ("b", 0.3, 0.9)):
        answers = [{"correct": True, "pass_at_1": share}] * 10
        config = {"samples_per_question": 4}
        experiments.append(trained(project, name, {4: 2.5}, learning_rate=rate, config=config, answers=answers))
        add_metrics(experiments[-1], pass_at_1=share)
    shown = plain_text([key_sheet(_only(experiments, key="training.learning_rate", metric="pass_at_1"))])
    assert ("*0.90" in shown, "none is called best" in shown) == (True, False)


def test_by_key_of_experiments_on_other_held_out_tokens_keeps_them_apart(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    experiments = [
        trained(project, f"{shards}{rate}", {4: 2.5}, learning_rate=rate, shards=shards * 64)
        for shards in "de"
        for rate in (0.001, 0.002)
    ]
    assert [
        [each for each in line.standings if each]
        for by in with_key(compare_experiments(experiments)).by_key
        for line in by.lines
    ] != []
    assert len(with_key(compare_experiments(experiments)).by_key) == 2


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"key": "training.sead"},
            "found training.sead, need a key that differs within a group: .* did you mean training.seed",
        ),
        ({"metric": "val_los"}, "found val_los, need .* did you mean val_loss"),
    ],
)
def test_by_key_that_is_none_names_what_there_is(grid: list[Experiment], asked: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        with_key(compare_experiments(grid), **asked)


def test_by_key_drawn_has_equal_steps_for_equal_factors_and_the_values_as_marks(grid: list[Experiment]) -> None:
    chart = key_chart(_only(grid))
    assert [text for _, text in chart.x_ticks] == ["0.001", "0.002", "0.01"]
    low, middle, high = (x for x, _ in chart.x_ticks)
    assert (middle - low) / (high - low) == pytest.approx(0.301, abs=0.001)
    picture = draw(chart)
    assert picture.count("<polyline") == 2
    assert picture.count("training.seed 1") == 1  # one name for the line and its points


def test_by_key_of_many_values_hands_the_script_each_and_names_those_that_have_room(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    rates = [number / 1000 for number in range(1, 31)]
    grid = [trained(project, f"r{number}", {4: 2.5}, learning_rate=rate) for number, rate in enumerate(rates)]
    chart = key_chart(_only(grid))
    assert [text for _, text in chart_values(chart)["ticks"]] == [str(rate) for rate in rates]
    named = [text for text in re.findall(r">([0-9.]+)</text>", draw(chart)) if float(text) in rates]
    assert named[:6] == ["0.001", "0.002", "0.003", "0.004", "0.005", "0.006"]
    assert 12 <= len(named) < 20  # equal factors: the more, the narrower
    assert [x for _, x, _ in Figure(name="rates", chart=chart).table[1:]][-1] == "0.03"


def test_by_key_of_a_metric_that_a_line_lacks_is_drawn_without_that_line(grid: list[Experiment]) -> None:
    for experiment in grid[:3]:  # those of seed 2
        _forget_metric(experiment, "correct")
    by = _only(grid, key="training.learning_rate", metric="correct")
    assert [line.name for line in by.lines] == ["training.seed 1", "training.seed 2"]
    assert {series.name for series in key_chart(by).series if series.name} == {"training.seed 1"}
    page = render_page(with_key(compare_experiments(grid), key=by.key, metric="correct"), grid, links=lambda _: None)
    assert f'aria-label="{by.title}"' in page
    for experiment in grid[3:]:
        _forget_metric(experiment, "correct")
    page = render_page(with_key(compare_experiments(grid), key=by.key, metric="correct"), grid, links=lambda _: None)
    assert by.title in page
    assert f'aria-label="{by.title}"' not in page


def _forget_metric(experiment: Experiment, name: str) -> None:
    for file in experiment.folder.evaluations.glob("*.json"):
        value = json.loads(file.read_text())
        del value["metrics"][name]
        file.write_text(json.dumps(value))


def test_compare_of_a_family_prints_its_table_and_writes_the_page(
    grid: list[Experiment], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [str(each.file) for each in grid]
    with pytest.raises(SystemExit) as end:
        main(["compare", *files, "--html", str(tmp_path / "page.html")])
    assert not end.value.code
    printed = capsys.readouterr().out
    table = printed[printed.index("val loss of the best checkpoints by training.learning_rate") :].splitlines()
    assert table[1].split() == ["training.seed", "1", "training.seed", "2"]
    assert table[-1].split() == ["0.01", "*2.510", "2.520"]
    page = (tmp_path / "page.html").read_text()
    assert 'aria-label="val loss of the best checkpoints by training.learning_rate"' in page
    assert "*2.510" in page


def test_comparison_without_a_key_says_nothing_of_one(grid: list[Experiment]) -> None:
    found = compare_experiments(grid)
    assert as_json(found)["by_key"] == []
    assert "best checkpoints by" not in markdown(found)


def test_key_that_differs_between_groups_alone_is_said_rather_than_shown_nowhere(grid: list[Experiment]) -> None:
    apart = dataclasses.replace(compare_experiments(grid), groups=())
    assert with_key(apart).by_key == ()
    with pytest.raises(UserError, match=r"--by: found training\.learning_rate, which differs only between"):
        with_key(apart, key="training.learning_rate")
    with pytest.raises(UserError, match=r"--by: found training\.sead, need a key that differs within a group$"):
        with_key(apart, key="training.sead")


def test_families_of_several_are_told_by_name(grid: list[Experiment]) -> None:
    assert {name: len(members) for name, members in families(grid).items()} == {"r": 6}
    assert families(grid[:1]) == {}
    other = dataclasses.replace(
        grid[0], config=dataclasses.replace(grid[0].config, family=None), file=Path("other.yaml")
    )
    whole, of_families = compare_with_families([*grid, other])
    assert len(whole.standings) == 7
    assert of_families == {"r": compare_experiments(grid)}
    ((title, picture, table),) = key_markdown(with_key(compare_experiments(grid)))
    assert title.endswith("by training.learning_rate")
    assert picture.startswith("<svg")
    assert "| 0.01 |" in table


def test_page_of_a_comparison_replaces_no_file_of_another_kind(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("experiment_name: mine")
    with pytest.raises(UserError, match=r"found .*mine\.yaml, which is no page of this program"):
        require_page(mine)
    with pytest.raises(UserError, match=rf"found the folder .*; use {tmp_path}/comparison\.html"):
        require_page(tmp_path)
    page = tmp_path / "page.html"
    require_page(page)
    page.write_text('<!doctype html><meta name="generator" content="gpt_pipeline 0.1.0">')
    require_page(page)

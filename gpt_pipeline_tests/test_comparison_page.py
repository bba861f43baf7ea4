"""The page of a comparison: the table of all experiments, their curves, and their answers beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.comparison.answers import answers_side_by_side
from gpt_pipeline.comparison.by_key import with_key
from gpt_pipeline.comparison.compare import compare_experiments
from gpt_pipeline.comparison.page import render_page, write_page
from gpt_pipeline.comparison.show import losses_svg
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.project import Project
from gpt_pipeline.report.page import page_policy, page_script
from gpt_pipeline.start_page.comparison import ComparisonPage
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_comparison import trained
from gpt_pipeline_tests.test_report import Page


def html(experiments: Sequence[Experiment], **changes: Any) -> str:
    return render_page(compare_experiments(experiments), experiments, **{"links": lambda _: None, **changes})


def drawn(page: Page, title: str) -> dict[str, Any]:
    """The curves of the chart whose title begins so, by their names."""
    (found,) = [each for each in map(json.loads, page.scripts[:-1]) if each["title"].startswith(title)]
    return {each["name"]: each for each in found["series"]}


def row_of(text: str, name: str) -> str:
    """The row of the table of experiments that begins with this name."""
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    return next(row for row in table.split("<tr>") if f"<td>{name}" in row)


def said(question: str, answer: str, *, right: bool, reasoning: str = "") -> dict[str, Any]:
    return {"question": question, "expected": "4", "answer": answer, "correct": right, "reasoning": reasoning}


def test_page_lists_every_experiment_with_values_to_sort_by(project: TinyProject) -> None:
    experiments = [
        trained(project, "slow", {4: 3.0, 8: 2.5}, answers=({"correct": True}, {"correct": False})),
        trained(project, "quick", {4: 2.25}, answers=({"correct": True}, {"correct": True})),
    ]
    project.write_experiment("waits")
    text = html([*experiments, project.experiment("waits")], links=lambda each: f"/report/{each.name}")
    assert "Comparison of 3 experiments" in text
    row = row_of(text, '<a href="/report/slow">slow</a>')
    for value in ("2.5", "0.5", "128.0", "8.0", "2026-11-01T10:00:08Z"):  # loss, right, tokens/s, seconds, date
        assert f'<td data-value="{value}">' in row
    assert "1 of 2" in row
    assert row_of(text, '<a href="/report/waits">waits</a>').count('data-value=""') == 5
    assert text.index(">quick</a>") < text.index(">slow</a>") < text.index(">waits</a>")


def test_page_of_a_training_without_evaluation_shows_the_trainers_estimate(project: TinyProject) -> None:
    experiment = trained(project, "young", {4: 3.5})
    for file in experiment.folder.evaluations.glob("*.json"):
        file.unlink()
    assert '<td data-value="3.5">about 3.500' in row_of(html([experiment]), "young")


def test_page_runs_no_script_but_its_own_whatever_names_and_answers_hold(project: TinyProject) -> None:
    hostile = "<script>alert(1)</script><img src=//evil onerror=alert(2)>"
    answers = (said(hostile, hostile, right=False, reasoning=hostile),)
    experiments = [
        trained(project, stem, {4: loss}, answers=answers, max_steps=steps)
        for stem, loss, steps in (("a", 2.0, 10), ("b", 3.0, 12))
    ]
    file = write_page(with_key(compare_experiments(experiments)), experiments, project.root / "page.html")
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts[-1] == page_script()
    assert all(json.loads(each)["series"] for each in page.scripts[:-1])
    assert not {"img", "iframe", "link"} & set(page.tags)
    assert page.text.count(hostile) == 5  # the question, and two answers with their reasoning
    assert page_policy() in text.replace("&#39;", "'")
    assert "training.max_steps" in page.text


def test_page_draws_curves_on_one_axis_and_bears_the_same_style_in_each_chart(project: TinyProject) -> None:
    experiments = [trained(project, f"e{number:02d}", {4: 3.0 + number, 8: 2.0 + number}) for number in range(13)]
    text = html(experiments)
    page = Page(text)
    losses, speed = drawn(page, "Validation loss in nats per token against training tokens"), drawn(page, "Speed")
    assert [*losses] == [f"e{number:02d}" for number in range(12)]
    assert "The best 12 of 13 experiments are drawn." in page.text
    assert (losses["e01"]["xs"], losses["e01"]["ys"]) == ([512, 1024], [4, 3])
    assert drawn(page, "Memory")["e02"]["ys"] == [4, 8]
    for name, curve in losses.items():
        assert (curve["colour"], curve["dash"]) == (speed[name]["colour"], speed[name]["dash"])
    assert text.count('<polyline class="line') == 12 * 6  # without the script, too: losses four times, speed, memory


def test_page_of_trainings_on_rewards_shows_right_answers_first(project: TinyProject) -> None:
    experiments = [trained(project, stem, {4: 3.0, 8: 2.0}) for stem in ("a", "b")]
    for experiment in experiments:
        records = [
            {"kind": "train", "step": 4, "tokens_seen": 512, "train_loss": -7.0, "reward": 0.25},
            {"kind": "validation", "step": 4, "tokens_seen": 512, "val_loss": 3.0, "pass_at_1": 0.375},
        ]
        lines = "".join(json.dumps(each) + "\n" for each in records)
        experiment.folder.metrics.write_text(lines, encoding="utf-8")
    page = Page(html(experiments))
    titles = [json.loads(each)["title"] for each in page.scripts[:-1]]
    assert titles[:3] == [
        "Held-out pass@1 against step",
        "Mean reward against step",
        "Validation loss in nats per token against training tokens",
    ]
    assert drawn(page, "Held-out pass@1")["b"]["ys"] == [0.375]
    assert not any(title.startswith("Training loss") for title in titles)
    assert "Held-out pass@1" in losses_svg(experiments)
    base = trained(project, "base", {4: 3.0, 8: 2.0})
    titles = [json.loads(each)["title"] for each in Page(html([*experiments, base])).scripts[:-1]]
    assert titles.index("Held-out pass@1 against step") > titles.index(
        "Training loss in nats per token against training tokens"
    )
    assert "Validation loss" in losses_svg([*experiments, base])


@pytest.mark.parametrize("count", [12, 13])
def test_page_reads_each_training_once_where_all_are_drawn(project: TinyProject, count: int) -> None:
    experiments = [trained(project, f"e{number:02d}", {4: 3.0, 8: 2.0}) for number in range(count)]
    found = compare_experiments(experiments)
    for experiment in experiments:
        experiment.folder.metrics.unlink()
    assert ("Curves" in Page(render_page(found, experiments, links=lambda _: None)).text) == (count == 12)


def test_page_keeps_apart_the_curves_of_losses_that_do_not_compare(project: TinyProject) -> None:
    experiments = [trained(project, "a", {4: 3.0}), trained(project, "b", {4: 2.0}, shards="f" * 64)]
    text = html(experiments)
    assert "Curves of group 1" in text
    assert "Curves of group 2" in text
    assert "<td>2</td>" in row_of(text, "b")


def test_answers_stand_beside_each_other_those_first_on_which_models_differ(project: TinyProject) -> None:
    alike, split, own = said("1+3?", "4", right=True), said("2+2?", "5", right=False), said("Who?", "Ann", right=True)
    better = {**split, "answer": "4", "correct": True, "reasoning": "Two and two."}
    experiments = [
        trained(project, "base", {4: 3.0}, answers=(alike, split, own)),
        trained(project, "tuned", {4: 2.0}, answers=(alike, better)),
    ]
    found = answers_side_by_side(compare_experiments(experiments).standings)
    assert [given["question"] for given, _ in found.rows] == ["2+2?", "1+3?"]
    assert dict(zip(found.names, found.scores, strict=True)) == {"tuned": "2 of 2 right", "base": "1 of 2 right"}
    page = Page(html(experiments))
    place = page.text.index("2+2?")
    told = " ".join(page.text[place : page.text.index("1+3?")].split())
    assert told.startswith("2+2? Expected 4 tuned ✓ right ReasoningTwo and two. 4 base ✗ not right 5")
    assert "Who?" not in page.text


def test_answers_to_questions_that_no_two_were_asked_are_not_shown(project: TinyProject) -> None:
    experiments = [
        trained(project, "a", {4: 3.0}, answers=(said("1?", "1", right=True),)),
        trained(project, "b", {4: 2.0}, answers=(said("2?", "2", right=True),)),
    ]
    assert answers_side_by_side(compare_experiments(experiments).standings).rows == ()
    assert 'id="answers"' not in html(experiments)


def test_answers_have_no_column_without_an_answer(project: TinyProject) -> None:
    asked = ["1?"] * 5 + ["2?"] * 2  # the other one of these is behind those that are shown
    experiments = [
        trained(project, f"e{n}", {4: 2.0 + n}, answers=(said(question, "1", right=True),))
        for n, question in enumerate(asked)
    ]
    found = answers_side_by_side(compare_experiments(experiments).standings)
    assert (found.names, found.asked) == (("e0", "e1", "e2", "e3", "e4"), 1)
    assert set(found.scores) == {"1 of 1 right"}


def test_page_of_a_project_leaves_out_what_cannot_be_read_and_is_not_made_for_each_who_asks(
    project: TinyProject,
) -> None:
    trained(project, "good", {4: 3.0})
    project.write_experiment("far")
    far = project.root / "experiments" / "far.yaml"
    far.write_text(far.read_text(encoding="utf-8").replace("../storage", "good.yaml"), encoding="utf-8")
    (project.root / "experiments" / "bad.yaml").write_text("experiment_name: Bad\nnope: 1\n", encoding="utf-8")
    now = [0.0]
    here = Project(root=project.root, experiments=project.root / "experiments")
    page = ComparisonPage(here, report=lambda key: f"/{key}", clock=lambda: now[0])
    first = page.html()
    assert "Comparison of 1 experiment<" in first
    assert "bad.yaml is not shown" in first
    assert "far.yaml is not shown" in first
    trained(project, "later", {4: 2.0})
    assert page.html() is first
    now[0] += 60
    assert "Comparison of 2 experiments" in page.html()


def test_page_of_a_project_without_experiments_is_there(tmp_path: Path) -> None:
    here = Project(root=tmp_path, experiments=tmp_path / "experiments")
    assert "Comparison of 0 experiments" in ComparisonPage(here, report=str).html()

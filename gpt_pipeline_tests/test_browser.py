"""The pages of Dagster and MLflow in a real browser, over a small project: what a person presses, and sees then."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from gpt_pipeline.comparison.compare import compare_experiments
from gpt_pipeline.comparison.page import write_page
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.launchers.submission import read_submission
from gpt_pipeline.report.build import TrainingStatus, build_report
from gpt_pipeline_tests.browser_project import (
    FIRST_STEP,
    LAST_STEP,
    DagsterPages,
    chromium,
    window,
    write_slow_experiment,
)
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject, trainer_pids
from gpt_pipeline_tests.servers import dagster_pages, free_port, is_answered, mlflow_ui, wait
from gpt_pipeline_tests.slurm_cluster import slurm_cluster
from gpt_pipeline_tests.slurm_cluster import why_not as why_no_slurm
from gpt_pipeline_tests.test_comparison import trained

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from gpt_pipeline.experiment.load import Experiment

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name == "nt", reason="process groups, signals and /proc are POSIX"),
]

_AT_ONCE = 30_000  # milliseconds, on a busy machine, for what a page does by itself


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def _last_step(project: TinyProject) -> int:
    return max((info.step for info in project.checkpoints("slow")), default=0)


def _is_evaluated(project: TinyProject, stem: str, step: int) -> bool:
    folder = project.experiment(stem).folder.evaluations
    return any(
        result.step == step and (folder / "logged" / result.path.name).is_file() for result in read_evaluations(folder)
    )


def _assert_goes_on_to_the_end(pages: DagsterPages, project: TinyProject) -> None:
    """Materialize the stopped training again: it goes on from its last step."""
    stopped_at = _last_step(project)
    assert FIRST_STEP <= stopped_at < LAST_STEP
    pages.materialize_all("run_slow")
    pages.wait_for_status("Success")
    pages.wait_for_event(f"step {stopped_at}")
    assert _last_step(project) == LAST_STEP


def test_browser_experiment_is_started_watched_stopped_resumed_and_followed_into_mlflow(
    browser: Browser, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    write_slow_experiment(project)
    mlflow_port = free_port()
    with dagster_pages(project, mlflow_port=mlflow_port) as address, window(browser, pictures=tmp_path) as page:
        pages = DagsterPages(page, address)

        pages.materialize_all("run_slow")
        pages.wait_for_event(f"checkpoint_step_{FIRST_STEP}.pt")  # in the log, while the training goes on
        assert trainer_pids(project)
        pages.terminate()
        pages.wait_for_status("Canceled")
        pages.wait_for_event("is saved")
        assert trainer_pids(project) == []
        _assert_goes_on_to_the_end(pages, project)

        wait(
            lambda: _is_evaluated(project, "slow", LAST_STEP),
            seconds=300,
            what="the sensor's evaluation of the last step",
        )
        pages.open_asset("slow/evaluation", "partitions&partition=step_00000700")
        page.get_by_text("val_bpb").first.wait_for()
        with mlflow_ui(project, port=mlflow_port), page.context.expect_page() as opened:
            page.get_by_role("link", name="experiments/").first.click()
            run = opened.value
            run.get_by_text("step_700").first.wait_for()
            run.get_by_text("val_bpb").first.wait_for()


@pytest.mark.skipif(bool(why_no_slurm()), reason=f"a real Slurm {why_no_slurm()}")
def test_browser_training_on_slurm_is_terminated_with_a_checkpoint_and_goes_on(
    browser: Browser, tmp_path: Path
) -> None:
    with ExitStack() as running:
        folder = Path(running.enter_context(TemporaryDirectory(prefix="slurm-")))  # short enough for a socket's name
        cluster = running.enter_context(slurm_cluster(folder))
        project = TinyProject(root=tmp_path, variables=cluster.environment)
        write_slow_experiment(project)
        file = project.root / "experiments" / "slow.yaml"
        file.write_text(file.read_text().replace("{device: cpu}", "{device: cpu, launcher: slurm, slurm: {nodes: 2}}"))
        address = running.enter_context(dagster_pages(project))
        pages = DagsterPages(running.enter_context(window(browser, pictures=tmp_path)), address)

        pages.materialize_all("run_slow")
        pages.wait_for_event(f"checkpoint_step_{FIRST_STEP}.pt")
        pages.terminate()
        pages.wait_for_status("Canceled")
        pages.wait_for_event("the trainer saves a checkpoint at the next step and exits")

        note = read_submission(project.experiment("slow").folder)
        assert note is not None
        assert note.state == "cancelled"
        assert cluster.ask("squeue", "--noheader", "--states=running,pending") == ""
        _assert_goes_on_to_the_end(pages, project)


def _write_own_data(project: TinyProject) -> None:
    """Write `experiments/own.yaml`, a mix of texts, pairs and conversations, and their files."""
    folder = project.root / "mine"
    (folder / "texts").mkdir(parents=True)
    for number in range(60):
        text = f"Chapter {number}. The number {number} follows {number - 1}, and {number + 1} comes behind it.\n"
        (folder / "texts" / f"{number:03d}.txt").write_text(text * 3, encoding="utf-8")
    pairs = [f"What is {number} and {number}?,{2 * number}" for number in range(80)]
    (folder / "pairs.csv").write_text("\n".join(["question,answer", *pairs]), encoding="utf-8")
    roles = ("user", "assistant", "user", "assistant")
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for number in range(80):
            said = ("Count.", f"It is {number}.", "And then?", f"Then it is {number + 1}.")
            turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
            file.write(json.dumps({"messages": turns}) + "\n")
    own = f"""data:
  num_samples: all
  max_length: 32
  validation_fraction: 0.2
  mix:
    texts: {{source: {folder}/texts, format: text, share: 2}}
    pairs: {{source: {folder}/pairs.csv, format: question_answer, share: 1}}
    chats: {{source: {folder}/chats.jsonl, format: chat, share: 1}}
"""
    path = project.write_experiment("own")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(own.rstrip() if line.startswith("data:") else line for line in lines), encoding="utf-8")


def test_browser_own_data_of_several_kinds_goes_from_files_to_an_evaluated_model(
    browser: Browser, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    _write_own_data(project)
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        pages = DagsterPages(page, address)
        pages.materialize_all("run_own")
        pages.wait_for_status("Success")

        wait(lambda: _is_evaluated(project, "own", 12), seconds=300, what="the sensor's evaluation of the last step")
        pages.open_asset("own/evaluation", "partitions&partition=step_00000012")
        page.get_by_text("val_bpb").first.wait_for()
        for text in ("SYNTH", "synth", "English", "exercise"):
            assert page.get_by_text(text).count() == 0, text
        metrics = read_evaluations(project.experiment("own").folder.evaluations)[-1].metrics
        assert {"val_loss/texts", "val_loss/pairs", "val_loss/chats"} <= set(metrics)


def test_browser_broken_file_is_a_group_of_its_own_beside_the_others(browser: Browser, tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("good")
    (tmp_path / "experiments" / "bad.yaml").write_text("experiment_name: Bad\ndata: {num_smaples: 5}\n")
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        pages = DagsterPages(page, address)
        pages.open("/assets")
        page.get_by_role("link", name="good / training").wait_for()
        page.get_by_role("link", name="experiment_file").click()
        page.get_by_text("did you mean").wait_for()
        page.get_by_role("link", name="bad.yaml").first.wait_for()


def test_browser_project_without_experiments_says_how_to_begin(browser: Browser, tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        pages = DagsterPages(page, address)
        pages.open_asset("start_here")
        page.get_by_text("There is no experiment yet").wait_for()
        page.get_by_text("gpt-pipeline init").wait_for()
        project.write_experiment("first")
        pages.open("/assets")
        page.get_by_role("link", name="first / training").wait_for()  # without *Reload definitions*


def test_browser_job_whose_file_was_changed_runs_what_the_file_says_now(browser: Browser, tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        pages = DagsterPages(page, address)
        pages.open_job("run_tiny")
        page.get_by_text("data_sample_300").first.wait_for()
        project.write_experiment("tiny", num_samples=200)
        page.get_by_text("data_sample_200").first.wait_for()
        pages.materialize_all("run_tiny")
        pages.wait_for_status("Success")


def _shown_step(page: Page) -> int:
    return int(page.locator("#slow .step b").inner_text())


def test_browser_start_page_follows_a_training_by_itself_and_leads_on(browser: Browser, tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    write_slow_experiment(project)
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        page.goto(f"{address}/start")
        card = page.locator("#slow")
        card.get_by_text("not started").wait_for()
        card.evaluate("() => { window.isStillTheSamePage = true }")
        training = project.start("run", "experiments/slow.yaml")
        try:
            card.get_by_text("training", exact=True).wait_for()
            card.locator("svg polyline").first.wait_for()
            first = _shown_step(page)
            wait(lambda: _shown_step(page) > first, seconds=300, what="a later step on the page")
            page.set_viewport_size({"width": 400, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            training.terminate()  # a background job ignores SIGINT
            card.get_by_text(re.compile("^(stopped|evaluating)$")).wait_for()
        finally:
            training.kill()
            output_of(training)
        assert page.evaluate("window.isStillTheSamePage")
        card.get_by_role("link", name="Dagster job").click()
        page.get_by_role("button", name="Materialize all").wait_for()


def test_browser_start_page_without_experiments_shows_the_first_one_when_it_is_written(
    browser: Browser, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    with dagster_pages(project) as address, window(browser, pictures=tmp_path) as page:
        page.goto(f"{address}/start")
        page.get_by_text("There is no experiment yet").wait_for()
        page.get_by_text("gpt-pipeline init").first.wait_for()
        project.write_experiment("first")
        page.locator("#first").get_by_text("not started").wait_for()
        assert not page.get_by_text("There is no experiment yet").is_visible()


def test_browser_talk_shows_each_models_answer_as_it_comes_and_marks_what_is_known(
    browser: Browser, tmp_path: Path
) -> None:
    project = TinyProject(root=tmp_path)
    write_slow_experiment(project)
    project.run("run", "experiments/slow.yaml")
    models = ("experiments/slow.yaml", f"experiments/slow.yaml@step_{FIRST_STEP}")
    port = free_port()
    serving = project.start("serve", *models, "--port", str(port))
    try:
        wait(lambda: is_answered(f"http://127.0.0.1:{port}/v1/models"), seconds=180, what="the server")
        with window(browser, pictures=tmp_path) as page:
            page.goto(f"http://127.0.0.1:{port}")
            question, ask = page.get_by_label("Question", exact=True), page.get_by_role("button", name="Ask")
            page.get_by_role("button", name="Next").click()
            known = read_evaluations(project.experiment("slow").folder.evaluations)[-1].answers[0]
            assert question.input_value() == known["question"]
            ask.click()
            page.get_by_text(re.compile("^[0-2] of 2 right$")).wait_for()
            cards = page.locator("article:visible")
            assert cards.count() == 2
            assert cards.locator("[data-mark]:visible").count() == 2
            assert page.get_by_text(re.compile(r"tokens? in")).count() == 2
            page.locator("#settings summary").click()
            page.get_by_label("Tokens").fill("5000")
            ask.click()
            page.get_by_text("shorten the prompt, or ask for fewer").last.wait_for()
            page.locator("#go:not([disabled])").wait_for()
            assert page.locator("#told").inner_text() == ""  # who gave no answer gave none that is not right
            page.get_by_label("Tokens").fill("")
            page.get_by_label("Temperature").fill("")
            with page.expect_request("**/v1/chat/completions") as sent:
                ask.click()
            assert sent.value.post_data_json["temperature"] == 0  # as the page says
            page.locator("#go:not([disabled])").wait_for()
            question.fill("What else?")  # which nobody knows the answer to
            page.get_by_label(re.compile(f"step_{FIRST_STEP}")).first.uncheck()
            page.get_by_label("Temperature").fill("0.8")
            page.get_by_text("temperature 0.8, seed 0").wait_for()
            ask.click()
            page.locator("#go:not([disabled])").wait_for()
            assert cards.count() == 1
            assert cards.locator("[data-mark]:visible").count() == 0
            page.get_by_label("Temperature").fill("9")
            ask.click()  # the browser itself refuses the value
            assert page.locator("#temperature:invalid").count() == 1
            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    finally:
        serving.terminate()
        output_of(serving)


def _write_finished(project: TinyProject) -> list[Experiment]:
    """Two experiments with what trainings and evaluations leave behind: no training is needed to look at pages."""
    made = []
    for stem, floor in (("good", 2.0), ("poor", 3.0)):
        answer = {"question": "2+2?", "expected": "4", "answer": "4", "reasoning": "", "correct": stem == "good"}
        answers = ({**answer, "well_formed": True, "ended": True},)
        experiment = trained(project, stem, {400: floor}, answers=answers)
        common = [{"step": step, "tokens_seen": step * 128, "seconds": step * 2.0} for step in range(1, 401)]
        lines = [
            {"kind": "train", "train_loss": floor + step["step"] % 2, "tokens_per_second": 900.0, **step}
            for step in common
        ]
        lines += [{"kind": "validation", "val_loss": floor + 40 / each["step"], **each} for each in common[39::40]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        experiment.folder.metrics.write_text(text, encoding="utf-8")
        made.append(experiment)
    return made


def _curve(page: Page, colour: int) -> list[tuple[float, float]]:
    """The points of the line of this colour, if it is there, in the chart that is seen first; in its pixels."""
    lines = page.locator(f"[role=slider]:visible >> nth=0 >> polyline[stroke='var(--c{colour})']").all()
    pairs = [pair.split(",") for line in lines for pair in (line.get_attribute("points") or "").split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_browser_comparison_is_smoothed_scaled_hidden_read_sorted_and_filtered(
    browser: Browser, tmp_path: Path
) -> None:
    experiments = _write_finished(TinyProject(root=tmp_path))
    file = write_page(compare_experiments(experiments), experiments, tmp_path / "page.html")
    with window(browser, pictures=tmp_path) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.set_default_timeout(_AT_ONCE)
        page.goto(file.as_uri())
        page.get_by_text("training loss by tokens").click()
        figure = page.locator("#curves .tabs figure:visible")

        def spread() -> float:
            heights = [y for _, y in _curve(page, 1)]
            return max(heights[50:-50]) - min(heights[50:-50])

        noisy = spread()
        figure.get_by_label("smoothing").fill("20")
        assert spread() < noisy / 4
        figure.get_by_label("smoothing").fill("0")
        assert spread() > noisy

        even = _curve(page, 1)
        figure.get_by_label("log x").check()
        assert _curve(page, 1)[200][0] > even[200][0] + 50  # the middle moves to the right
        figure.get_by_label("log x").uncheck()
        assert _curve(page, 1) == even

        picture = figure.get_by_role("slider", name="Training loss")
        picture.focus()
        page.keyboard.press("End")
        assert picture.get_attribute("aria-valuetext") == "training tokens 51,200, good 2, poor 3"
        page.keyboard.press("Escape")
        picture.hover(position={"x": 400, "y": 200})
        figure.get_by_text(re.compile(r"^training tokens [\d,]+$")).wait_for()

        figure.get_by_role("button", name="poor").click()
        assert not _curve(page, 2)
        assert page.locator("#curves .grid [role=slider] polyline").count() == 1  # in the chart of speeds, too
        figure.get_by_role("button", name="poor", pressed=False).click()
        assert len(_curve(page, 2)) == 400

        names = page.locator("#experiments tbody tr:visible td:first-child")
        assert names.all_inner_texts() == ["good", "poor"]
        page.get_by_role("button", name="loss", exact=True).click()
        page.get_by_role("button", name="loss", exact=True).click()
        assert names.all_inner_texts() == ["poor", "good"]
        page.get_by_label("filter").fill("oo ST goo")
        assert names.all_inner_texts() == ["good"]
        page.get_by_text("1 of 2", exact=True).wait_for()

        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert errors == []


def test_browser_report_without_scripts_shows_its_pictures_and_one_of_another_version_runs_none(
    browser: Browser, tmp_path: Path
) -> None:
    experiment, _ = _write_finished(TinyProject(root=tmp_path))
    status = TrainingStatus(word="finished", detail="")
    report = build_report(experiment.folder, title="Good", status=status, config={}, facts={})
    with window(browser, pictures=tmp_path) as page:
        page.set_default_timeout(_AT_ONCE)
        page.goto(report.as_uri())
        page.get_by_role("slider", name="Loss").first.wait_for()
        other = report.read_text(encoding="utf-8").replace("new Plot(place)", "new Plot( place)")
        report.write_text(other, encoding="utf-8")
        page.goto(report.as_uri())
        assert page.locator("#loss svg polyline:visible").count() > 2
        assert page.get_by_role("slider").count() == 0

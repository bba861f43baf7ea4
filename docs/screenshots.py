"""Take the pictures of docs/images from the running product: `python -m docs.screenshots`.

A project of its own gets the demo's three experiments and the web pages of Dagster and MLflow. *Materialize all* is
pressed in Chromium for the first, a command runs the other two, and `serve` lets them answer. The pictures are taken
while the trainings run and after them: a quarter of an hour on two processors that do nothing else.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.tracking.addresses import runs_page
from gpt_pipeline_tests.browser_project import DagsterPages, chromium, window
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import dagster_pages, free_port, is_answered, mlflow_ui, wait

_REPOSITORY = Path(__file__).parents[1]
_IMAGES = Path(__file__).parent / "images"
_EXPERIMENTS = ("demo", "demo-sft", "demo-rl")  # each starts from the one before
_COLOURS = 256  # pages have few; a picture is a third as large with a palette
_PATIENCE_SECONDS = 3600.0  # for each of the trainings and its evaluations, on a machine that does other things too
_SETTLE_MILLISECONDS = 3000  # pages move for a moment after what they show is there


def main() -> None:
    """Run the demo in a folder that is removed again, or in the one given, and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="folder to run the demo in; kept, and gone on with if it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = TinyProject(root=(arguments.project or Path(folder)).absolute())
        (project.root / "experiments").mkdir(parents=True, exist_ok=True)
        for name in _EXPERIMENTS[:2]:
            _add_experiment(project, name)
        _take_all(project)


def _add_experiment(project: TinyProject, name: str) -> None:
    shutil.copy(_REPOSITORY / "experiments" / f"{name}.yaml", project.root / "experiments")


def _take_all(project: TinyProject) -> None:
    port = free_port()
    with (
        dagster_pages(project, mlflow_port=port) as address,
        mlflow_ui(project, port=port) as mlflow,
        chromium() as browser,
        window(browser) as page,
    ):
        page.set_default_timeout(_PATIENCE_SECONDS * 1000)
        pages = DagsterPages(page, address)
        run = pages.materialize_all("run_demo")
        if not _is_complete(project):
            _take_while_running(page, pages, project, run)
        wait(lambda: _is_complete(project), seconds=_PATIENCE_SECONDS, what="all evaluations and the report")
        _take_when_finished(page, pages, project)
        _take_mlflow(page, mlflow)
        _train_further(page, pages, project)
        _take_comparison(page, pages)
        _take_talk(page, project)


def _take_while_running(page: Page, pages: DagsterPages, project: TinyProject, run: str) -> None:
    """Take what is worth seeing while the training goes on and its first checkpoint is evaluated."""
    folder = project.experiment("demo").folder
    wait(lambda: bool(project.checkpoints("demo")), seconds=_PATIENCE_SECONDS, what="the first checkpoint")
    pages.open(f"/runs/{run}")
    _take(page, "training", page.get_by_text("checkpoint_step_").last)
    wait(lambda: bool(read_evaluations(folder.evaluations)), seconds=_PATIENCE_SECONDS, what="the first evaluation")
    pages.open("/assets/demo/report?view=lineage&lineageScope=upstream&lineageDepth=6")
    _take(page, "lineage", page.get_by_text("token_shards").first)


def _take_when_finished(page: Page, pages: DagsterPages, project: TinyProject) -> None:
    pages.open_asset("demo/evaluation")
    page.get_by_role("button", name="Plots").click()
    _take(page, "evaluations", page.get_by_text("val_loss").first)
    page.goto(project.experiment("demo").folder.report.as_uri())
    page.locator("#loss").evaluate("(each) => each.scrollIntoView()")
    page.get_by_role("slider", name="Loss").first.hover(position={"x": 400, "y": 200})
    _take(page, "report", page.locator(".tip:visible"))


def _take_mlflow(page: Page, address: str) -> None:
    page.goto(runs_page(address, ["1"]))
    page.get_by_role("button", name="Close").first.click()  # MLflow's assistant, which takes a third of the page
    page.get_by_role("row").filter(has_text="training").get_by_role("button").first.click()  # unfolds evaluations
    _take(page, "mlflow", page.get_by_text("step_735").first)


def _train_further(page: Page, pages: DagsterPages, project: TinyProject) -> None:
    """Fine-tune the demo and take the start page meanwhile; then train it on rewards."""
    folder = project.experiment("demo-sft").folder
    training = project.start("run", "experiments/demo-sft.yaml")
    if not folder.training.is_file():
        wait(lambda: bool(read_evaluations(folder.evaluations)), seconds=_PATIENCE_SECONDS, what="the first evaluation")
        pages.open("/start")
        page.locator("header code").evaluate("(each) => { each.textContent = '/home/me/gpt_pipeline/experiments' }")
        _take(page, "start", page.locator("article:has([data-state]:text('training')) svg .line").first)
    _finish(training)
    _add_experiment(project, "demo-rl")
    _finish(project.start("run", "experiments/demo-rl.yaml"))


def _finish(training: subprocess.Popen[str]) -> None:
    output = output_of(training, seconds=_PATIENCE_SECONDS)
    assert training.returncode == 0, output


def _take_comparison(page: Page, pages: DagsterPages) -> None:
    pages.open("/start/comparison")
    page.locator("#answers").evaluate("(each) => each.scrollIntoView()")
    _take(page, "comparison", page.locator("#answers .question").first)


def _take_talk(page: Page, project: TinyProject) -> None:
    """Ask all three a question that they were not trained on."""
    port = free_port()
    files = [f"experiments/{name}.yaml" for name in _EXPERIMENTS]
    serving = project.start("serve", *files, "--port", str(port))
    try:
        address = f"http://127.0.0.1:{port}"
        wait(lambda: is_answered(f"{address}/v1/models"), seconds=_PATIENCE_SECONDS, what="the server")
        page.goto(address)
        for _ in range(2):  # all answer the first one right
            page.get_by_role("button", name="Next").click()
        page.get_by_role("button", name="Ask").click()
        _take(page, "talk", page.get_by_text("of 3 right"))
    finally:
        serving.send_signal(signal.SIGINT)
        output_of(serving)


def _is_complete(project: TinyProject) -> bool:
    """Whether the training is over, each checkpoint that is left is evaluated, and the page tells of the last one."""
    folder = project.experiment("demo").folder
    results = read_evaluations(folder.evaluations)
    wanted = {info.step for info in project.checkpoints("demo")}
    is_over = folder.training.is_file() and wanted <= {result.step for result in results}
    return is_over and folder.report.is_file() and folder.report.stat().st_mtime > results[-1].path.stat().st_mtime


def _take(page: Page, name: str, seen: Locator) -> None:
    """Write the picture of what the page shows once `seen` is on it."""
    seen.wait_for(state="attached")
    page.wait_for_timeout(_SETTLE_MILLISECONDS)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = _IMAGES / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(_REPOSITORY)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

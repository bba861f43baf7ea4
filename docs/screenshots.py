"""Take the pictures of docs/images from the running product: `python -m docs.screenshots`.

A project of its own gets the demo's experiments and the web pages of Dagster and MLflow. *Materialize all* is pressed
in Chromium, and the pictures are taken while the training runs and after it: some minutes on two processors.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.tracking.addresses import runs_page
from gpt_pipeline_tests.browser_project import DagsterPages, chromium, window
from gpt_pipeline_tests.hangs import output_of
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import dagster_pages, free_port, mlflow_ui, wait

_REPOSITORY = Path(__file__).parents[1]
_IMAGES = Path(__file__).parent / "images"
_COLOURS = 256  # pages have few; a picture is a third as large with a palette
_PATIENCE_SECONDS = 900.0  # for the demo's training, and for its evaluations
_SETTLE_MILLISECONDS = 3000  # pages move for a moment after what they show is there


def main() -> None:
    """Run the demo in a folder that is removed again, or in the one given, and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="folder to run the demo in; kept, and gone on with if it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = TinyProject(root=(arguments.project or Path(folder)).absolute())
        (project.root / "experiments").mkdir(parents=True, exist_ok=True)
        for name in ("demo.yaml", "demo-sft.yaml"):
            shutil.copy(_REPOSITORY / "experiments" / name, project.root / "experiments")
        _take_all(project)


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
        page.goto(runs_page(mlflow, ["1"]))
        page.get_by_role("button", name="Close").first.click()  # MLflow's assistant, which takes a third of the page
        page.get_by_role("row").filter(has_text="training").get_by_role("button").first.click()  # unfolds evaluations
        _take(page, "mlflow", page.get_by_text("step_735").first)
        page.get_by_role("link", name="training", exact=True).first.click()
        page.get_by_role("tab", name="Model metrics").click()
        _take(page, "mlflow-training", page.get_by_text("val_loss").first)


def _take_while_running(page: Page, pages: DagsterPages, project: TinyProject, run: str) -> None:
    """Take what is worth seeing while the training goes on and its first checkpoint is evaluated."""
    folder = project.experiment("demo").folder
    wait(lambda: bool(project.checkpoints("demo")), seconds=_PATIENCE_SECONDS, what="the first checkpoint")
    pages.open(f"/runs/{run}")
    _take(page, "training", page.get_by_text("checkpoint_step_").last)
    wait(lambda: bool(read_evaluations(folder.evaluations)), seconds=_PATIENCE_SECONDS, what="the first evaluation")
    pages.open("/assets/demo/report?view=lineage&lineageScope=upstream&lineageDepth=6")
    _take(page, "lineage", page.get_by_text("token_shards").first)
    wait(lambda: len(read_evaluations(folder.evaluations)) > 2, seconds=_PATIENCE_SECONDS, what="the third evaluation")
    pages.open("/start")
    page.locator("header code").evaluate("(each) => { each.textContent = '/home/me/gpt_pipeline/experiments' }")
    _take(page, "start", page.locator("#demo-answers"))


def _take_when_finished(page: Page, pages: DagsterPages, project: TinyProject) -> None:
    pages.open("/runs")
    _take(page, "runs", page.get_by_text("evaluate_demo").first)
    pages.open_asset("demo/evaluation")
    page.get_by_role("button", name="Plots").click()
    _take(page, "evaluations", page.get_by_text("val_loss").first)
    pages.open_asset("demo/training")
    _take(page, "training-results", page.get_by_text("final_val_loss").first)
    page.goto(project.experiment("demo").folder.report.as_uri())
    page.locator("#loss").evaluate("(each) => each.scrollIntoView()")
    page.get_by_role("slider", name="Loss").first.hover(position={"x": 400, "y": 200})
    _take(page, "report", page.locator(".tip:visible"))
    training = project.start("run", "experiments/demo-sft.yaml")
    output = output_of(training, seconds=_PATIENCE_SECONDS)
    assert training.returncode == 0, output
    pages.open("/start/comparison")
    page.get_by_text("training loss by tokens").click()
    page.locator("#curves").evaluate("(each) => each.scrollIntoView()")
    page.get_by_role("slider", name="Training loss").hover(position={"x": 320, "y": 160})
    _take(page, "comparison", page.locator(".tip:visible"))


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

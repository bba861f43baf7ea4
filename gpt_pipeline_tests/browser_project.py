"""A project whose training takes some twenty seconds, its web pages, and a person who looks at them with Chromium."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import wait

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SLOW = """\
experiment_name: Slow enough to watch
data: {source: sample, num_samples: 1500, max_length: 32, validation_fraction: 0.1}
model: {n_layer: 1, n_head: 2, n_embd: 32, context_length: 128}
training: {batch_size: 4, max_steps: 700, learning_rate: 0.003, warmup_steps: 10}
evaluation: {eval_freq: 100, eval_iters: 2, save_every_n_iterations: 100, keep_last: 10, num_questions: 6,
  max_new_tokens: 24, max_validation_tokens: 2048}
storage: {base_folder: ../storage}
hardware: {device: cpu}
"""
FIRST_STEP, LAST_STEP = 100, 700  # of its checkpoints
PATIENCE = 300_000  # milliseconds that a page is waited for: two processors start Python, train and evaluate at once
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")


def write_slow_experiment(project: TinyProject) -> None:
    """Write `experiments/slow.yaml`."""
    path = project.root / "experiments" / "slow.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SLOW, encoding="utf-8")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window for the block; the test is skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as drivers:
        own = drivers.chromium.executable_path
        found = next((path for name in _CHROMIUM if (path := shutil.which(name))), own if os.path.exists(own) else None)
        if found is None:
            pytest.skip("no Chromium here: install Debian's package chromium, or run `playwright install chromium`")
        # Chromium's own sandbox does not work for root, as whom containers and CI run.
        browser = drivers.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def window(browser: Browser, *, pictures: Path | None = None) -> Iterator[Page]:
    """A page of the browser; where the block fails, what it shows is kept in the folder `pictures`.

    No page may have asked another host for anything.
    """
    asked: set[str] = set()
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.on("request", lambda request: asked.add(request.url))
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    try:
        yield page
        elsewhere = [url for url in asked if urlsplit(url).hostname not in (None, "127.0.0.1")]
        assert not elsewhere, elsewhere
    except BaseException:
        if pictures is not None:
            for number, each in enumerate(context.pages):
                each.screenshot(path=pictures / f"failed-{number}.png")
        raise
    finally:
        context.close()


class DagsterPages:
    """Dagster's pages as a person uses them."""

    def __init__(self, page: Page, address: str) -> None:
        self._page = page
        self._address = address

    def open(self, path: str) -> None:
        self._page.goto(self._address + path)

    def open_job(self, job: str) -> None:
        self.open(f"/locations/gpt_pipeline.definitions/jobs/{job}")

    def open_asset(self, key: str, view: str = "overview") -> None:
        self.open(f"/assets/{key}?view={view}")

    def materialize_all(self, job: str) -> str:
        """Press the job's button; return the id of the run that it launched, whose page is open then."""
        before = self.runs_of(job)
        self.open_job(job)
        self._page.get_by_role("button", name="Materialize all").click()
        self._page.get_by_text(re.compile("Launched run")).first.wait_for()
        wait(lambda: bool(self.runs_of(job) - before), seconds=60, what=f"a run of {job}")
        (run,) = self.runs_of(job) - before
        self.open(f"/runs/{run}")
        return run

    def runs_of(self, job: str) -> set[str]:
        """Ask Dagster for the ids of the job's runs."""
        query = "query($job: String!) {runsOrError(filter: {pipelineName: $job}) {... on Runs {results {runId}}}}"
        answer = self._page.request.post(
            f"{self._address}/graphql", data={"query": query, "variables": {"job": job}}
        ).json()
        return {run["runId"] for run in answer["data"]["runsOrError"]["results"]}

    def terminate(self) -> None:
        """Press the run's button and confirm."""
        self._page.get_by_role("button", name="Terminate").first.click()
        self._page.get_by_role("dialog").get_by_role("button", name=re.compile("Terminate")).click()

    def wait_for_status(self, word: str) -> None:
        """Wait until the run's page says that it is so."""
        self._page.get_by_text(word, exact=True).first.wait_for()

    def wait_for_event(self, text: str) -> Locator:
        """Look for an event in the run's log until it is there."""
        self._page.get_by_placeholder("Filter…").fill(text)
        found = self._page.get_by_text(re.compile(re.escape(text))).first
        found.wait_for()
        return found

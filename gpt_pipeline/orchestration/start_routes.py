"""The start page beside Dagster's own, on the same server and behind the same guard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dagster as dg
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from gpt_pipeline.errors import UserError
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.comparison_step import COMPARISON
from gpt_pipeline.orchestration.history import DEFINITIONS
from gpt_pipeline.orchestration.newest_runs import NewestRuns
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.project import COMPARISON_PAGE, START_PATH, Project, report_page
from gpt_pipeline.report.page import page_policy
from gpt_pipeline.start_page.card import Addresses
from gpt_pipeline.start_page.comparison import ComparisonPage
from gpt_pipeline.start_page.page import PAGE_HEADERS, STATIC, read_static, render_cards, render_page
from gpt_pipeline.start_page.watch import Watch
from gpt_pipeline.tracking.addresses import runs_page

_MADE = {**PAGE_HEADERS, "content-security-policy": f"sandbox allow-scripts; {page_policy()}; frame-ancestors 'none'"}
"""Headers of a report and of the comparison, with models' words in them: an origin of their own, and one script."""


def start_routes(project: Project, instance: dg.DagsterInstance) -> Sequence[Route]:
    """Return the routes of the project's start page: itself, its news, its files, and the experiments' reports."""
    comparison = ComparisonPage(project, report=report_page)
    watch = Watch(project, newest_runs=NewestRuns(instance), addresses=addresses(project))

    def page(_request: Request) -> Response:
        html = render_page(watch.cards(), experiments=project.experiments, addresses=watch.addresses)
        return _html(html)

    def news(_request: Request) -> Response:
        return _html(render_cards(watch.cards()))

    def report(request: Request) -> Response:
        try:
            path = watch.report(request.path_params["key"])
        except UserError as error:
            return PlainTextResponse(str(error), status_code=404)
        if path is None:
            return PlainTextResponse("There is no such report (yet).", status_code=404)
        return FileResponse(path, media_type="text/html", headers=_MADE)

    def compared(_request: Request) -> Response:
        return Response(comparison.html(), media_type="text/html", headers=_MADE)

    def static(name: str) -> Route:
        return Route(f"{START_PATH}/{name}", lambda _: Response(read_static(name), media_type=STATIC[name]))

    return [
        Route(START_PATH, page),
        Route(f"{START_PATH}/experiments", news),
        *map(static, STATIC),
        Route(report_page("{key}"), report),
        Route(COMPARISON_PAGE, compared),
    ]


def addresses(project: Project) -> Addresses:
    """Return where the start page leads to."""
    mlflow = MlflowTracking(tracking_uri=project.tracking_uri).pages
    return Addresses(
        assets="/assets",
        runs="/runs",
        sensors="/automation",
        comparison=f"/assets/{COMPARISON.path[0]}",
        comparison_page=COMPARISON_PAGE,
        job=lambda experiment: f"/locations/{DEFINITIONS}/jobs/{keys.run_job(experiment)}",
        mlflow_runs=partial(runs_page, mlflow),
        report=report_page,
    )


def _html(text: str) -> Response:
    return Response(text, media_type="text/html", headers=PAGE_HEADERS)

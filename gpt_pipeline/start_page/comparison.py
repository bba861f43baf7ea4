"""The comparison of all experiments of a project as a page, as they are now."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from gpt_pipeline.comparison.by_key import with_key
from gpt_pipeline.comparison.compare import are_one_family, compare_experiments
from gpt_pipeline.comparison.page import render_page
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.project import Project

_REST_SECONDS = 2.0
_REST_SHARE = 9  # a page that took a second stands for nine: a tenth of a processor at the most


class ComparisonPage:
    """The page. However many ask, one makes it, and not again before a rest."""

    def __init__(
        self, project: Project, *, report: Callable[[str], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show the experiments of `project`; `report` gives the address of a report by the experiment's key."""
        self._project = project
        self._report = report
        self._clock = clock
        self._turn = Lock()
        self._page = ""
        self._next = -1.0

    def html(self) -> str:
        """Return the page, made now or a moment ago."""
        with self._turn:
            began = self._clock()
            if began >= self._next:
                self._page = self._made()
                took = self._clock() - began
                self._next = began + took + max(_REST_SECONDS, _REST_SHARE * took)
            return self._page

    def _made(self) -> str:
        folder = self._project.experiments
        files = find_experiments(folder) if folder.is_dir() else []
        problems = {each.file.name: each.problem for each in files if each.problem is not None}
        experiments = [each.experiment for each in files if each.experiment is not None]
        found = compare_experiments(experiments, problems=problems)
        if are_one_family(experiments):
            found = with_key(found)
        notes = [f"{name} is not shown: {problem}" for name, problem in problems.items()]
        return render_page(found, experiments, links=self._link, notes=notes)

    def _link(self, experiment: Experiment) -> str | None:
        return self._report(experiment.name) if experiment.folder.report.is_file() else None

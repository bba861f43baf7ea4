"""All experiments of a project, for a page that asks for news every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock, Thread

from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import summarize_evaluations
from gpt_pipeline.experiment.discover import ExperimentFile, find_experiments, folder_state
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.losses import losses_of
from gpt_pipeline.progress.stages import SeenParts
from gpt_pipeline.progress.status import status_of
from gpt_pipeline.project import Project
from gpt_pipeline.start_page.card import Addresses, Card, broken_card, card_of
from gpt_pipeline.start_page.state import NewestRun, State, Word
from gpt_pipeline.tracking.training_run import mlflow_experiment_id

_logger = logging.getLogger(__name__)

_REST_SECONDS = 1.0
_REST_SHARE = 9  # a look that took a second is followed by nine without one: a tenth of a processor at the most
_PATIENCE_SECONDS = 2.0  # the first look at many large folders takes longer
_FILES_SECONDS = 30.0  # an experiment file that did not change may still depend on another one's checkpoints

_ORDER: tuple[Word, ...] = (
    *("training", "evaluating", "making data", "waiting", "failed", "stopped", "finished", "not started", "broken"),
    "not read yet",
)

NewestRuns = Callable[[Sequence[Experiment]], Mapping[str, NewestRun]]
"""Returns the newest run of each experiment that has one, by the experiment's name."""


class Watch:
    """The cards of a project's experiments. However many ask, one looks, and not again before a rest."""

    def __init__(
        self,
        project: Project,
        *,
        newest_runs: NewestRuns,
        addresses: Addresses,
        clock: Callable[[], float] = time.monotonic,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """Show the experiments of `project`; what the history of runs knows comes from `newest_runs`.

        `patience`: seconds after which those who ask get what is known so far.
        """
        self.project = project
        self.addresses = addresses
        self._newest_runs = newest_runs
        self._clock = clock
        self._patience = patience
        self._turn = Lock()
        self._look = Thread(target=self._look_at_all, daemon=True)
        self._next_look = -1.0
        self._cards: dict[str, Card] = {}
        self._files: Sequence[ExperimentFile] = ()
        self._files_seen: tuple[object, ...] = ()
        self._files_read_at = 0.0

    def cards(self) -> Sequence[Card]:
        """Return a card for each experiment file: those at work first, and those that are not read yet last."""
        with self._turn:
            if not self._look.is_alive() and self._clock() >= self._next_look:
                self._look = Thread(target=self._look_at_all, daemon=True)
                self._look.start()
            look = self._look
        look.join(self._patience)
        return sorted(self._cards.values(), key=lambda card: (_ORDER.index(card.state.word), card.key))

    def _look_at_all(self) -> None:
        began = self._clock()
        files = self._find()
        unread = State(word="not read yet")
        known = {
            found.name: Card(key=found.name, title=found.file.name, file=found.file, state=unread) for found in files
        }
        self._cards = {key: self._cards.get(key, card) for key, card in known.items()}
        runs = self._runs_of([found.experiment for found in files if found.experiment is not None])
        seen: SeenParts = {}
        for found in files:
            self._cards[found.name] = self._card(found, runs.get(found.name), seen)
        took = self._clock() - began
        self._next_look = began + took + max(_REST_SECONDS, _REST_SHARE * took)

    def _runs_of(self, experiments: Sequence[Experiment]) -> Mapping[str, NewestRun]:
        try:
            return self._newest_runs(experiments)
        except Exception:  # of whatever database keeps the history: the folders tell nearly all without it
            _logger.exception("the history of runs cannot be read: the start page shows what the folders tell")
            return {}

    def report(self, key: str) -> Path | None:
        """Return the report of the experiment with this key; None where there is no such experiment, or no report.

        Raises:
            UserError: its folder cannot be on this machine.
        """
        found = next((each.experiment for each in self._find() if each.name == key), None)
        return found.folder.report if found is not None and found.folder.report.is_file() else None

    def _find(self) -> Sequence[ExperimentFile]:
        """Return the experiment files, read again only when one has changed, or after a while."""
        folder, now = self.project.experiments, self._clock()
        if not folder.is_dir():
            return ()
        seen = folder_state(folder)
        if seen != self._files_seen or now - self._files_read_at > _FILES_SECONDS:
            self._files, self._files_seen, self._files_read_at = find_experiments(folder), seen, now
        return self._files

    def _card(self, found: ExperimentFile, run: NewestRun | None, seen: SeenParts) -> Card:
        try:
            return self._card_of(found, run, seen)
        except Exception as error:  # of one experiment, whose files may hold anything: the page shows the others
            detail = str(error)
            if not isinstance(error, UserError):
                _logger.exception("%s cannot be shown", found.file)
                detail = f"{type(error).__name__}: {error}; the log of the pages has the details"
            return broken_card(found, detail)

    def _card_of(self, found: ExperimentFile, run: NewestRun | None, seen: SeenParts) -> Card:
        status, experiment = status_of(found, seen), found.experiment
        if status.problem is not None or experiment is None:
            return broken_card(found, status.problem or "")
        folder = experiment.folder
        return card_of(
            experiment,
            status,
            run=run,
            losses=losses_of(folder.metrics),
            results=summarize_evaluations(folder.evaluations),
            mlflow_id=mlflow_experiment_id(folder),
            addresses=self.addresses,
        )

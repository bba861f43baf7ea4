"""Looks, beside the sensor, whether MLflow still has what was logged: a store that was wiped is filled again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.tracking import forget_lost_runs
from gpt_pipeline.tracking.store import sqlite_file

_PAUSE_SECONDS = 600.0  # between two questions to a server

Say = Callable[[str], None]


class LostRunWatch:
    """Asks a SQLite file at once, at each look; a server now and then, from a thread, since it may not answer."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._thread: threading.Thread | None = None
        self._asked = -_PAUSE_SECONDS

    def look(self, tracking_uri: str, *, say: Say) -> None:
        """Ask if it is time to; evaluations that are lost become pending, and `say` is told."""
        if sqlite_file(tracking_uri) is not None:
            self._ask(tracking_uri, say)
        elif self._is_time():
            self._asked = time.monotonic()
            self._thread = threading.Thread(target=self._ask, args=[tracking_uri, say], daemon=True)
            self._thread.start()

    def _is_time(self) -> bool:
        idle = self._thread is None or not self._thread.is_alive()
        return idle and time.monotonic() - self._asked >= _PAUSE_SECONDS

    def _ask(self, tracking_uri: str, say: Say) -> None:
        try:
            count = forget_lost_runs(self._experiment, tracking_uri)
        except UserError as error:
            say(str(error))
            return
        if count:
            say(f"{count} evaluations are not in MLflow any more; they are logged again from their results.")

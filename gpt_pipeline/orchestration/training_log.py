"""The training's lines in MLflow, and its model where it is to be registered: beside the training, never in its way."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.progress.tracking import forget_lost_runs, is_log_pending
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.tracking.dataset import dataset_of
from gpt_pipeline.tracking.descriptions import NOTE_TAG, TEXT_NOTE
from gpt_pipeline.tracking.registered_model import register_model
from gpt_pipeline.tracking.store import sqlite_file
from gpt_pipeline.tracking.tags import experiment_tags, project_of
from gpt_pipeline.tracking.training_run import log_earlier_trainings, log_training
from gpt_pipeline.training.heartbeat import trainer_state
from gpt_pipeline.training.metrics import read_metrics

_EVERY_SECONDS = 15.0
_AFTER_FAILURE_SECONDS = 60.0
_LAST_WAIT_SECONDS = 30.0
_INTERRUPTED_WAIT_SECONDS = 5.0  # when the training failed or was stopped: someone waits for the end
_SENSOR_PAUSE_SECONDS = 300.0
_SERVER_PAUSE_SECONDS = 600.0  # between two questions to a server


def send_log(experiment: Experiment, tracking_uri: str) -> None:
    """Send what MLflow lacks of the experiment's training, and of those before it that were moved aside.

    Raises:
        TrackingError: MLflow cannot be reached, is busy, or refuses; it can be sent later.
    """
    # numpy, which would be half of the definitions' time to load
    from gpt_pipeline.data.tokens.choose import known_shards

    shards = known_shards(experiment.data, experiment.data_folder)
    fingerprint = wanted_fingerprint(experiment)
    if shards is None or fingerprint is None:
        return
    note = {} if has_questions(experiment.data) else {NOTE_TAG: TEXT_NOTE}
    dataset = dataset_of(experiment, shards)
    draw_losses = partial(_draw_losses, vocab_size=experiment.config.model.vocab_size)
    log_training(
        experiment.folder,
        fingerprint=fingerprint,
        tracking_uri=tracking_uri,
        experiment_name=experiment.display_name,
        parameters=experiment.config.as_values(),
        tags={**experiment_tags(experiment), **note, "shards_fingerprint": shards.fingerprint},
        draw_losses=draw_losses,
        dataset=dataset,
        experiment_file=experiment.file,
    )
    log_earlier_trainings(
        experiment.folder,
        fingerprint=fingerprint,
        tracking_uri=tracking_uri,
        experiment_name=experiment.display_name,
        tags={"experiment_file": experiment.file.name, "project": project_of(experiment), **note},
        draw_losses=draw_losses,
        dataset=dataset,
    )


def _register_model(experiment: Experiment, tracking_uri: str) -> None:
    from gpt_pipeline.exchange.export import export_checkpoint  # torch

    def write(checkpoint: Path, target: Path) -> str:
        return export_checkpoint(experiment, checkpoint, target).checkpoint.weights_sha256

    if (fingerprint := wanted_fingerprint(experiment)) is not None:
        register_model(
            experiment.folder,
            fingerprint=fingerprint,
            tracking_uri=tracking_uri,
            experiment_name=experiment.display_name,
            write_model=write,
        )


def _draw_losses(metrics: Path, *, vocab_size: int) -> str:
    from gpt_pipeline.report.charts import loss_curve_svg

    return loss_curve_svg(read_metrics(metrics), vocab_size=vocab_size)


def catch_up(experiment: Experiment, tracking_uri: str, *, say: Say) -> None:
    """Send what earlier attempts could not, if anything; an MLflow that is still down is only mentioned."""
    if not is_log_pending(experiment):
        return
    try:
        send_log(experiment, tracking_uri)
        if experiment.config.evaluation.register_model:
            _register_model(experiment, tracking_uri)
    except UserError as error:
        say(str(error))


class LogSender:
    """Sends the lines of a running training every few seconds from a thread, for the length of a block.

    Whatever MLflow does, the block is not held up; at its end the rest is waited for, but not for long. `tell` reports
    what happened, in the thread of the block, since Dagster's log must not be used from other threads.
    """

    def __init__(
        self,
        send: Callable[[], None],
        *,
        say: Say,
        every: float = _EVERY_SECONDS,
        after_failure: float = _AFTER_FAILURE_SECONDS,
        last_wait: float = _LAST_WAIT_SECONDS,
    ) -> None:
        self._send = send
        self._say = say
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._every = every
        self._after_failure = after_failure
        self._last_wait = last_wait
        self._ended = threading.Event()
        self._failing = False
        # A daemon: a thread that waits for a dead server must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> LogSender:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        wait = self._last_wait if kind is None else min(self._last_wait, _INTERRUPTED_WAIT_SECONDS)
        self._thread.join(wait)
        self.tell()
        if self._thread.is_alive():
            self._say(
                f"MLflow has not taken all of the training within {wait:g} seconds; the rest is sent at the next "
                "opportunity."
            )

    def tell(self) -> None:
        """Report what happened since the last call; the end of the block does so too."""
        with suppress(queue.Empty):
            while True:
                self._say(self._notes.get_nowait())

    def _work(self) -> None:
        while not self._ended.wait(self._after_failure if self._failing else self._every):
            self._attempt()
        self._attempt()

    def _attempt(self) -> None:
        try:
            self._send()
        except Exception as error:
            # Any error: neither the training nor this thread may end because of its log.
            if not self._failing:
                self._notes.put(str(error) or repr(error))
            self._failing = True
        else:
            if self._failing:
                self._notes.put("MLflow works again; the training's lines are sent.")
            self._failing = False


class MlflowUpkeep:
    """Keeps MLflow complete, for a sensor, whose time is short: whatever may take long is done in a thread."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._thread: threading.Thread | None = None
        self._asked = -_SERVER_PAUSE_SECONDS

    def look(self, tracking_uri: str, *, say: Say) -> None:
        """Make evaluations pending that MLflow has lost, and send what it lacks of a training that is not running.

        A SQLite file is asked at once, each time; a server, which may not answer, now and then.
        """
        has_file = sqlite_file(tracking_uri) is not None
        if self._thread is None or not self._thread.is_alive():
            asks_server = not has_file and time.monotonic() - self._asked >= _SERVER_PAUSE_SECONDS
            trains = trainer_state(self._experiment.folder.root) == "running"  # its own step sends its lines
            if asks_server or (not trains and is_log_pending(self._experiment)):
                self._thread = threading.Thread(target=self._work, args=[tracking_uri, say, asks_server], daemon=True)
                self._thread.start()
        if has_file:
            self._forget_lost_runs(tracking_uri, say)

    def _work(self, tracking_uri: str, say: Say, asks_server: bool) -> None:
        if asks_server:
            self._asked = time.monotonic()
            self._forget_lost_runs(tracking_uri, say)
        if trainer_state(self._experiment.folder.root) == "running":
            return
        catch_up(self._experiment, tracking_uri, say=say)
        if is_log_pending(self._experiment):
            time.sleep(_SENSOR_PAUSE_SECONDS)  # alive, this thread keeps the next attempt from starting

    def _forget_lost_runs(self, tracking_uri: str, say: Say) -> None:
        try:
            count = forget_lost_runs(self._experiment, tracking_uri)
        except UserError as error:
            say(str(error))
            return
        if count:
            say(f"MLflow has lost {counted(count, 'evaluation')}, to be logged again from the results.")

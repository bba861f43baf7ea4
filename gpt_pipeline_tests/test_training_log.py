"""Sending a training's lines beside the training."""

import threading
import time
from pathlib import Path

import pytest

from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.orchestration.training_log import LogSender
from gpt_pipeline.orchestration.training_step import MlflowLink
from gpt_pipeline.project import MLFLOW_PAGE_VARIABLE
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.training_run import SENT_NAME


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_log_sender_sends_while_the_block_runs_and_once_more_at_its_end() -> None:
    sent: list[str] = []
    during: list[int] = []
    with LogSender(lambda: sent.append("x"), say=sent.append, every=0.01):
        _wait_for(lambda: len(sent) >= 2)
        during.append(len(sent))
    assert len(sent) > during[0]


def test_log_sender_of_a_dead_mlflow_does_not_hold_up_the_block_or_its_end() -> None:
    never, sent = threading.Event(), threading.Event()
    said: list[str] = []

    def send() -> None:
        never.wait()
        sent.set()

    with LogSender(send, say=said.append, every=0.0, last_wait=0.1):
        pass
    assert not sent.is_set()
    (text,) = said
    assert text.startswith("MLflow has not taken all of the training within 0.1 seconds; the rest is sent")
    never.set()


def test_log_sender_says_once_that_mlflow_fails_and_that_it_works_again() -> None:
    said: list[str] = []
    attempts: list[int] = []

    def send() -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError("no route to host")

    with LogSender(send, say=said.append, every=0.01, after_failure=0.01) as sender:
        _wait_for(lambda: len(attempts) >= 4)
        assert said == []  # told in the thread of the block only
        sender.tell()
    assert said == ["no route to host", "MLflow works again; the training's lines are sent."]


def test_log_sender_lets_the_blocks_own_error_through() -> None:
    sent: list[int] = []
    with pytest.raises(KeyboardInterrupt), LogSender(lambda: sent.append(1), say=lambda text: None):
        raise KeyboardInterrupt
    assert sent == [1]


def test_mlflow_link_is_said_once_as_soon_as_mlflow_has_the_training(tmp_path: Path) -> None:
    folder, said = ExperimentFolder(root=tmp_path / "tiny"), list[str]()
    link = MlflowLink(folder, MlflowTracking(tracking_uri="http://there:5000"), say=said.append)
    link.tell()
    assert said == []
    folder.root.mkdir(parents=True)
    write_json(folder.root / SENT_NAME, {"store": "s", "run_id": "r", "fingerprint": "f", "experiment_id": "7"})
    link.tell()
    link.tell()
    (text,) = said
    assert "http://there:5000/#/experiments/7/runs" in text
    assert "gpt-pipeline ui" not in text


@pytest.mark.parametrize("is_served", [False, True])
def test_mlflow_link_to_pages_that_are_not_open_says_what_opens_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_served: bool
) -> None:
    monkeypatch.setenv(MLFLOW_PAGE_VARIABLE, "http://127.0.0.1:5003" if is_served else "")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    folder, said = ExperimentFolder(root=tmp_path / "tiny"), list[str]()
    folder.root.mkdir()
    write_json(folder.root / SENT_NAME, {"store": "s", "run_id": "r", "fingerprint": "f", "experiment_id": "7"})
    MlflowLink(folder, MlflowTracking(tracking_uri="sqlite:////data/mlflow.db"), say=said.append).tell()
    assert (", once `gpt-pipeline ui` is started: http://127.0.0.1:5000/" in said[0]) == (not is_served)

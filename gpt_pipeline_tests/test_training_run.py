"""A training in MLflow: one run, each line once, whatever MLflow or the training goes through."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline import __version__
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.tracking.descriptions import NOTE_TAG, TEXT_NOTE
from gpt_pipeline.tracking.store import LoggedRun, TrackingError, open_client
from gpt_pipeline.tracking.tags import PARENT_TAG
from gpt_pipeline.tracking.training_run import (
    SENT_NAME,
    earlier_logs_are_pending,
    log_earlier_trainings,
    log_report,
    log_training,
    logged_run,
    sent_runs,
    training_log_is_pending,
)
from gpt_pipeline.training.job import SCRATCH, TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.crashing import Killed
from gpt_pipeline_tests.projects import default_tracking_uri
from gpt_pipeline_tests.test_mlflow_tracker import DATASET, log, make_result, move_files
from gpt_pipeline_tests.training_jobs import Listener, make_job

OTHER = "b" * 64


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job of 12 updates that ran to its end."""
    job = make_job(tmp_path_factory.mktemp("template"))
    run_job(job, Listener())
    return job


@pytest.fixture
def finished(tmp_path: Path, template: TrainingJob) -> TrainingJob:
    import shutil

    shutil.copytree(template.experiment_folder, tmp_path / "experiment")
    return dataclasses.replace(template, experiment_folder=str(tmp_path / "experiment"))


def _log(job: TrainingJob, store: Path, **changes: Any) -> LoggedRun | None:
    settings = {
        "fingerprint": job.fingerprint,
        "tracking_uri": default_tracking_uri(store),
        "experiment_name": "My GPT",
        "parameters": {"training": {"learning_rate": 1e-2}},
        "tags": {"experiment_file": "x.yaml"},
        "draw_losses": _draw,
        **changes,
    }
    return log_training(job.folder, **settings)


def test_log_training_describes_the_run_and_keeps_file_and_report(
    finished: TrainingJob, store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("experiment_name: x\n", encoding="utf-8")
    where = {"tracking_uri": default_tracking_uri(store), "experiment_name": "My GPT"}
    finished.folder.report.write_text("<!doctype html>", encoding="utf-8")
    log_report(finished.folder, fingerprint=finished.fingerprint, **where)  # without a run there is nothing to do
    logged = _log(finished, store, experiment_file=file)
    assert logged is not None
    file.write_text("changed", encoding="utf-8")  # for the next training
    _log(finished, store, experiment_file=file)
    log_report(finished.folder, fingerprint=finished.fingerprint, charts={"speed": "<svg/>"}, **where)
    client = open_client(default_tracking_uri(store))
    run = client.get_run(logged.run_id)
    assert "| eval/val_loss | nats per token |" in run.data.tags["mlflow.note.content"]
    assert "| eval/val_loss |" in client.get_experiment(logged.experiment_id).tags["mlflow.note.content"]
    kept = Path(client.download_artifacts(logged.run_id, "", str(tmp_path)))
    assert (kept / "experiment.yaml").read_text() == "experiment_name: x\n"
    assert (kept / "report.html").read_text() == "<!doctype html>"
    assert (kept / "charts" / "speed.svg").read_text() == "<svg/>"
    client.set_experiment_tag(logged.experiment_id, "mlflow.note.content", "my own")
    finished.folder.root.joinpath(SENT_NAME).unlink()
    _log(finished, store)
    assert client.get_experiment(logged.experiment_id).tags["mlflow.note.content"] == "my own"


def test_log_training_of_texts_describes_no_answers(finished: TrainingJob, store: Path) -> None:
    assert _log(finished, store, experiment_name="Texts", tags={NOTE_TAG: TEXT_NOTE}) is not None
    client = open_client(default_tracking_uri(store))
    experiment = client.get_experiment_by_name("Texts")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags[NOTE_TAG] == experiment.tags[NOTE_TAG] == TEXT_NOTE
    assert not [word for word in ("question", "answer", "correct") if word in TEXT_NOTE]


def test_log_training_becomes_the_parent_of_evaluations_that_were_logged_before_it(
    finished: TrainingJob, store: Path, tmp_path: Path
) -> None:
    result = make_result(tmp_path, step=12)
    result = dataclasses.replace(result, checkpoint={**result.checkpoint, "training_fingerprint": finished.fingerprint})
    evaluated = log(result, store)
    client = open_client(default_tracking_uri(store))
    assert PARENT_TAG not in client.get_run(evaluated.run_id).data.tags
    logged = _log(finished, store, dataset=DATASET)
    assert logged is not None
    assert client.get_run(evaluated.run_id).data.tags[PARENT_TAG] == logged.run_id
    training = client.get_run(logged.run_id)
    assert training.data.tags["gpt_pipeline_version"] == __version__
    (given,) = training.inputs.dataset_inputs
    assert [tag.value for tag in given.tags] == ["training"]


def _log_earlier(job: TrainingJob, store: Path) -> None:
    log_earlier_trainings(
        job.folder,
        fingerprint=job.fingerprint,
        tracking_uri=default_tracking_uri(store),
        experiment_name="My GPT",
        tags={"experiment_file": "x.yaml"},
        draw_losses=_draw,
    )


def _draw(metrics: Path) -> str:
    """A picture that says up to which step it was drawn."""
    return f"<svg>{read_metrics(metrics)[-1]['step']}</svg>"


def _picture(store: Path) -> str:
    (path,) = store.glob("mlflow_artifacts/My GPT/*/artifacts/loss.svg")
    return path.read_text()


def _other(job: TrainingJob, **changes: Any) -> TrainingJob:
    """Return the job with another configuration."""
    return dataclasses.replace(
        job, fingerprint=OTHER, training=dataclasses.replace(job.training, seed=1, max_steps=6), **changes
    )


def _run_of(store: Path, fingerprint: str) -> Any:
    (run,) = [run for run in _runs(store) if run.data.tags["gpt_pipeline.training"] == fingerprint]
    return run


def _steps_of(store: Path, run: Any, key: str) -> list[int]:
    history = open_client(default_tracking_uri(store)).get_metric_history(run.info.run_id, key)
    return sorted(metric.step for metric in history)


def _runs(store: Path) -> list[Any]:
    client = open_client(default_tracking_uri(store))
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def _rows(store: Path) -> list[tuple[str, int, float, int]]:
    with sqlite3.connect(store / "mlflow.db") as connection:
        return sorted(connection.execute("select key, step, value, timestamp from metrics").fetchall())


def _steps(store: Path, key: str) -> list[int]:
    return sorted(step for found, step, _, _ in _rows(store) if found == key)


def _stop_at(job: TrainingJob, step: int) -> None:
    stop = StopFlag()
    run_job(job, Listener(lambda at: stop.request(signal.SIGTERM) if at == step else None), stop=stop)


def test_log_training_draws_the_losses_anew_at_checkpoints_and_at_the_end_only(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    lines = finished.folder.metrics.read_text().splitlines(keepends=True)
    checkpoints = [number for number, line in enumerate(lines) if json.loads(line)["kind"] == "checkpoint"]
    finished.folder.training.rename(finished.folder.root / "later.json")
    monkeypatch.setattr("gpt_pipeline.training.finished.trainer_state", lambda _: "running")
    for count in range(1, len(lines) + 1):
        finished.folder.metrics.write_text("".join(lines[:count]))
        _log(finished, store, draw_losses=lambda metrics: drawn.append(read_metrics(metrics)) or "<svg/>")
    assert len(drawn) == len(checkpoints)
    (finished.folder.root / "later.json").rename(finished.folder.training)
    monkeypatch.undo()
    _log(finished, store)
    _log(finished, store, draw_losses=lambda _: "drawn once too often")
    assert _picture(store) == "<svg>12</svg>"


def test_logged_run_names_the_run_of_the_training_alone(finished: TrainingJob, store: Path) -> None:
    assert logged_run(finished.folder, finished.fingerprint) is None
    logged = _log(finished, store)
    assert logged is not None
    assert logged_run(finished.folder, finished.fingerprint) == dataclasses.replace(logged, new=False)
    assert logged_run(finished.folder, OTHER) is None


def test_log_training_makes_one_finished_run_with_every_line_of_metrics(finished: TrainingJob, store: Path) -> None:
    logged = _log(finished, store)
    (run,) = _runs(store)
    assert logged is not None
    assert (run.info.run_id, run.info.run_name, run.info.status) == (logged.run_id, "training", "FINISHED")
    assert run.data.tags["gpt_pipeline.training"] == finished.fingerprint
    assert run.data.params == {"training.learning_rate": "0.01"}
    lines = [line for line in read_metrics(finished.folder.metrics) if line["kind"] in ("train", "validation")]
    assert logged.new
    assert len(lines) == 17
    wanted = {"train_loss", "learning_rate", "gradient_norm", "tokens_per_second", "val_loss", "tokens_seen"}
    wanted |= {"memory_gb"}
    assert wanted | {"best_val_loss", "best_step"} <= set(run.data.metrics)
    found = {(key, step): value for key, step, value, _ in _rows(store)}
    for line in lines:
        for key in wanted & set(line) - ({"tokens_seen"} if line["kind"] == "validation" else set()):
            assert found[key, line["step"]] == line[key]
    assert 0 <= min(row[3] for row in _rows(store)) - run.info.start_time < 60_000
    assert run.info.end_time >= run.info.start_time
    assert not training_log_is_pending(finished.folder, finished.fingerprint)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "note lost"])
def test_log_training_again_adds_no_row(finished: TrainingJob, store: Path, noted: bool) -> None:
    first = _log(finished, store)
    rows = _rows(store)
    if not noted:
        (finished.folder.root / SENT_NAME).unlink()
        assert training_log_is_pending(finished.folder, finished.fingerprint)
    again = _log(finished, store, parameters={"training": {"learning_rate": 5.0}})
    assert again is not None
    assert first is not None
    assert (again.run_id, again.new) == (first.run_id, not noted)
    assert _rows(store) == rows
    assert len(_runs(store)) == 1


def test_log_training_follows_a_running_one_and_goes_on_in_its_run_after_a_resume(tmp_path: Path, store: Path) -> None:
    job = make_job(tmp_path)
    assert _log(job, store) is None  # nothing is there yet
    statuses = []

    def follow(step: int) -> None:
        if step in (3, 6):
            _log(job, store)
            statuses.append([run.info.status for run in _runs(store)])

    stop = StopFlag()
    run_job(job, Listener(lambda at: [follow(at), stop.request(signal.SIGTERM) if at == 7 else None]), stop=stop)
    assert statuses == [["RUNNING"], ["RUNNING"]]
    assert training_log_is_pending(job.folder, job.fingerprint)
    _log(job, store)
    (stopped,) = _runs(store)
    assert stopped.info.status == "KILLED"
    run_job(job, Listener(follow))
    assert statuses[2:] == []  # both steps were before the resume
    _log(job, store)
    (run,) = _runs(store)
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    assert _steps(store, "train_loss") == list(range(1, 13))
    assert _steps(store, "val_loss") == [0, 3, 6, 9, 12]


def test_log_training_sends_a_step_once_that_was_trained_twice_around_a_crash(tmp_path: Path, store: Path) -> None:
    job = make_job(tmp_path)

    def die(step: int) -> None:
        if step == 7:
            _log(job, store)
            raise Killed

    with pytest.raises(Killed):
        run_job(job, Listener(die))  # the checkpoint of step 4, or the best one of 6, is the last
    run_job(job, Listener())
    assert sum(1 for line in job.folder.metrics.read_text().splitlines() if '"step": 7' in line) > 1
    _log(job, store)
    assert _steps(store, "train_loss") == list(range(1, 13))


def _rows_beyond_one(store: Path) -> dict[tuple[str, int], int]:
    """How many rows MLflow has of a metric at a step, where it is more than one."""
    counts = Counter((key, step) for key, step, _, _ in _rows(store))
    return {what: count for what, count in counts.items() if count > 1}


def test_log_training_whose_sender_and_trainer_are_killed_has_each_metric_of_a_step_once(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    job = make_job(tmp_path)
    log_batch = MlflowClient.log_batch

    def kill_after_it(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        log_batch(self, run_id, metrics=metrics, **others)
        if metrics:
            raise Killed  # before it is noted

    def die(step: int) -> None:
        if step == 7:
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, "log_batch", kill_after_it)
                _log(job, store)

    with pytest.raises(Killed):
        run_job(job, Listener(die))
    assert _steps(store, "train_loss")[-1] > 6
    with monkeypatch.context() as patch:
        patch.setattr("gpt_pipeline.training.metrics.utc_now", lambda: "2035-01-01T00:00:00Z")  # trained again later
        run_job(job, Listener())
    _log(job, store)
    assert _rows_beyond_one(store) == {}
    assert _steps(store, "train_loss") == list(range(1, 13))
    assert _steps(store, "val_loss") == [0, 3, 6, 9, 12]


def test_log_training_has_each_metric_of_a_step_once(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(finished, store)
    rows = _rows(store)
    assert {"train_loss", "val_loss", "tokens_seen", "best_val_loss"} <= {key for key, _, _, _ in rows}
    assert _rows_beyond_one(store) == {}
    again = dataclasses.replace(finished, resume=SCRATCH)
    monkeypatch.setattr("gpt_pipeline.training.run.utc_now", lambda: "2035-01-01T00:00:00Z")
    run_job(again, Listener())
    _log(again, store)
    assert _rows(store) == rows


def test_log_training_of_a_rewound_or_repeated_training_stays_one_run(finished: TrainingJob, store: Path) -> None:
    _log(finished, store)
    rows = [row for row in _rows(store) if row[0] == "train_loss"]
    for resume in ("checkpoint_step_4.pt", SCRATCH):
        job = dataclasses.replace(finished, resume=resume)
        run_job(job, Listener())
        _log(job, store)
        (run,) = _runs(store)
        assert run.info.status == "FINISHED"
        assert [row for row in _rows(store) if row[0] == "train_loss"] == rows


def test_log_training_with_another_configuration_is_another_run(finished: TrainingJob, store: Path) -> None:
    _log(finished, store)
    job = dataclasses.replace(finished, fingerprint=OTHER, training=dataclasses.replace(finished.training, seed=1))
    assert not training_log_is_pending(job.folder, OTHER)
    assert _log(job, store) is None  # the lines in the folder are still the other one's
    run_job(job, Listener())
    _log(job, store)
    assert len(_runs(store)) == 2
    assert _log(finished, store) is None


def test_log_of_a_stopped_training_that_was_moved_aside_is_completed_in_its_own_run(
    tmp_path: Path, store: Path
) -> None:
    job = make_job(tmp_path)
    stop = StopFlag()

    def follow(step: int) -> None:
        if step == 3:
            _log(job, store)  # the last that MLflow hears of it
        if step == 7:
            stop.request(signal.SIGTERM)

    run_job(job, Listener(follow), stop=stop)
    run_job(_other(job), Listener())
    assert earlier_logs_are_pending(job.folder, OTHER)
    _log(_other(job), store)
    assert _run_of(store, job.fingerprint).info.status == "RUNNING"
    _log_earlier(_other(job), store)
    first, second = _run_of(store, job.fingerprint), _run_of(store, OTHER)
    assert (first.info.status, second.info.status) == ("KILLED", "FINISHED")
    assert _steps_of(store, first, "train_loss") == list(range(1, 8))
    assert _steps_of(store, second, "train_loss") == list(range(1, 7))
    assert not earlier_logs_are_pending(job.folder, OTHER)


@pytest.mark.parametrize("resume", [None, "checkpoint_step_4.pt"], ids=["moved aside", "rewound"])
def test_log_of_an_earlier_training_that_mlflow_never_heard_of_is_sent_whole(
    finished: TrainingJob, store: Path, resume: str | None
) -> None:
    assert earlier_logs_are_pending(finished.folder, OTHER)  # where it was trained, before the new one begins
    other = _other(finished, resume=resume)
    run_job(other, Listener())
    _log_earlier(other, store)
    (run,) = _runs(store)
    assert run.data.tags["gpt_pipeline.training"] == finished.fingerprint
    assert _steps_of(store, run, "train_loss") == list(range(1, 13))
    assert run.data.params["training.seed"] == "0"
    assert run.data.params["training.learning_rate"] == "0.01"
    assert not earlier_logs_are_pending(finished.folder, OTHER)


def test_log_of_a_training_begun_again_after_another_adds_no_row_to_its_run(finished: TrainingJob, store: Path) -> None:
    _log(finished, store)
    rows = [row for row in _rows(store) if row[0] == "train_loss"]
    other = _other(finished)
    run_job(other, Listener())
    _log(other, store)
    rows += [row for row in _rows(store) if row[0] == "train_loss" and row not in rows]
    run_job(finished, Listener())
    _log(finished, store)
    assert [row for row in _rows(store) if row[0] == "train_loss"] == sorted(rows)
    assert not earlier_logs_are_pending(finished.folder, finished.fingerprint)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "killed before the note"])
def test_log_training_cut_short_between_batches_is_completed_without_loss(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    from mlflow.tracking import MlflowClient

    calls = []
    log_batch = MlflowClient.log_batch

    def dying(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        calls.append(len(metrics))
        if len(calls) == 4 and noted:
            raise KeyboardInterrupt
        log_batch(self, run_id, metrics=metrics, **others)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gpt_pipeline.tracking.training_run._LINES_AT_ONCE", 2)
        patch.setattr(MlflowClient, "log_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            _log(finished, store)
    assert max(calls) <= 20
    assert 0 < len(_steps(store, "train_loss")) < 12
    _log(finished, store)
    assert _steps(store, "train_loss") == list(range(1, 13))
    assert len(_runs(store)) == 1


def test_log_training_where_files_cannot_be_written_stays_pending_and_is_caught_up(
    finished: TrainingJob, store: Path
) -> None:
    open_client(default_tracking_uri(store)).create_experiment("My GPT", artifact_location="file:///proc/nowhere")
    with pytest.raises(TrackingError, match="cannot write where it keeps files"):
        _log(finished, store)
    assert _steps(store, "train_loss") == list(range(1, 13))
    assert training_log_is_pending(finished.folder, finished.fingerprint)
    move_files(store, (store / "mlflow_artifacts" / "My GPT").as_uri())
    _log(finished, store)
    assert not training_log_is_pending(finished.folder, finished.fingerprint)
    assert [run.info.status for run in _runs(store)] == ["FINISHED"]
    assert _rows_beyond_one(store) == {}


def test_log_training_to_nobody_says_so_in_one_line_and_is_caught_up_with_later(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"its lines are kept in metrics\.jsonl") as raised:
        _log(finished, store, tracking_uri="http://127.0.0.1:9")
    assert "\n" not in str(raised.value)
    assert training_log_is_pending(finished.folder, finished.fingerprint)
    _log(finished, store)
    assert _steps(store, "train_loss") == list(range(1, 13))
    assert not training_log_is_pending(finished.folder, finished.fingerprint)


def test_log_training_while_another_process_logs_does_not_wait_for_ever(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr("gpt_pipeline.tracking.training_run._TURN_SECONDS", 0.1)
    with FileLock(store / "mlflow.db.lock", is_singleton=False), pytest.raises(TrackingError, match="is busy"):
        _log(finished, store)


def test_log_training_into_a_wiped_store_fills_it_again(finished: TrainingJob, store: Path, empty_store: bytes) -> None:
    _log(finished, store)
    rows = _rows(store)
    open_client(default_tracking_uri(store))._tracking_client.store.engine.dispose()
    (store / "mlflow.db").write_bytes(empty_store)
    _log(finished, store)
    assert _rows(store) == rows


def test_log_training_leaves_out_a_torn_line_until_it_is_whole(finished: TrainingJob, store: Path) -> None:
    text = finished.folder.metrics.read_text()
    finished.folder.metrics.write_text(text[:-150] if text[-151] != "\n" else text[:-140])
    _log(finished, store)
    assert not training_log_is_pending(finished.folder, finished.fingerprint)
    finished.folder.metrics.write_text(text)
    assert training_log_is_pending(finished.folder, finished.fingerprint)
    _log(finished, store)
    assert _steps(store, "val_loss") == [0, 3, 6, 9, 12]


def test_log_training_with_a_note_of_an_earlier_or_later_version_sends_nothing_again(
    finished: TrainingJob, store: Path
) -> None:
    _log(finished, store)
    note = json.loads((finished.folder.root / SENT_NAME).read_text())
    write_json(finished.folder.root / SENT_NAME, {**note, "tail": "0" * 64})
    assert not training_log_is_pending(finished.folder, finished.fingerprint)
    assert sent_runs(finished.folder) == {finished.folder: note["run_id"]}


def test_log_training_with_more_metrics_than_one_call_takes_sends_each_step_whole(
    finished: TrainingJob, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    calls: list[dict[int, int]] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        calls.append(Counter(metric.step for metric in metrics if metric.key != "val_loss"))
        log_batch(self, run_id, metrics=metrics, **others)

    records = read_metrics(finished.folder.metrics)
    load = {f"system/gpu_{place}_utilization_percentage": 1.0 for place in range(300)}
    lines = [{**record, **load} if record["kind"] == "train" else record for record in records]
    finished.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    _log(finished, store)
    sent = [call for call in calls if max(call.values(), default=0) > 300]
    assert len(sent) == 4
    assert all(sum(call.values()) <= 1000 for call in sent)
    assert not set(sent[0]) & set(sent[1])
    assert _steps(store, "system/gpu_299_utilization_percentage") == list(range(1, 13))


def test_log_training_counts_tokens_once_at_a_step_that_was_validated_too(finished: TrainingJob, store: Path) -> None:
    _log(finished, store)
    assert _steps(store, "tokens_seen") == list(range(1, 13))


def test_training_log_of_a_trainer_that_died_is_failed_until_it_goes_on(finished: TrainingJob, store: Path) -> None:
    folder: ExperimentFolder = finished.folder
    folder.training.unlink()
    process = {"host": "elsewhere", "pid": 1}
    write_json(folder.root / "heartbeat.json", {"process": process, "run": "", "step": 3})
    import os

    os.utime(folder.root / "heartbeat.json", (time.time() - 1000,) * 2)
    _log(finished, store)
    assert [run.info.status for run in _runs(store)] == ["FAILED"]
    with folder_lock(folder.root, purpose="training"):
        assert training_log_is_pending(folder, finished.fingerprint)
        _log(finished, store)
        assert [run.info.status for run in _runs(store)] == ["RUNNING"]

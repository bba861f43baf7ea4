from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_param_name

from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, find_evaluation, write_evaluation
from gpt_pipeline.progress.evaluations import mark_logged
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.tracking.dataset import LoggedDataset
from gpt_pipeline.tracking.lost_runs import lost_runs
from gpt_pipeline.tracking.mlflow_tracker import (
    ALIAS_TAG,
    CONTINUATIONS_FILE,
    CONTINUATIONS_TABLE_FILE,
    FINGERPRINT_TAG,
    MARKDOWN_FILE,
    TABLE_FILE,
    log_evaluation,
)
from gpt_pipeline.tracking.store import (
    LoggedRun,
    TrackingError,
    _follow_move,
    flatten,
    open_client,
    open_store,
    prepare_store,
)
from gpt_pipeline.tracking.tags import PARENT_TAG
from gpt_pipeline.tracking.training_run import FINGERPRINT_TAG as TRAINING_TAG
from gpt_pipeline_tests.projects import default_tracking_uri
from gpt_pipeline_tests.test_source_folder import nobody

PARAMETERS = {"training": {"learning_rate": 3e-4, "max_steps": None}, "data": {"num_samples": 100}}
DATASET = LoggedDataset(
    name="PleIAs/SYNTH",
    fingerprint="d" * 64,
    source_type="hugging_face",
    source={"path": "PleIAs/SYNTH"},
    profile={"num_rows": 12, "num_elements": 3456},
)
ANSWER = {
    "synth_id": "a1",
    "exercise": "math exercise",
    "question": "What is six times seven?\n```\n<script>",
    "expected": "42",
    "reference_reasoning": "6*7=42",
    "reference_answer": "42",
    "reasoning": "Six sevens.",
    "answer": "It is 42.",
    "generated": "Six sevens.\n\nA: It is 42.",
    "ended": True,
    "well_formed": True,
    "correct": True,
    "exact_match": False,
    "numeric_match": True,
    "choice_match": None,
    "reference_tokens": 6,
    "token_f1": 0.5,
    "distinct_2": 1.0,
    "new_tokens": 9,
    "prompt_truncated": False,
}


def make_result(
    folder: Path, *, step: int = 50_000, fingerprint: str | None = None, weights: str = "b" * 64
) -> EvaluationResult:
    """Write the result of an evaluation into the folder, with a fingerprint of its step; return it."""
    fingerprint = fingerprint or f"{step:064d}"
    key = f"step_{step:08d}"
    result = EvaluationResult(
        fingerprint=fingerprint,
        key=key,
        checkpoint={
            "file": f"checkpoint_step_{step}.pt",
            "step": step,
            "tokens_seen": step * 100,
            "sha256": "a" * 64,
            "weights_sha256": weights,
            "training_fingerprint": "c" * 64,
            "created_at": "2026-11-01T09:00:00Z",
            "metrics": {"train_loss": 3.5, "val_loss": None},
        },
        config={"num_questions": 1},
        upstream={"shards": "d" * 64, "english": "e" * 64},
        metrics={"val_loss": 3.25, "well_formed": 1.0},
        answers=(ANSWER,),
        started_at="2026-11-01T10:00:00Z",
        created_at="2026-11-01T10:01:00Z",
        seconds=60.0,
        device="cpu",
        versions={"torch": "2.13.0", "gpt_pipeline": "0.9"},
        path=evaluation_path(folder / "evaluations", key, fingerprint),
        reused=False,
    )
    write_evaluation(result)
    return result


def log(result: EvaluationResult, store: Path, **changes: Any) -> LoggedRun:
    own = {"experiment_name": "My GPT", "parameters": PARAMETERS, "tags": {"dagster_run_id": "r1"}}
    return log_evaluation(result, **{"tracking_uri": default_tracking_uri(store), **own, **changes})


def client(store: Path) -> Any:
    return open_client(default_tracking_uri(store))


def runs(store: Path) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client(store).search_experiments()]
    return list(client(store).search_runs(ids))


def metric_rows(store: Path) -> int:
    with sqlite3.connect(store / "mlflow.db") as connection:
        return int(connection.execute("select count(*) from metrics").fetchone()[0])


def test_log_evaluation_makes_one_finished_run_with_all_of_the_result(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    logged = log(make_result(tmp_path), store)
    (run,) = runs(store)
    assert (logged.run_id, logged.experiment_id, logged.new) == (run.info.run_id, run.info.experiment_id, True)
    assert (run.info.run_name, run.info.status) == ("step_50000", "FINISHED")
    assert run.data.params == {
        "training.learning_rate": "0.0003",
        "training.max_steps": "null",
        "data.num_samples": "100",
    }
    assert run.data.metrics == {
        "val_loss": 3.25,
        "well_formed": 1.0,
        "trainer_train_loss": 3.5,
        "evaluation_seconds": 60.0,
    }
    assert run.data.tags["step"] == "50000"
    assert run.data.tags["weights_sha256"] == "b" * 64
    assert run.data.tags["dagster_run_id"] == "r1"
    assert client(store).get_experiment(run.info.experiment_id).name == "My GPT"
    artifacts = Path(url2pathname(urlparse(run.info.artifact_uri).path))
    assert artifacts.is_relative_to(store)
    table = json.loads((artifacts / TABLE_FILE).read_text(encoding="utf-8"))
    assert dict(zip(table["columns"], table["data"][0], strict=True))["answer"] == "It is 42."
    assert "It is 42." in (artifacts / MARKDOWN_FILE).read_text(encoding="utf-8")
    assert list(elsewhere.iterdir()) == []


def test_log_evaluation_of_texts_logs_continuations_and_no_questions(tmp_path: Path, store: Path) -> None:
    texts = (
        {"kind": "a", "beginning": "Once", "generated": " upon", "original": "", "ended": True, "distinct_2": None},
    )
    run_id = log(dataclasses.replace(make_result(tmp_path), answers=(), continuations=texts), store).run_id
    run = client(store).get_run(run_id)
    files = {path.name for path in Path(url2pathname(urlparse(run.info.artifact_uri).path)).iterdir()}
    assert files == {CONTINUATIONS_TABLE_FILE, CONTINUATIONS_FILE}
    assert [each["path"] for each in json.loads(run.data.tags["mlflow.loggedArtifacts"])] == [CONTINUATIONS_TABLE_FILE]


def test_log_evaluation_again_changes_nothing(tmp_path: Path, store: Path) -> None:
    first = log(make_result(tmp_path), store)
    rows = metric_rows(store)
    again = log(make_result(tmp_path), store, parameters={"training": {"learning_rate": 1.0}})
    assert again == dataclasses.replace(first, new=False)
    assert len(runs(store)) == 1
    assert metric_rows(store) == rows


def _training_run(store: Path, experiment_name: str = "My GPT") -> str:
    """Make the run of the training that `make_result` belongs to; return its id."""
    with open_store(
        default_tracking_uri(store), experiment_name=experiment_name, what="", remedy="", lock=store / "lock"
    ) as opened:
        tag, value = TRAINING_TAG, "c" * 64
        return str(opened.run(tag=tag, value=value, name="training", started_at=None, tags={}).info.run_id)


@pytest.mark.parametrize("first", ["training", "evaluation"])
def test_log_evaluation_is_nested_under_its_training_whichever_was_logged_first(
    tmp_path: Path, store: Path, first: str
) -> None:
    run_id = _training_run(store) if first == "training" else ""
    log(make_result(tmp_path, step=10), store)
    run_id = run_id or _training_run(store)
    log(make_result(tmp_path, step=20), store)
    parents = {run.info.run_name: run.data.tags.get(PARENT_TAG) for run in runs(store)}
    assert parents == {"training": None, "step_10": run_id, "step_20": run_id}


def test_log_evaluation_gives_the_runs_of_an_earlier_version_the_tags_that_they_lack(
    tmp_path: Path, store: Path
) -> None:
    training = _training_run(store)
    log(make_result(tmp_path, step=10), store, tags={"objective": "sft"})
    log(make_result(tmp_path, step=20), store, tags={"objective": "pretrain", "project": "p"})
    found = {run.info.run_name: (run.data.tags["objective"], run.data.tags["project"]) for run in runs(store)}
    assert found == {"training": ("sft", "p"), "step_10": ("sft", "p"), "step_20": ("pretrain", "p")}
    client(store).delete_run(training)  # and logged anew, as after it was lost
    again = _training_run(store)
    log(make_result(tmp_path, step=20), store)
    assert {run.data.tags.get(PARENT_TAG) for run in runs(store)} == {None, again}


def test_log_evaluation_asks_for_the_runs_of_the_others_once_for_each_set_of_tags(tmp_path: Path, store: Path) -> None:
    def projects() -> dict[str, str | None]:
        return {run.info.run_name: run.data.tags.get("project") for run in runs(store)}

    _training_run(store)
    first = log(make_result(tmp_path, step=10, fingerprint="1" * 64), store, tags={"project": "p"})
    client(store).delete_tag(first.run_id, "project")
    log(make_result(tmp_path, step=20, fingerprint="2" * 64), store, tags={"project": "p"})
    assert projects() == {"training": "p", "step_10": None, "step_20": "p"}
    log(make_result(tmp_path, step=30, fingerprint="3" * 64), store, tags={"project": "p", "objective": "sft"})
    assert projects() == dict.fromkeys(("training", "step_10", "step_20", "step_30"), "p")


def test_log_evaluation_names_its_data_as_an_input_once(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    result = make_result(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log(result, store, dataset=DATASET)
    log(result, store, dataset=DATASET)
    (run,) = runs(store)
    (given,) = client(store).get_run(run.info.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("PleIAs/SYNTH", "d" * 12)
    assert json.loads(given.dataset.profile) == {"num_rows": 12, "num_elements": 3456}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "evaluation")]
    filtered = client(store).search_runs(
        [run.info.experiment_id], f"dataset.digest = '{'d' * 12}' and tags.gpt_pipeline_version = '0.9'"
    )
    assert [each.info.run_id for each in filtered] == [run.info.run_id]


def _series(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(store).get_metric_history(run_id, f"eval/{key}")]


def test_log_evaluation_adds_a_point_to_the_series_of_its_training_once(tmp_path: Path, store: Path) -> None:
    run_id = _training_run(store)
    early = make_result(tmp_path, step=10)  # as an earlier version left it: in no series
    late = make_result(tmp_path, step=20)
    for result in (late, late, early):
        log(result, store)
    low = pytest.approx(0.2065, abs=1e-4)  # of one right answer of one
    assert _series(store, run_id, "val_loss") == [(10, 3.25), (20, 3.25)]
    assert _series(store, run_id, "correct_low") == [(10, low), (20, low)]


def _note(result: EvaluationResult) -> None:
    """Note that the result is in MLflow, as its step does once it has logged it."""
    mark_logged(ExperimentFolder(root=result.path.parent.parent), result, run_id="r", alias=None)


def test_log_evaluation_leaves_others_with_a_note_alone_once_the_series_has_begun(tmp_path: Path, store: Path) -> None:
    run_id = _training_run(store)
    log(make_result(tmp_path, step=10), store)
    early = make_result(tmp_path, step=20)
    _note(early)
    log(make_result(tmp_path, step=30), store)
    assert _series(store, run_id, "val_loss") == [(10, 3.25), (30, 3.25)]
    log(early, store)
    assert _series(store, run_id, "val_loss") == [(10, 3.25), (20, 3.25), (30, 3.25)]


def test_log_evaluation_sends_what_a_mirror_brought_after_the_series_had_begun(tmp_path: Path, store: Path) -> None:
    run_id = _training_run(store)
    first = make_result(tmp_path, step=10)
    log(first, store)
    _note(first)
    of_another = make_result(tmp_path, step=15)
    write_evaluation(
        dataclasses.replace(of_another, checkpoint={**of_another.checkpoint, "training_fingerprint": "f" * 64})
    )
    brought = [make_result(tmp_path, step=step) for step in (20, 25)]
    for step in (30, 40):
        log(make_result(tmp_path, step=step), store)
        for result in brought:
            result.path.write_text("{}")  # in the series, it is not read again
    assert _series(store, run_id, "val_loss") == [(step, 3.25) for step in (10, 20, 25, 30, 40)]
    assert {name for name, _ in _series(store, run_id, "correct_low")} == {10, 20, 25, 30, 40}


def test_log_evaluation_again_completes_a_point_of_which_a_part_was_sent(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    run_id = _training_run(store)
    for step in (10, 30):
        log(make_result(tmp_path, step=step), store)
    plain, result = MlflowClient.log_batch, make_result(tmp_path, step=20)

    def cut_off(self: MlflowClient, run: str, *, metrics: Any = (), **others: Any) -> None:
        plain(self, run, metrics=[each for each in metrics if each.key == "eval/val_loss" or run != run_id], **others)
        if metrics and run == run_id:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", cut_off)
        with pytest.raises(KeyboardInterrupt):
            log(result, store)
    assert len(_series(store, run_id, "val_loss")) > len(_series(store, run_id, "well_formed"))
    log(result, store)
    assert _series(store, run_id, "val_loss") == [(10, 3.25), (20, 3.25), (30, 3.25)]
    assert _series(store, run_id, "well_formed") == [(10, 1.0), (20, 1.0), (30, 1.0)]


def test_log_evaluation_asks_for_a_look_until_the_store_knows_the_training(tmp_path: Path, store: Path) -> None:
    looked_at: list[int] = []

    def log_step(step: int) -> None:
        log(make_result(tmp_path, step=step), store, if_unknown=lambda: looked_at.append(step))

    log_step(10)  # no training there yet
    training = _training_run(store)
    for step in (20, 30):
        log_step(step)
    assert looked_at == [10, 20]
    client(store).delete_run(training)  # and logged anew, as into a wiped store
    _training_run(store)
    log_step(40)
    assert looked_at == [10, 20, 40]


def test_log_evaluation_whose_look_fails_is_asked_for_one_again(tmp_path: Path, store: Path) -> None:
    def failing() -> None:
        raise TrackingError("busy")

    _training_run(store)
    result, looks = make_result(tmp_path, step=10), []
    with pytest.raises(TrackingError, match="busy"):
        log(result, store, if_unknown=failing)
    for _ in range(2):
        log(result, store, if_unknown=lambda: looks.append(result))
    assert looks == [result]


def test_log_evaluation_of_a_step_again_leaves_the_series_alone(tmp_path: Path, store: Path) -> None:
    run_id = _training_run(store)
    log(make_result(tmp_path, step=10), store)
    again = make_result(tmp_path, step=10, fingerprint="2" * 64)
    again = dataclasses.replace(again, metrics={"val_loss": 9.0}, created_at="2026-11-01T12:00:00Z")
    write_evaluation(again)
    log(again, store)
    assert _series(store, run_id, "val_loss") == [(10, 3.25)]


def test_log_evaluation_of_other_questions_adds_only_losses_to_the_series(tmp_path: Path, store: Path) -> None:
    run_id = _training_run(store)
    log(make_result(tmp_path, step=10), store)
    other = dataclasses.replace(make_result(tmp_path, step=20), config={"num_questions": 5})
    other_data = dataclasses.replace(make_result(tmp_path, step=30), upstream={"shards": "x"})
    for result in (other, other_data):
        write_evaluation(result)
    log(other, store)
    assert _series(store, run_id, "val_loss") == [(10, 3.25), (20, 3.25)]
    assert _series(store, run_id, "well_formed") == [(10, 1.0)]


@pytest.mark.parametrize("reached", ["log_batch", "log_text", "set_terminated"])
def test_log_evaluation_after_a_killed_attempt_completes_its_run(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, reached: str
) -> None:
    from mlflow.tracking import MlflowClient

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    result = make_result(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, reached, killed)
        with pytest.raises(KeyboardInterrupt):
            log(result, store)
    (half,) = runs(store)
    assert half.info.status == "RUNNING"
    completed = log(result, store, parameters={"training": {"learning_rate": 1.0, "seed": 3}})
    (run,) = runs(store)
    assert (completed.run_id, completed.new) == (half.info.run_id, True)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.seed"] == "3"
    assert metric_rows(store) == 4


# Where an attempt is killed by the system, as the name of a method, its how-manieth call, and before or after it.
KILLED_AT = [
    ("create_run", 1, "after"),
    ("log_batch", 1, "after"),
    ("log_batch", 1, "before"),
    ("log_text", 1, "before"),
    ("log_text", 1, "after"),
    ("set_terminated", 1, "before"),
    ("set_tag", 1, "before"),
]


@pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL are POSIX")
@pytest.mark.slow
def test_log_evaluation_by_processes_killed_at_several_points_ends_with_one_complete_run_each(
    tmp_path: Path, store: Path
) -> None:
    results = [make_result(tmp_path, step=number, weights=f"{number:064d}") for number in range(1, len(KILLED_AT) + 1)]
    code = f"""
import os, signal
from pathlib import Path
from gpt_pipeline.tracking.store import configure_mlflow
configure_mlflow()
from mlflow.tracking import MlflowClient
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline_tests.test_mlflow_tracker import KILLED_AT, log

def kill_at(name, number, when):
    plain, calls = getattr(MlflowClient, name), []
    def watched(*given, **options):
        calls.append(name)
        if when == "before" and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(*given, **options)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(MlflowClient, name, watched)

for result, point in zip(read_evaluations(Path({str(results[0].path.parent)!r})), KILLED_AT, strict=True):
    child = os.fork()
    if child == 0:
        kill_at(*point)
        log(result, Path({str(store)!r}), best_weights=result.checkpoint["weights_sha256"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, point
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert len(runs(store)) == len(results)
    for result in results:
        log(result, store, best_weights=result.checkpoint["weights_sha256"])
    by_step = {run.data.tags["step"]: run for run in runs(store)}
    assert len(runs(store)) == len(by_step) == len(results)
    assert metric_rows(store) == 4 * len(results)
    assert len(list(store.rglob(TABLE_FILE))) == len(list(store.rglob(MARKDOWN_FILE))) == len(results)
    for run in by_step.values():
        assert (run.info.status, len(run.data.params)) == ("FINISHED", 3)
    assert [step for step, run in by_step.items() if ALIAS_TAG in run.data.tags] == [str(len(results))]


def test_log_evaluation_of_the_best_bears_the_alias_until_another_is_the_best(tmp_path: Path, store: Path) -> None:
    def aliases() -> dict[str, str | None]:
        return {run.info.run_name: run.data.tags.get(ALIAS_TAG) for run in runs(store)}

    first = make_result(tmp_path, step=1, weights="1" * 64)
    second = make_result(tmp_path, step=2, weights="2" * 64)
    log(first, store, best_weights="1" * 64)
    assert aliases() == {"step_1": "best_model"}
    log(second, store, best_weights="1" * 64)
    assert aliases() == {"step_1": "best_model", "step_2": None}
    log(second, store, best_weights="2" * 64)
    assert aliases() == {"step_1": None, "step_2": "best_model"}
    log(first, store, best_weights="3" * 64)  # a best between two checkpoints, not evaluated so far
    assert aliases() == {"step_1": None, "step_2": None}
    assert metric_rows(store) == 8


def test_log_evaluation_into_a_store_locked_by_another_program_says_so_and_is_caught_up(
    tmp_path: Path, store: Path
) -> None:
    result = make_result(tmp_path)
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(TrackingError, match="locked"):
        log(result, store)
    other.execute("rollback")
    other.close()
    assert log(result, store).new
    assert [run.info.status for run in runs(store)] == ["FINISHED"]
    assert metric_rows(store) == 4


def test_log_evaluation_to_a_server_that_says_nothing_waits_for_one_answer_only(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    result = make_result(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TrackingError, match=r"did not take the evaluation \(.*timed out.* the result is kept"):
            log(result, store, tracking_uri=uri)
        with pytest.raises(TrackingError, match="timed out"):
            lost_runs(["some"], tracking_uri=uri, experiment_name="My GPT")
        silent.settimeout(0.1)
        calls = [silent.accept()[0] for _ in range(2)]  # MLflow's client would have called three times for each
        with pytest.raises(TimeoutError):
            silent.accept()
        for call in calls:
            call.close()
    assert log(result, store).new


def test_lost_runs_are_those_that_a_store_does_not_know(tmp_path: Path, store: Path, empty_store: bytes) -> None:
    logged = log(make_result(tmp_path), store)
    settings = {"tracking_uri": default_tracking_uri(store), "experiment_name": "My GPT"}
    assert lost_runs([logged.run_id, "other"], **settings) == {"other"}
    client(store).delete_run(logged.run_id)  # into the trash: someone wants it so
    assert lost_runs([logged.run_id], **settings) == set()
    (store / "mlflow.db").write_bytes(empty_store)
    assert lost_runs([logged.run_id], **settings) == {logged.run_id}
    (store / "mlflow.db").unlink()
    assert lost_runs([logged.run_id], **settings) == {logged.run_id}
    assert not (store / "mlflow.db").exists()


def test_lost_runs_of_a_store_that_cannot_be_read_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match="asked again later"):
        lost_runs(["x"], tracking_uri=default_tracking_uri(tmp_path), experiment_name="My GPT")


def test_log_evaluation_into_a_wiped_store_logs_again_from_the_disk(
    tmp_path: Path, store: Path, empty_store: bytes
) -> None:
    result = make_result(tmp_path)
    first = log(result, store)
    wiped = tmp_path / "wiped"
    wiped.mkdir()
    (wiped / "mlflow.db").write_bytes(empty_store)
    kept = find_evaluation(result.path.parent, result.fingerprint)
    assert kept is not None
    second = log(kept, wiped)
    assert second.new
    assert second.run_id != first.run_id
    (before,), (after,) = runs(store), runs(wiped)
    assert (before.data.metrics, before.info.end_time) == (after.data.metrics, after.info.end_time)


def test_log_evaluation_restores_an_experiment_from_the_trash(tmp_path: Path, store: Path) -> None:
    first = log(make_result(tmp_path), store)
    client(store).delete_experiment(first.experiment_id)
    second = log(make_result(tmp_path, step=60_000), store)
    assert second.experiment_id == first.experiment_id
    assert len(runs(store)) == 2


@pytest.mark.parametrize("name", ["../../x", "<script>alert(1)</script>", "a/b", "Ünïcode ✓ name's"])
def test_log_evaluation_with_a_hostile_name_stays_inside_the_store(tmp_path: Path, store: Path, name: str) -> None:
    result = make_result(tmp_path)
    if ".." in name:
        with pytest.raises(ValueError, match="stays inside"):
            log(result, store, experiment_name=name)
        return
    logged = log(result, store, experiment_name=name)
    experiment = client(store).get_experiment(logged.experiment_id)
    assert not set('<>"/\\') & set(experiment.name)
    files = list((store / "mlflow_artifacts").rglob(TABLE_FILE))
    assert len(files) == 1


def test_log_evaluation_with_a_damaged_store_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match="kept on disk") as raised:
        log(make_result(tmp_path), tmp_path)
    assert "\n" not in str(raised.value)


def test_log_evaluation_into_a_store_that_refuses_to_be_written_says_why(tmp_path: Path, store: Path) -> None:
    client(store).create_experiment("My GPT")
    with closing(sqlite3.connect(store / "mlflow.db")) as connection, connection:
        connection.execute("create trigger full before insert on runs begin select raise(abort, 'no more'); end")
    with pytest.raises(TrackingError, match=r"did not take the evaluation \(.*no more\)"):
        log(make_result(tmp_path), store)


def test_store_that_is_copied_or_moved_keeps_its_files_beside_it(tmp_path: Path, store: Path) -> None:
    log(make_result(tmp_path, step=1), store)
    copied, moved = tmp_path / "copied", tmp_path / "moved"
    shutil.copytree(store, copied)
    log(make_result(tmp_path, step=2, weights="c" * 64), copied)
    assert len(runs(copied)) == 2
    assert len(runs(store)) == 1
    store.rename(moved)
    log(make_result(tmp_path, step=3, weights="d" * 64), moved)
    assert not store.exists()
    for folder in (copied, moved):
        for run in runs(folder):
            assert run.info.artifact_uri.startswith(f"{folder.as_uri()}/mlflow_artifacts/My%20GPT/")
            assert [*Path(url2pathname(urlparse(run.info.artifact_uri).path)).iterdir()]


def test_store_that_is_moved_without_its_files_leaves_them_where_they_are(tmp_path: Path, store: Path) -> None:
    log(make_result(tmp_path, step=1), store)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(store / "mlflow.db", alone)
    log(make_result(tmp_path, step=2, weights="c" * 64), alone)
    assert all(run.info.artifact_uri.startswith(store.as_uri()) for run in runs(alone))


@pytest.mark.skipif(os.name == "nt", reason="a folder keeps nobody out there")
def test_store_that_is_copied_out_of_a_closed_folder_keeps_its_files_beside_it() -> None:
    with nobody() as own:
        home = own / "home" / "project"
        prepare_store(default_tracking_uri(home))
        client(home).create_experiment("My GPT", artifact_location=f"{home.as_uri()}/mlflow_artifacts/My%20GPT")
        copied = own / "copied"
        shutil.copytree(home, copied)
        for path in (copied, *copied.iterdir()):
            os.chmod(path, 0o777)
        home.parent.chmod(0)
        os.seteuid(os.geteuid() or 65534)
        _follow_move(default_tracking_uri(copied))
        places = _locations(copied)
    assert places == [f"{copied.as_uri()}/mlflow_artifacts/My%20GPT"]


def _locations(store: Path) -> list[str]:
    with closing(sqlite3.connect(store / "mlflow.db")) as connection:
        query = "select artifact_location from experiments where name = 'My GPT'"
        return [place for (place,) in connection.execute(query)]


def move_files(store: Path, place: str) -> None:
    """Have the store keep files at `place`, as if its server had been started with it, and this process anew."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
    with closing(sqlite3.connect(store / "mlflow.db")) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(f"update {table} set {column} = ? || '/' || rowid", (place,))


def test_log_evaluation_where_files_cannot_be_written_names_the_place_and_is_caught_up(
    tmp_path: Path, store: Path
) -> None:
    client(store).create_experiment("My GPT", artifact_location="file:///proc/nowhere")
    with pytest.raises(TrackingError, match=r"cannot write where it keeps files, file:///proc/nowhere.*destination"):
        log(make_result(tmp_path), store)
    move_files(store, (store / "files").as_uri())
    assert log(make_result(tmp_path), store).new
    (run,) = runs(store)
    assert run.info.status == "FINISHED"


def _undo_migrations(database: Path) -> None:
    """Leave in a new store what a process leaves that is killed in the midst of MLflow's migrations."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
        for table in ("model_versions", "registered_models", "latest_metrics"):
            connection.execute(f"drop table {table}")


@pytest.mark.slow  # MLflow's migrations take seconds
def test_log_evaluation_into_a_store_whose_making_was_cut_short_makes_it_anew(tmp_path: Path, store: Path) -> None:
    _undo_migrations(store / "mlflow.db")
    assert log(make_result(tmp_path), store).new
    assert len(runs(store)) == 1
    assert sorted(path.name for path in store.iterdir()) == ["mlflow.db", "mlflow.db.lock", "mlflow_artifacts"]


def test_log_evaluation_into_a_half_migrated_store_with_runs_in_it_leaves_it_alone(tmp_path: Path, store: Path) -> None:
    log(make_result(tmp_path), store)
    client(store)._tracking_client.store.engine.dispose()
    _undo_migrations(store / "mlflow.db")
    moved = tmp_path / "as another process finds it"
    shutil.copytree(store, moved)
    with pytest.raises(TrackingError, match="kept on disk"):
        log(make_result(tmp_path), moved)
    with closing(sqlite3.connect(moved / "mlflow.db")) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (1,)


@pytest.mark.slow
def test_store_whose_first_process_is_killed_is_never_there_in_part(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    code = f"from gpt_pipeline.tracking.store import prepare_store; prepare_store({uri!r})"
    child = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / ".mlflow.db.new"
    while not (part.exists() and part.stat().st_size > 100_000):
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert part.exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert log(make_result(tmp_path), tmp_path).new
    assert not part.exists()


def test_log_evaluation_cuts_values_that_mlflow_refuses(tmp_path: Path, store: Path) -> None:
    many = {f"key_{number}": "x" for number in range(250)} | {"long": "y" * 20_000}
    result = make_result(tmp_path)
    log(result, store, parameters=many, tags={"long": "z" * 20_000})
    (run,) = runs(store)
    assert len(run.data.params) == 251
    assert run.data.params["long"].startswith("yyy")
    assert run.data.tags[FINGERPRINT_TAG] == result.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_log_evaluation_from_processes_at_once_into_no_store_yet_ends_with_one_run(tmp_path: Path, number: int) -> None:
    result = make_result(tmp_path)
    code = f"""
from pathlib import Path
from gpt_pipeline.evaluation.result import find_evaluation
from gpt_pipeline.tracking.mlflow_tracker import log_evaluation
from gpt_pipeline_tests.projects import default_tracking_uri
result = find_evaluation(Path({str(result.path.parent)!r}), {result.fingerprint!r})
uri = default_tracking_uri(Path({str(tmp_path)!r}))
print(log_evaluation(result, tracking_uri=uri, experiment_name="x", parameters={{}}, tags={{}}).run_id)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * number, ended
    assert len({output for output, _ in ended}) == 1
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert metric_rows(tmp_path) == 4


def test_log_evaluation_takes_filters_of_columns_of_any_name(tmp_path: Path, store: Path) -> None:
    columns = ["lang", "meta lang", "score (%)", "score [%]", "a&b", "a//b", "../a", "x" * 300, "x" * 301, "naïve-ß"]
    filters = {name: {"min": number} for number, name in enumerate(columns)}
    assert log(make_result(tmp_path), store, parameters={"data": {"filter": filters}}).new
    assert not log(make_result(tmp_path), store, parameters={"data": {"filter": filters}}).new
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert sorted(map(int, run.data.params.values())) == [*range(len(columns))]
    for name in ("lang", "meta lang", "naïve-ß"):
        assert run.data.params[f"data.filter.{name}.min"] == str(columns.index(name))


@given(name=st.text(max_size=6) | st.text(alphabet="ab./:% ", max_size=300))
def test_flatten_gives_keys_that_mlflow_takes(name: str) -> None:
    (key,) = flatten({"data": {"filter": {name: "x"}}})
    _validate_param_name(key)
    assert len(key) <= MAX_ENTITY_KEY_LENGTH


def test_flatten_names_nested_settings_by_their_path() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": None, "e": [1, 2]}) == {"a.b.c": "1", "d": "null", "e": "[1, 2]"}

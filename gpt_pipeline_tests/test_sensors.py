"""The sensor and the schedule, asked as the daemon asks them, on a finished project."""

import dataclasses
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
)
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._daemon.sensor import get_elapsed

from gpt_pipeline.checkpoints.manifest import (
    best_checkpoint,
    checkpoint_path,
    manifest_path,
    read_info,
    write_manifest,
)
from gpt_pipeline.checkpoints.save import link_best
from gpt_pipeline.evaluation.result import alias_of, evaluation_path, read_evaluations, write_evaluation
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.dagster_server import forget_ticks_to_come
from gpt_pipeline.orchestration.dead_runs import requester_tag
from gpt_pipeline.orchestration.evaluation_step import log_result
from gpt_pipeline.orchestration.history import open_instance
from gpt_pipeline.orchestration.keys import EVALUATION_TAG
from gpt_pipeline.progress.evaluations import mark_logged, prune_at_rest, wanted_evaluations
from gpt_pipeline.progress.removal import plan_removal
from gpt_pipeline.project import Project
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline_tests.projects import TinyProject, default_tracking_uri


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as temporary:
        yield temporary


def _definitions(project: TinyProject) -> dg.Definitions:
    return build_definitions(Project(root=project.root, experiments=project.root / "experiments"))


def _ask_sensor(project: TinyProject, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    answer = _definitions(project).resolve_sensor_def("new_checkpoints_tiny")(dg.build_sensor_context(instance))
    return list(answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []


def _ask_schedule(project: TinyProject, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    schedule = _definitions(project).resolve_schedule_def("reevaluate_tiny")
    context = dg.build_schedule_context(instance, scheduled_execution_time=datetime(2026, 1, 1, 3, tzinfo=UTC))
    answer = schedule(context)
    return answer if isinstance(answer, list) else []


def _forget_evaluation(project: TinyProject, step: int) -> None:
    for result in read_evaluations(project.experiment("tiny").folder.evaluations):
        if result.step == step:
            result.path.unlink()


@contextmanager
def _run(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> Iterator[None]:
    """A run for `request` in Dagster's history, in the given state."""
    run = dg.DagsterRun(job_name=request.job_name or "", status=status, tags=dict(request.tags))
    instance.add_run(run)
    yield
    instance.delete_run(run.run_id)


def test_sensor_nothing_new_asks_for_nothing(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    assert _ask_sensor(copy, instance) == []


def test_sensor_that_finds_nothing_to_evaluate_keeps_nobody_from_removing_the_experiment(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    _ask_sensor(copy, instance)
    experiment = copy.experiment("tiny")
    assert experiment.folder.root in [item.path for item in plan_removal(experiment, file=False).items]


def test_sensor_before_any_training_asks_for_nothing(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    shutil.rmtree(copy.root / "storage")
    assert _ask_sensor(copy, instance) == []


def test_sensor_takes_the_settings_that_the_file_has_now_and_says_what_is_wrong_with_it(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    sensor, file = _definitions(copy).resolve_sensor_def("new_checkpoints_tiny"), copy.experiment("tiny").file
    _forget_evaluation(copy, 8)
    file.write_text(file.read_text().replace("num_questions: 2", "num_questions: 3"))
    answer = sensor(dg.build_sensor_context(instance))
    assert isinstance(answer, dg.SensorResult)
    (request,) = answer.run_requests or []
    wanted = {each.partition: each.fingerprint for each in wanted_evaluations(copy.experiment("tiny"))}
    assert request.tags[EVALUATION_TAG] == wanted["step_00000008"]
    file.write_text("training: [")
    answer = sensor(dg.build_sensor_context(instance))
    assert isinstance(answer, dg.SkipReason)
    assert file.name in (answer.skip_message or "")


def test_sensor_asks_for_no_report_of_a_file_that_was_changed_to_data_that_is_not_made_yet(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    copy.write_experiment("tiny", num_samples=200)
    assert _ask_sensor(copy, instance) == []
    copy.write_experiment("tiny", learning_rate=0.002)
    assert [request.job_name for request in _ask_sensor(copy, instance)] == ["report_tiny"]


def test_sensor_hands_a_free_place_to_a_step_that_waits_for_it(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    for pool in ("training", "evaluation"):
        storage.set_concurrency_slots(pool, 1)
        storage.add_pending_step(pool, "run", pool, should_assign=False)
        assert not storage.claim_concurrency_slot(pool, "run", pool).is_claimed
    _ask_sensor(copy, instance)
    assert all(storage.claim_concurrency_slot(pool, "run", pool).is_claimed for pool in ("training", "evaluation"))


def test_sensor_new_checkpoint_is_requested_once_while_its_run_lives(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    _forget_evaluation(copy, 8)
    (request,) = _ask_sensor(copy, instance)
    assert request.job_name == "evaluate_tiny"
    assert request.partition_key == "step_00000008"
    for status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED):
        with _run(instance, request, status):
            assert _ask_sensor(copy, instance) == []
    assert len(_ask_sensor(copy, instance)) == 1


def test_sensor_failed_evaluation_is_tried_three_times_and_does_not_block_the_others(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    for step in (4, 8):
        _forget_evaluation(copy, step)
    first, second = _ask_sensor(copy, instance)
    for _ in range(3):
        assert first.partition_key in [request.partition_key for request in _ask_sensor(copy, instance)]
        instance.add_run(
            dg.DagsterRun(
                job_name="evaluate_tiny",
                status=dg.DagsterRunStatus.FAILURE,
                tags={EVALUATION_TAG: first.tags[EVALUATION_TAG]},
            )
        )
    assert [request.partition_key for request in _ask_sensor(copy, instance)] == [second.partition_key]


def test_sensor_failed_evaluation_of_another_experiment_with_the_same_weights_does_not_count(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    _forget_evaluation(copy, 8)
    (request,) = _ask_sensor(copy, instance)
    tags = {EVALUATION_TAG: request.tags[EVALUATION_TAG]}
    for status in (*[dg.DagsterRunStatus.FAILURE] * 3, dg.DagsterRunStatus.STARTED):
        instance.add_run(dg.DagsterRun(job_name="evaluate_other", status=status, tags=tags))
    assert [each.partition_key for each in _ask_sensor(copy, instance)] == [request.partition_key]


def test_sensor_report_waits_for_evaluations_but_not_for_one_that_was_given_up(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    _forget_evaluation(copy, 8)
    (request,) = _ask_sensor(copy, instance)
    with _run(instance, request, dg.DagsterRunStatus.STARTED):
        assert _ask_sensor(copy, instance) == []
    for _ in range(3):
        run = dg.DagsterRun(job_name="evaluate_tiny", status=dg.DagsterRunStatus.FAILURE, tags=dict(request.tags))
        instance.add_run(run)
    assert [request.job_name for request in _ask_sensor(copy, instance)] == ["report_tiny"]


def test_sensor_checkpoint_copied_into_the_folder_by_hand_is_found(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    folder = copy.experiment("tiny").folder
    away = copy.root / "away"
    away.mkdir()
    names = ("checkpoint_step_8.pt", "checkpoint_step_8.json")
    _forget_evaluation(copy, 8)
    for name in names:
        shutil.move(folder.checkpoints / name, away / name)
    assert [request.job_name for request in _ask_sensor(copy, instance)] == ["report_tiny"]
    for name in names:
        shutil.copy(away / name, folder.checkpoints / name)
    assert [request.partition_key for request in _ask_sensor(copy, instance)] == ["step_00000008"]


def test_sensor_checkpoint_copied_under_the_name_of_another_step_is_not_requested_without_end(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    folder = copy.experiment("tiny").folder.checkpoints
    _forget_evaluation(copy, 8)
    for suffix in (".pt", ".json"):
        (folder / f"checkpoint_step_8{suffix}").rename(folder / f"checkpoint_step_100{suffix}")
    assert [request.job_name for request in _ask_sensor(copy, instance)] == ["report_tiny"]


def test_sensor_damaged_manifest_does_not_block_the_others(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    folder = copy.experiment("tiny").folder
    for step in (4, 8):
        _forget_evaluation(copy, step)
    (folder.checkpoints / "checkpoint_step_4.json").write_text("{")
    assert [request.partition_key for request in _ask_sensor(copy, instance)] == ["step_00000008"]


def test_sensor_outdated_report_is_requested_when_all_is_evaluated(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    copy.experiment("tiny").folder.report.unlink()
    (request,) = _ask_sensor(copy, instance)
    assert request.job_name == "report_tiny"
    with _run(instance, request, dg.DagsterRunStatus.STARTED):
        assert _ask_sensor(copy, instance) == []


def test_sensor_report_that_cannot_be_written_is_tried_three_times_until_there_is_more_to_show(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    folder = copy.experiment("tiny").folder
    folder.report.unlink()
    for _ in range(3):
        (request,) = _ask_sensor(copy, instance)
        run = dg.DagsterRun(job_name="report_tiny", status=dg.DagsterRunStatus.FAILURE, tags=dict(request.tags))
        instance.add_run(run)
    assert _ask_sensor(copy, instance) == []
    for name in ("checkpoint_step_8.pt", "checkpoint_step_8.json"):
        (folder.checkpoints / name).unlink()
    _forget_evaluation(copy, 8)
    assert [request.job_name for request in _ask_sensor(copy, instance)] == ["report_tiny"]


def test_schedule_acts_only_when_the_questions_changed(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    assert _ask_schedule(copy, instance) == []
    path = copy.root / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("num_questions: 2", "num_questions: 3"))
    requested = {request.partition_key for request in _ask_schedule(copy, instance)}
    assert requested == {"step_00000004", "step_00000008", "step_00000012"}
    assert _ask_sensor(copy, instance) == []  # they were evaluated, only by other questions


def test_sensor_has_no_cursor_to_lose_and_no_clock_to_trust(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    _forget_evaluation(copy, 8)
    (lost,) = _ask_sensor(copy, instance)
    with _run(instance, lost, dg.DagsterRunStatus.STARTED):  # the history survives a daemon; nothing else is needed
        for seconds in (0, 4_000_000_000):  # the files of a machine whose clock was wrong
            for path in copy.experiment("tiny").folder.checkpoints.iterdir():
                os.utime(path, (seconds, seconds))
            assert _ask_sensor(copy, instance) == []
    assert [request.tags for request in _ask_sensor(copy, instance)] == [lost.tags]


def test_sensor_is_asked_again_after_the_clock_was_set_back(instance: dg.DagsterInstance) -> None:
    location = RegisteredCodeLocationOrigin("gpt_pipeline.definitions")
    repository = RemoteRepositoryOrigin(location, "__repository__")
    for name, ago in (("set_back", -7200.0), ("just_asked", 5.0)):
        data = SensorInstigatorData(last_tick_start_timestamp=time.time() - ago, cursor="kept")
        origin = repository.get_instigator_origin(name)
        instance.add_instigator_state(InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data))
    forget_ticks_to_come(instance)
    elapsed = {state.instigator_name: get_elapsed(state) for state in instance.all_instigator_state()}
    assert elapsed["set_back"] is None  # Dagster asks it at once
    assert elapsed["just_asked"] is not None
    assert 5 <= elapsed["just_asked"] < 60
    assert all(state.instigator_data.cursor == "kept" for state in instance.all_instigator_state())


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_sensor_many_checkpoints_at_once_are_requested_once_each(
    copy: TinyProject, instance: dg.DagsterInstance, count: int
) -> None:
    steps = range(101, 101 + count)
    folder = copy.experiment("tiny").folder.checkpoints
    template = read_info(folder / "checkpoint_step_8.pt")
    assert template is not None
    for step in steps:
        path = checkpoint_path(folder, step)
        os.link(template.path, path)
        write_manifest(dataclasses.replace(template, path=path, step=step, weights_sha256=f"{step:064d}"))
    began = time.process_time()
    requests = _ask_sensor(copy, instance)
    assert time.process_time() - began < 20  # of the 60 seconds that the daemon gives a sensor
    assert [request.partition_key for request in requests] == [f"step_{step:08d}" for step in steps]
    for request in requests:
        instance.add_run(
            dg.DagsterRun(job_name=request.job_name or "", status=dg.DagsterRunStatus.STARTING, tags=dict(request.tags))
        )
    assert _ask_sensor(copy, instance) == []


def test_sensor_of_each_of_two_experiments_asks_for_its_own(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    path = copy.write_experiment("other")
    shutil.copytree(copy.experiment("tiny").folder.root, copy.experiment("other").folder.root)
    assert path.is_file()
    for stem, step in (("tiny", 4), ("other", 12)):
        for result in read_evaluations(copy.experiment(stem).folder.evaluations):
            if result.step == step:
                result.path.unlink()
    answers = {}
    for name in ("tiny", "other"):
        answer = _definitions(copy).resolve_sensor_def(f"new_checkpoints_{name}")(dg.build_sensor_context(instance))
        assert isinstance(answer, dg.SensorResult)
        answers[name] = [(request.job_name, request.partition_key) for request in answer.run_requests or []]
    # The same weights, each in an experiment of its own: both are evaluated, each once.
    assert answers == {
        "tiny": [("evaluate_tiny", "step_00000004")],
        "other": [("evaluate_other", "step_00000012")],
    }


def test_sensor_asks_again_for_what_a_wiped_mlflow_has_lost(copy: TinyProject, instance: dg.DagsterInstance) -> None:
    assert _ask_sensor(copy, instance) == []
    (copy.root / "mlflow.db").unlink()
    asked = {request.partition_key for request in _ask_sensor(copy, instance)}
    assert asked == {"step_00000004", "step_00000008", "step_00000012"}


def test_evaluation_logged_into_a_wiped_mlflow_makes_the_others_pending(copy: TinyProject, empty_store: bytes) -> None:
    experiment = copy.experiment("tiny")
    (copy.root / "mlflow.db").write_bytes(empty_store)
    logged, *_ = read_evaluations(experiment.folder.evaluations)

    @dg.asset
    def evaluation(context: dg.AssetExecutionContext) -> None:
        log_result(context, experiment, default_tracking_uri(copy.root), logged)

    assert dg.materialize([evaluation]).success
    states = {wanted.checkpoint.step: wanted.state for wanted in wanted_evaluations(experiment)}
    assert states == {4: "done", 8: "missing", 12: "missing"}


def test_checkpoint_that_becomes_the_best_later_is_only_logged_again(
    copy: TinyProject, instance: dg.DagsterInstance
) -> None:
    folder = copy.experiment("tiny").folder
    before = {result.path: result.path.stat().st_mtime_ns for result in read_evaluations(folder.evaluations)}
    best = best_checkpoint(folder.checkpoints)
    assert best is not None
    other = next(info for info in copy.checkpoints("tiny") if info.step != best.step)
    (result,) = (each for each in read_evaluations(folder.evaluations) if each.step == other.step)
    assert alias_of(result, best_checkpoint(folder.checkpoints)) is None
    link_best(folder.checkpoints, other)
    assert alias_of(result, best_checkpoint(folder.checkpoints)) == "best_model"
    (request,) = _ask_sensor(copy, instance)
    assert request.partition_key == result.key
    copy.call("evaluate", "experiments/tiny.yaml")
    assert _aliases(copy) == {f"step_{other.step}"}
    assert before == {each.path: each.path.stat().st_mtime_ns for each in read_evaluations(folder.evaluations)}
    assert [request.job_name for request in _ask_sensor(copy, instance)] in ([], ["report_tiny"])


def _aliases(project: TinyProject) -> set[str]:
    """The names of the MLflow runs that bear an alias."""
    with sqlite3.connect(project.root / "mlflow.db") as connection:
        rows = connection.execute("select name from runs join tags using (run_uuid) where key = 'alias'").fetchall()
    return {name for (name,) in rows}


def test_best_model_that_equals_a_checkpoint_is_one_run_with_an_alias(finished: TinyProject) -> None:
    folder = finished.experiment("tiny").folder
    best = best_checkpoint(folder.checkpoints)
    assert best is not None
    assert _aliases(finished) == {f"step_{best.step}"}
    assert len(read_evaluations(folder.evaluations)) == 3


def test_wanted_evaluation_not_yet_in_mlflow_is_missing_not_outdated(copy: TinyProject) -> None:
    shutil.rmtree(copy.experiment("tiny").folder.evaluations / "logged")
    assert {wanted.state for wanted in wanted_evaluations(copy.experiment("tiny"))} == {"missing"}


@contextmanager
def _evaluated(
    project: TinyProject, *, tags: Mapping[str, str] = MappingProxyType({}), beside: dg.DagsterRun | None = None
) -> Iterator[tuple[dg.ExecuteInProcessResult, list[str]]]:
    """The result of evaluating step 8 of the project, while another run is there, and what was logged."""
    with chdir(project.root), open_instance(Project.here()) as instance:
        job = _definitions(project).resolve_job_def("evaluate_tiny")
        if beside is not None:
            instance.add_run(beside)
        result = job.execute_in_process(partition_key="step_00000008", instance=instance, tags={**tags})
        yield result, [record.user_message for record in instance.all_logs(result.run_id)]


def test_evaluation_of_a_checkpoint_that_is_gone_is_skipped_with_the_reason(copy: TinyProject) -> None:
    folder = copy.experiment("tiny").folder
    _forget_evaluation(copy, 8)
    for suffix in ("pt", "json"):
        (folder.checkpoints / f"checkpoint_step_8.{suffix}").unlink()
    with _evaluated(copy) as (result, said):
        assert result.success
        assert any("Skipped: there is no checkpoint of step_00000008" in text for text in said)
        assert result.get_asset_materialization_events() == []
        skipped = [event.step_key for event in result.all_events if event.event_type_value == "STEP_SKIPPED"]
        assert skipped == ["tiny_evaluation_checks"]
    assert not [each for each in read_evaluations(folder.evaluations) if each.step == 8]


def test_evaluation_of_a_checkpoint_is_judged_by_its_checks_in_the_same_run(copy: TinyProject) -> None:
    with _evaluated(copy) as (result, _):
        assert result.success
        found = {each.check_name: each for each in result.get_asset_check_evaluations()}
        for check in ("val_loss_near_best", "output_not_degenerate", "questions_unseen"):
            assert found[check].passed
            assert found[check].description


@pytest.fixture
def superseded(copy: TinyProject) -> TinyProject:
    """A project with checkpoints of the steps 1 and 2, which are evaluated, before the three to keep."""
    experiment = copy.experiment("tiny")
    folder = experiment.folder
    template = read_info(checkpoint_path(folder.checkpoints, 8))
    (result,) = (each for each in read_evaluations(folder.evaluations) if each.step == 8)
    assert template is not None
    for step in (1, 2):
        path = checkpoint_path(folder.checkpoints, step)
        shutil.copyfile(template.path, path)
        write_manifest(dataclasses.replace(template, path=path, step=step, weights_sha256=f"{step:064d}"))
    for wanted in wanted_evaluations(experiment)[:2]:
        info = wanted.checkpoint
        record = {**result.checkpoint, "step": info.step, "weights_sha256": info.weights_sha256}
        path = evaluation_path(folder.evaluations, wanted.partition, wanted.fingerprint)
        made = dataclasses.replace(
            result, key=wanted.partition, fingerprint=wanted.fingerprint, checkpoint=record, path=path
        )
        write_evaluation(made)
        mark_logged(folder, made, run_id="a run", alias=None)
    folder.training.touch()  # written after them
    return copy


def _steps(project: TinyProject) -> list[int]:
    return [info.step for info in project.checkpoints("tiny")]


def test_evaluation_by_the_daemon_removes_checkpoints_that_stayed_only_to_be_evaluated(superseded: TinyProject) -> None:
    _forget_evaluation(superseded, 8)
    folder = superseded.experiment("tiny").folder
    left = [each / ".a.json.1.2.tmp" for each in (folder.evaluations, folder.logged_evaluations)]  # of killed processes
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    with _evaluated(superseded, tags=requester_tag()) as (result, said):
        assert result.success
        assert not any(path.exists() for path in left)
        assert _steps(superseded) == [4, 8, 12]
        assert any("checkpoint_step_1.pt, checkpoint_step_2.pt" in text for text in said)


@pytest.mark.parametrize("by_the_daemon", [False, True])
def test_evaluation_removes_nothing_while_a_person_has_checkpoints_evaluated(
    superseded: TinyProject, by_the_daemon: bool
) -> None:
    theirs = dg.DagsterRun("theirs", status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": "step_00000001"})
    tags, beside = (requester_tag(), theirs) if by_the_daemon else ({}, None)
    with _evaluated(superseded, tags=tags, beside=beside) as (result, _):
        assert result.success
    assert _steps(superseded) == [1, 2, 4, 8, 12]


def test_pruning_beside_a_trainer_at_work_is_left_to_it(superseded: TinyProject) -> None:
    experiment = superseded.experiment("tiny")
    with folder_lock(experiment.folder.root, purpose="training tiny"):
        prune_at_rest(experiment, say=pytest.fail)
        assert _steps(superseded) == [1, 2, 4, 8, 12]
    said: list[str] = []
    prune_at_rest(experiment, say=said.append)
    assert _steps(superseded) == [4, 8, 12]
    assert "checkpoint_step_1.pt, checkpoint_step_2.pt" in "".join(said)


def test_pruning_keeps_what_mlflow_still_lacks(superseded: TinyProject) -> None:
    experiment = superseded.experiment("tiny")
    shutil.rmtree(experiment.folder.logged_evaluations)
    prune_at_rest(experiment, say=pytest.fail)
    assert _steps(superseded) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("keep_last: 3", "keep_last: 1", [4, 8, 12]),  # the training was told 3
        ("keep_last: 3", "keep_last: 4", [2, 4, 8, 12]),
        ("../storage", "../storage, checkpoint_to_resume: checkpoint_step_1.pt", [1, 4, 8, 12]),
    ],
)
def test_pruning_after_the_file_was_edited_keeps_what_either_needs(
    superseded: TinyProject, before: str, after: str, kept: list[int]
) -> None:
    file = superseded.experiment("tiny").file
    file.write_text(file.read_text().replace(before, after))
    prune_at_rest(superseded.experiment("tiny"), say=print)
    assert _steps(superseded) == kept


def _write_later(project: TinyProject, start: str) -> None:
    """Write an experiment beside the first that starts from what `start` says."""
    later = project.write_experiment("later")
    kept = [line for line in later.read_text().splitlines() if not line.startswith("model:")]
    later.write_text("\n".join([*kept, f"start_from: {start}"]))
    project.experiment("later")  # which can be read


_STARTS = ("{experiment: tiny.yaml, checkpoint: step_1}", "{file: ../storage/tiny/checkpoints/checkpoint_step_1.pt}")


@pytest.mark.parametrize("start", _STARTS)
def test_pruning_keeps_a_step_that_another_experiment_starts_from(superseded: TinyProject, start: str) -> None:
    _write_later(superseded, start)
    prune_at_rest(superseded.experiment("tiny"), say=print)
    assert _steps(superseded) == [1, 4, 8, 12]


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
@pytest.mark.parametrize("start", _STARTS)
def test_pruning_of_an_experiment_whose_file_is_a_link_keeps_what_its_neighbours_start_from(
    superseded: TinyProject, start: str
) -> None:
    file = superseded.experiment("tiny").file
    elsewhere = superseded.root / "elsewhere"
    elsewhere.mkdir()
    file.symlink_to(file.replace(elsewhere / "first.yaml"))
    _write_later(superseded, start)
    prune_at_rest(superseded.experiment("tiny"), say=print)
    assert _steps(superseded) == [1, 4, 8, 12]


def test_pruning_beside_a_file_that_cannot_be_read_removes_nothing_and_says_why(superseded: TinyProject) -> None:
    superseded.write_experiment("later").write_text("start_from: {experiment: tiny.yaml, checkpoint: [")
    said: list[str] = []
    prune_at_rest(superseded.experiment("tiny"), say=said.append)
    assert _steps(superseded) == [1, 2, 4, 8, 12]
    assert "later.yaml" in "".join(said)


@pytest.mark.parametrize("copied", [shutil.copyfile, shutil.copy2])
def test_pruning_keeps_what_was_put_there_after_the_training(
    superseded: TinyProject, tmp_path: Path, copied: Callable[[Path, Path], object]
) -> None:
    if os.name == "nt" and copied is shutil.copy2:
        pytest.skip("a file system there gives a new file the times of one that was removed")
    experiment = superseded.experiment("tiny")
    path = checkpoint_path(experiment.folder.checkpoints, 1)
    aside = tmp_path / path.name
    shutil.copy2(path, aside)
    path.unlink()
    time.sleep(0.05)  # the file system's clock ticks
    copied(aside, path)
    prune_at_rest(experiment, say=print)
    assert _steps(superseded) == [1, 4, 8, 12]


@pytest.mark.parametrize("fingerprint", ["", "f" * 64])  # as import writes, and of another training
def test_pruning_keeps_a_checkpoint_that_the_training_did_not_write(superseded: TinyProject, fingerprint: str) -> None:
    folder = superseded.experiment("tiny").folder
    manifest = folder.checkpoints / "checkpoint_step_1.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": fingerprint}))
    folder.training.touch()
    prune_at_rest(superseded.experiment("tiny"), say=print)
    assert _steps(superseded) == [1, 4, 8, 12]


def test_pruning_of_a_training_that_is_not_finished_removes_nothing(superseded: TinyProject) -> None:
    experiment = superseded.experiment("tiny")
    experiment.folder.training.unlink()
    prune_at_rest(experiment, say=pytest.fail)
    assert _steps(superseded) == [1, 2, 4, 8, 12]


def test_pruning_where_a_newer_version_wrote_removes_nothing(superseded: TinyProject) -> None:
    experiment = superseded.experiment("tiny")
    manifest = manifest_path(checkpoint_path(experiment.folder.checkpoints, 12))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 2}))
    prune_at_rest(experiment, say=pytest.fail)
    assert _steps(superseded) == [1, 2, 4, 8]


def test_results_on_disk_hold_no_path_of_this_machine(finished: TinyProject) -> None:
    for path in (finished.root / "storage").rglob("*.json"):
        if path.name not in ("job.json",):
            assert str(finished.root) not in json.dumps(json.loads(path.read_text())), path

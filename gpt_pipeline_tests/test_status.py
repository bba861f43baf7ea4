"""What `gpt-pipeline status` tells, against experiments in all their states."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from gpt_pipeline.checkpoints.manifest import write_manifest
from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.cli import main
from gpt_pipeline.cli.main import command as gpt_pipeline
from gpt_pipeline.comparison.compare import compare_experiments
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.evaluate import _one_at_a_time
from gpt_pipeline.evaluation.result import read_evaluations, write_evaluation
from gpt_pipeline.experiment import sizes
from gpt_pipeline.experiment.training import training_job, wanted_fingerprint
from gpt_pipeline.launchers import protocol
from gpt_pipeline.launchers.protocol import JobState
from gpt_pipeline.launchers.submission import Submission
from gpt_pipeline.orchestration.report_step import write_report
from gpt_pipeline.progress.at_work import show_run
from gpt_pipeline.progress.evaluations import pending_evaluations
from gpt_pipeline.progress.failures import note_failure
from gpt_pipeline.progress.show import sheets, training_text
from gpt_pipeline.progress.status import CheckpointStatus, NextStep, Status, experiment_status, statuses
from gpt_pipeline.progress.training import newest_records, training_progress
from gpt_pipeline.project import Project
from gpt_pipeline.sheet import plain_text
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.decision import decide_start
from gpt_pipeline.training.heartbeat import heartbeat
from gpt_pipeline.training.metrics import SENT_NAME
from gpt_pipeline_tests.projects import TinyProject, train
from gpt_pipeline_tests.test_comparison import evaluate
from gpt_pipeline_tests.test_ray_jobs import Dashboard
from gpt_pipeline_tests.test_submission import note_of_job

TrainTo = Callable[[int], None]


@pytest.fixture
def project(tmp_path: Path) -> TinyProject:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    return project


def _status(project: TinyProject, stem: str = "tiny") -> Status:
    return experiment_status(project.experiment(stem))


@pytest.fixture
def train_to(project: TinyProject, tiny_at: Callable[[int], Path]) -> TrainTo:
    """Bring the project to where its training has made so many of its twelve steps."""
    return lambda step: shutil.copytree(tiny_at(step), project.root / "storage")


def test_status_of_a_new_experiment_leads_to_its_plan(project: TinyProject) -> None:
    status = _status(project)
    assert {stage.state for stage in status.stages} == {"absent"}
    assert (status.training.state, status.checkpoints, status.best) == ("absent", (), None)
    assert status.next.command.startswith("gpt-pipeline plan ")


def test_status_of_a_stopped_training_has_its_step_and_leads_on(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    status = _status(project)
    assert {stage.state for stage in status.stages} == {"finished"}
    assert (status.training.state, status.training.step, status.training.max_steps) == ("stopped", 6, 12)
    assert [each.step for each in status.checkpoints] == [4, 6]
    assert [each.evaluation for each in status.checkpoints] == ["missing", "missing"]
    assert status.best.step == 4
    assert not status.best.evaluated
    assert status.next.command.startswith("gpt-pipeline run ")


def test_status_counts_the_best_model_which_a_training_goes_on_from_where_it_is_the_newest(
    project: TinyProject,
    train_to: TrainTo,
) -> None:
    train_to(6)
    experiment = project.experiment("tiny")
    for path in experiment.folder.checkpoints.glob("checkpoint_step_*"):
        path.unlink()
    status = _status(project)
    assert (status.training.state, status.training.step) == ("stopped", 4)
    assert "after step 4" in status.next.why
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    assert decide_start(training_job(experiment, shards)).step == 4


def test_status_says_why_checkpoints_that_somebody_copied_do_not_count(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    folder = project.experiment("tiny").folder.checkpoints
    for suffix in (".pt", ".json"):
        shutil.copy(folder / f"checkpoint_step_4{suffix}", folder / f"checkpoint_step_100{suffix}")
    for name in ("checkpoint_step_50.pt", "checkpoint_step_60.pt"):
        shutil.copy(folder / "checkpoint_step_4.pt", folder / name)
    file = project.root / "experiments" / "tiny.yaml"
    resumed = "base_folder: ../storage, checkpoint_to_resume: checkpoint_step_50.pt"
    file.write_text(file.read_text().replace("base_folder: ../storage", resumed))
    status = _status(project)
    assert [each.step for each in status.checkpoints] == [4, 6]
    assert sorted(status.uncounted) == ["checkpoint_step_100.pt", "checkpoint_step_60.pt"]
    assert "checkpoint_step_100.pt does not count: it is of step 4" in project.call("status", "experiments/tiny.yaml")


def test_status_of_a_finished_training_leads_to_the_evaluations(project: TinyProject, train_to: TrainTo) -> None:
    train_to(12)
    status = _status(project)
    assert (status.training.state, status.training.step) == ("finished", 12)
    assert (status.evaluations_done, status.evaluations_pending) == (0, 3)
    files = {path.stat().st_ino: path.stat().st_size for path in status.folder.glob("checkpoints/*.pt")}
    assert status.checkpoint_bytes == sum(files.values())
    assert status.next.command.startswith("gpt-pipeline evaluate ")


def test_status_of_evaluations_that_mlflow_alone_lacks_says_so(project: TinyProject, train_to: TrainTo) -> None:
    train_to(12)
    experiment = project.experiment("tiny")
    for wanted in pending_evaluations(experiment):
        evaluate(experiment.folder, wanted.checkpoint.step, 2.5)
        (newest,) = [
            each for each in read_evaluations(experiment.folder.evaluations) if each.step == wanted.checkpoint.step
        ]
        checkpoint = {**newest.checkpoint, "weights_sha256": wanted.checkpoint.weights_sha256}
        write_evaluation(dataclasses.replace(newest, fingerprint=wanted.fingerprint, checkpoint=checkpoint))
    status = _status(project)
    assert status.evaluations_pending == 3
    assert status.next.why == "MLflow does not have all of 3 evaluations yet"
    assert plain_text(sheets([status])).count("val loss 2.500  evaluated, not all in MLflow yet") == 3


def test_status_names_the_best_among_the_evaluations_that_compare_with_the_newest(project: TinyProject) -> None:
    folder = project.experiment("tiny").folder
    evaluate(folder, 1000, 2.90, config={"max_validation_tokens": 20})  # by earlier settings, and its file is gone
    evaluate(folder, 2000, 3.05)
    evaluate(folder, 3000, 3.00)
    best = _status(project).best
    assert best is not None
    assert (best.step, best.val_loss) == (3000, 3.00)


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_files_of_the_data_that_may_be_deleted_are_not_needed_to_find_and_report_the_training(
    project: TinyProject, packing: str
) -> None:
    file = project.experiment("tiny").file
    file.write_text(file.read_text().replace("max_length: 32", f"max_length: 32, packing: {packing}"))
    train(project.experiment("tiny"))
    experiment = project.experiment("tiny")
    shutil.rmtree(experiment.data_folder / "parts")
    for pattern in ("english_parquet-*/*.parquet", "token_shards-*/*.bin", "token_shards-*/*.npy"):
        for path in experiment.data_folder.glob(pattern):
            path.unlink()
    sizes._packed_on.cache_clear()  # as a later process would
    status = _status(project)
    assert [stage.state for stage in status.stages] == ["finished", "absent", "absent"]
    assert status.training.state == "finished"
    write_report(dg.build_asset_context(), experiment, tracking_uri="sqlite:///none.db", force=False)
    assert not _status(project).report_is_outdated
    weights = [info.sha256 for info in project.checkpoints("tiny")]
    train(project.experiment("tiny"))
    status = _status(project)
    assert {stage.state for stage in status.stages} == {"finished"}
    assert status.training.state == "finished"
    assert [info.sha256 for info in project.checkpoints("tiny")] == weights


def test_report_that_a_kill_kept_from_mlflow_is_outdated(
    project: TinyProject, train_to: TrainTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_to(12)
    experiment = project.experiment("tiny")
    sent = {"store": "s", "run_id": "r", "fingerprint": wanted_fingerprint(experiment), "experiment_id": "1"}
    write_json(experiment.folder.root / SENT_NAME, sent)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.tracking.MlflowClient.__init__", killed)
    store = f"sqlite:///{(project.root / 'mlflow.db').as_posix()}"
    with pytest.raises(KeyboardInterrupt):
        write_report(dg.build_asset_context(), experiment, tracking_uri=store, force=False)
    assert experiment.folder.report.is_file()
    assert _status(project).report_is_outdated


def test_status_while_a_checkpoint_is_evaluated_does_not_ask_for_another(
    project: TinyProject, train_to: TrainTo
) -> None:
    train_to(12)
    experiment = project.experiment("tiny")
    here = Project.of_experiments(experiment.file.parent)
    for at_work in (
        _one_at_a_time(experiment.folder.evaluations, "0" * 64),
        show_run(here, run="1", job="evaluate_tiny", experiment="tiny"),
    ):
        with at_work:
            status = _status(project)
        assert status.is_evaluating
        assert not status.next.command.startswith("gpt-pipeline evaluate")
        assert "3 in progress" in plain_text(sheets([status]))
    announce_evaluator(experiment.folder.root)  # as the daemon does all day, also where it has given up
    assert _status(project).next.command.startswith("gpt-pipeline evaluate ")


def test_status_shows_no_failure_while_a_later_run_trains(project: TinyProject, train_to: TrainTo) -> None:
    train_to(4)
    here = Project.of_experiments(project.experiment("tiny").file.parent)
    here.history.mkdir(exist_ok=True)
    note_failure(here, "tiny", job="run_tiny", text="the disk is full")
    assert "the disk is full" in plain_text(sheets([_status(project)]))
    with show_run(here, run="1", job="run_tiny", experiment="tiny"):
        assert _status(project).failure is None
    with show_run(here, run="1", job="evaluate_tiny", experiment="tiny"):
        assert _status(project).failure is not None


def test_status_of_an_imported_checkpoint_says_how_to_start_from_it(project: TinyProject, train_to: TrainTo) -> None:
    train_to(4)
    folder = project.experiment("tiny").folder
    info = project.checkpoints("tiny")[-1]
    first = folder.checkpoints / "checkpoint_step_0.pt"
    for path in (info.path, *folder.checkpoints.glob("best_model.*")):
        path.rename(first) if path == info.path else path.unlink()
    info.path.with_suffix(".json").unlink()
    write_manifest(dataclasses.replace(info, path=first, step=0, fingerprint="", shards_fingerprint="", metrics={}))
    status = _status(project)
    assert "storage.checkpoint_to_resume: checkpoint_step_0.pt" in status.next.command
    assert not status.training.of_other_settings


def test_status_shows_an_evaluated_loss_and_marks_an_estimate() -> None:
    seen = CheckpointStatus(file="a.pt", step=4, size=1, val_loss=0.863, evaluated_loss=0.844, evaluation="done")
    status = Status(
        file=Path("x.yaml"),
        name="x",
        folder=None,
        problem=None,
        checkpoints=(seen, dataclasses.replace(seen, file="best_model.pt", step=1200, evaluated_loss=None)),
        next=NextStep(command="", why=""),
    )
    text = plain_text(sheets([status]))
    assert "val loss 0.844" in text
    assert "val loss about 0.863" in text
    assert "best_model.pt (step 1,200)" in text


def test_status_shows_the_metric_that_ranks_checkpoints() -> None:
    seen = CheckpointStatus(file="a.pt", step=4, size=1, val_loss=0.863, evaluated_loss=0.844, evaluation="done")
    seen = dataclasses.replace(seen, ranked_by="completion_loss", ranked_value=0.511)
    command = NextStep(command="", why="")
    status = Status(file=Path("x.yaml"), name="x", folder=None, problem=None, checkpoints=(seen,), next=command)
    assert "completion loss 0.511  evaluated" in plain_text(sheets([status]))


def test_status_of_a_training_on_rewards_shows_them_and_not_the_loss_that_moves_the_answers(
    project: TinyProject,
) -> None:
    folder = project.experiment("tiny").folder
    folder.root.mkdir(parents=True)
    records = (
        {"kind": "train", "step": 4, "train_loss": -7.0, "reward": 0.25},
        {"kind": "validation", "step": 4, "val_loss": 3.0, "pass_at_1": 0.375},
    )
    folder.metrics.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    found = training_progress(folder, fingerprint=None, max_steps=8)
    text = training_text(dataclasses.replace(found, state="stopped", step=6))
    assert text == "stopped at step 6 of 8, reward 0.250, pass@1 about 0.375, val loss about 3.000 at step 4"


def test_status_of_a_running_training_has_its_process_and_step(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    root = project.experiment("tiny").folder.root
    (root / "checkpoints" / "checkpoint_step_8.pt").touch()  # whose manifest is about to be written
    with folder_lock(root, purpose="training"), heartbeat(root, run="", step=lambda: 6):
        deadline = time.monotonic() + 60
        while not (root / "heartbeat.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        running = _status(project)
    training = running.training
    assert (training.state, training.step) == ("running", 6)
    assert (training.process, training.host) == (os.getpid(), socket.gethostname())
    assert training.tokens_per_second > 0
    assert running.next.command == "gpt-pipeline ui"
    assert not running.uncounted
    stopped = _status(project)
    assert stopped.training.state == "stopped"
    assert "checkpoint_step_8.json is missing" in stopped.uncounted["checkpoint_step_8.pt"]


@pytest.mark.parametrize(
    ("state", "reason", "training"),
    [
        ("waiting", "Resources", "to do; slurm job 17, waiting (Resources)"),
        ("running", "node1", "to do; slurm job 17, running on node1"),  # its trainer has not begun yet
        ("failed", "FAILED", "to do"),
    ],
)
def test_status_of_a_training_that_an_engine_has_says_which_job_and_how_it_is(
    tmp_path: Path, state: JobState, reason: str, training: str
) -> None:
    folder = ExperimentFolder(root=tmp_path)
    note = Submission(
        launcher="slurm",
        name="gpt-x-1",
        word="x",
        attempt=1,
        id="17",
        fingerprint="a" * 64,
        request="",
        submitted_at=utc_now(),
        log="x.log",
        state=state,
        reason=reason,
    )
    write_json(folder.launch, dataclasses.asdict(note))

    assert training_text(training_progress(folder, fingerprint=None, max_steps=None)) == training


def test_launch_stop_waits_for_the_jobs_end_and_status_no_longer_calls_it_running(
    project: TinyProject, train_to: TrainTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_to(6)
    file, folder = project.experiment("tiny").file, project.experiment("tiny").folder
    ray = Dashboard()
    note = dataclasses.replace(note_of_job(where=ray.address), state="running")
    ray.jobs[note.name] = {"status": "RUNNING"}
    write_json(folder.launch, dataclasses.asdict(note))
    monkeypatch.setattr(protocol, "END_SECONDS", 0.1)

    ray.answers[f"POST /api/jobs/{note.name}/stop"] = (200, "{}")  # heard, and nothing comes of it
    late = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--stop"])
    still = CliRunner().invoke(gpt_pipeline, ["status", str(file)])
    ray.answers.clear()
    stopped = CliRunner().invoke(gpt_pipeline, ["launch", str(file), "--stop"])
    over = CliRunner().invoke(gpt_pipeline, ["status", str(file)])
    ray.server.shutdown()

    assert isinstance(late.exception, UserError)
    assert f"ray job {note.name}, running" in still.stdout
    assert f"ray job {note.name} has ended: cancelled" in stopped.stderr
    assert over.exit_code == 0
    assert note.name not in over.stdout


def test_status_of_a_killed_training_says_that_it_died(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    root = project.experiment("tiny").folder.root
    _killed(root)
    assert _status(project).training.state == "died"


def _killed(root: Path) -> None:
    process = {"host": "elsewhere", "pid": 1, "boot": "", "started": ""}
    (root / "heartbeat.json").write_text(json.dumps({"process": process, "run": "", "step": 6}))
    old = time.time() - 3600
    os.utime(root / "heartbeat.json", (old, old))


@pytest.mark.parametrize("state", ["finished", "stopped", "died", "running", "finished with other settings"])
def test_report_and_comparison_of_a_training_in_any_state_say_what_status_says(
    project: TinyProject, train_to: TrainTo, state: str
) -> None:
    train_to(12 if state.startswith("finished") else 6)
    root = project.experiment("tiny").folder.root
    if state == "died":
        _killed(root)
    if state == "finished with other settings":
        project.write_experiment("tiny", learning_rate=0.005)
    experiment = project.experiment("tiny")
    with folder_lock(root, purpose="training") if state == "running" else nullcontext():
        write_report(dg.build_asset_context(), experiment, tracking_uri="sqlite:///none.db", force=True)
        training = experiment_status(experiment).training
        compared = compare_experiments([experiment]).standings[0].status
    page = experiment.folder.report.read_text(encoding="utf-8")
    assert training.state == ("stopped" if training.of_other_settings else state)
    assert training.of_other_settings == (state == "finished with other settings")
    assert f'<span class="pill {training.state}">{training.state}</span>' in page
    assert (f"step {training.step:,}" in page) or f"after {training.step:,} steps" in page
    assert ("other settings than the file has now" in page) == training.of_other_settings
    assert compared == training.state


def test_status_of_a_checkpoint_shows_no_estimate_of_an_earlier_step(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    assert project.checkpoints("tiny")[-1].metrics["val_loss"] is not None  # of step 4
    at_four, at_six = _status(project).checkpoints
    assert at_four.val_loss == pytest.approx(project.checkpoints("tiny")[0].metrics["val_loss"])
    assert at_six.val_loss is None
    assert training_text(_status(project).training).endswith(" at step 4")


def test_status_names_a_damaged_checkpoint(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    path = project.checkpoints("tiny")[-1].path
    path.write_bytes(path.read_bytes()[:-10])
    status = _status(project)
    assert status.training.damaged == (path.name,)
    assert status.training.step == 4
    assert f"damaged: {path.name}" in plain_text(sheets([status]))


def test_status_of_a_changed_file_says_that_the_training_is_another(project: TinyProject, train_to: TrainTo) -> None:
    train_to(6)
    project.write_experiment("tiny", learning_rate=0.005)
    status = _status(project)
    assert status.training.of_other_settings
    assert status.next.command.startswith("gpt-pipeline plan ")


def test_status_of_all_experiments_shows_a_broken_file_beside_the_others(project: TinyProject) -> None:
    (project.root / "experiments" / "broken.yaml").write_text("experiment_name: x\nnum_sample: 3\n")
    found = statuses([], experiments=project.root / "experiments")
    assert [status.problem is None for status in found] == [False, True]
    assert found[0].next.command.startswith("gpt-pipeline validate ")


def test_status_of_all_experiments_shows_one_whose_folders_cannot_be_read_beside_the_others(
    project: TinyProject,
) -> None:
    (project.root / "storage").mkdir()
    (project.root / "storage" / "odd").write_text("")  # where its folder should be
    (project.root / "taken").write_text("")
    project.write_experiment("odd")
    path = project.write_experiment("other")
    path.write_text(path.read_text().replace("../storage", "../taken"))
    odd, other, tiny = statuses([], experiments=project.root / "experiments")
    assert "found a name whose folder" in odd.problem or "is a file" in odd.problem
    assert "taken is a file" in other.problem
    assert tiny.problem is None


def test_status_command_exits_with_2_for_a_file_that_is_no_experiment(project: TinyProject, capsys) -> None:
    path = project.root / "experiments" / "broken.yaml"
    path.write_text("experiment_name: x\nnum_sample: 3\n")
    with pytest.raises(SystemExit) as ended:
        main(["status", str(path)])
    assert ended.value.code == 2


def test_status_is_quick_because_it_imports_nothing_heavy(project: TinyProject) -> None:
    code = (
        "import sys; from gpt_pipeline.cli import command\n"
        "command.main(args=['status'], standalone_mode=False)\n"
        "print(sorted({'torch', 'dagster', 'mlflow'} & sys.modules.keys()))"
    )
    printed = project.program(code)
    assert printed.splitlines()[-1] == "[]"
    assert "\x1b[" not in printed


def test_status_of_a_training_shows_an_estimate_however_long_ago_it_was_made(
    project: TinyProject, train_to: TrainTo
) -> None:
    train_to(6)
    line = {"kind": "train", "train_loss": 1.0, **{f"system/gpu_{n}_utilization_percentage": 99.0 for n in range(8)}}
    with project.experiment("tiny").folder.metrics.open("a") as file:
        file.writelines(json.dumps({**line, "step": step}) + "\n" for step in range(10, 10_000, 10))
    training = _status(project).training
    assert training.val_step == 4
    assert training.val_loss is not None


def test_newest_records_reads_the_end_of_a_long_file_and_skips_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": step, "train_loss": 1.0}) for step in range(5000)]
    path.write_text("\n".join([*lines, json.dumps({"kind": "validation", "step": 4999}), '{"kind": "train", "st']))
    found = newest_records(path)
    assert found["train"]["step"] == 4999
    assert found["validation"]["step"] == 4999
    assert newest_records(tmp_path / "absent.jsonl") == {}

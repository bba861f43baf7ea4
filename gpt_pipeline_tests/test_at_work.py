"""`status` sees the run that makes an experiment, wherever it was started, and where it can be watched."""

from pathlib import Path

import pytest

from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.progress.at_work import runs_at_work, show_run
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.project import Project
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture
def tiny(tmp_path: Path) -> TinyProject:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    return project


@pytest.fixture
def project(tiny: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("DAGSTER_HOME", "GPT_PIPELINE_MLFLOW_PAGE", "GPT_PIPELINE_EXPERIMENTS"):
        monkeypatch.delenv(name, raising=False)
    return Project(root=tiny.root, experiments=tiny.root / "experiments")


def test_status_says_which_run_makes_the_experiment_and_where_to_watch_it(
    tiny: TinyProject, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment_status(tiny.experiment("tiny")).next.command.startswith("gpt-pipeline plan")
    with show_run(project, run="0123456789", job="run_tiny", experiment="tiny"):
        watch = experiment_status(tiny.experiment("tiny")).next
        assert watch.command == "gpt-pipeline ui"
        assert "Dagster run 01234567 (run_tiny; process " in watch.why
        with folder_lock(project.pages, purpose="web pages at http://127.0.0.1:1/start and http://127.0.0.1:2"):
            assert experiment_status(tiny.experiment("tiny")).next.command == "http://127.0.0.1:1/start"
            monkeypatch.chdir(tiny.root)
            assert MlflowTracking(tracking_uri="sqlite:///mlflow.db").pages == "http://127.0.0.1:2"
    assert experiment_status(tiny.experiment("tiny")).next.command.startswith("gpt-pipeline plan")


def test_status_ignores_runs_of_others_evaluations_and_those_that_were_killed(
    tiny: TinyProject, project: Project
) -> None:
    with (
        show_run(project, run="1", job="run_other", experiment="other"),
        show_run(project, run="2", job="evaluate_tiny", experiment="tiny"),
        show_run(project, run="3", job="run_tiny", experiment="tiny"),
    ):
        (left,) = project.history.glob("at_work/3-*.json")
        text = left.read_text()
    left.write_text(text)  # as one that was killed leaves it: its lock is free
    with show_run(project, run="2", job="evaluate_tiny", experiment="tiny"):
        assert [run.run for run in runs_at_work(project, "tiny")] == ["2"]
        assert experiment_status(tiny.experiment("tiny")).at_work is None

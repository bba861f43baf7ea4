"""Several experiments at once: which files are meant, how each run ends, and what their status sums up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.discover import files_named
from gpt_pipeline.orchestration.driver import run_each
from gpt_pipeline.orchestration.keys import EXPERIMENT_TAG, ended_well, jobs_of
from gpt_pipeline.progress.failures import forget_failure, last_failure, note_failure
from gpt_pipeline.progress.show import sheets
from gpt_pipeline.progress.status import statuses
from gpt_pipeline.project import Project
from gpt_pipeline.sheet import plain_text
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_comparison import trained


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    for name in ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dagster").mkdir()
    return TinyProject(root=tmp_path)


def _with(file: Path, old: str, new: str) -> Path:
    file.write_text(file.read_text().replace(old, new))
    return file


def _of_family(project: TinyProject, stem: str, name: str = "lr") -> Path:
    return _with(project.write_experiment(stem), "data:", f"family: {name}\ndata:")


def test_files_named_by_a_folder_or_a_pattern_are_its_experiments_by_name(project: TinyProject) -> None:
    b, a = (project.write_experiment(stem) for stem in ("b", "a"))
    (a.parent / "notes.txt").write_text("")
    assert files_named(a.parent) == [a, b]
    assert files_named(a.parent / "[a]*") == [a]
    assert files_named(a) == [a]
    for nothing in (project.root, a.parent / "c*"):
        with pytest.raises(UserError, match="found no experiment file there"):
            files_named(nothing)


def test_run_of_several_goes_on_past_those_that_fail_and_tells_each(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    _with(project.write_experiment("a"), "max_steps", "max_stops")
    _with(project.write_experiment("b"), "../storage}", "../storage, checkpoint_to_resume: a.pt}")
    with pytest.raises(SystemExit) as end:
        main(["run", "experiments", "experiments/c.yaml"])
    printed = capsys.readouterr()
    assert end.value.code == 1
    lines = printed.out.splitlines()
    assert lines[0] == "3 experiments: 3 failed"
    assert [line.split()[:2] for line in lines[1:]] == [[f"{name}.yaml", "failed"] for name in "abc"]
    assert "max_stops: unknown key" in lines[1]
    assert "found 'a.pt'" in lines[2]
    assert "no such file" in lines[3]
    assert "[3/3] c.yaml" in printed.err
    noted = last_failure(Project.here(), "b")
    assert noted is not None
    assert "found 'a.pt'" in noted.text


@pytest.mark.slow
def test_run_of_several_trains_the_next_after_a_failure_on_the_same_data(project: TinyProject) -> None:
    project.write_experiment("b")
    project.write_experiment("c", learning_rate=0.01)
    _with(project.write_experiment("a"), "max_steps", "max_stops")
    printed = project.run("run", "experiments", expect=1)
    assert "3 experiments: 1 failed, 2 finished" in printed
    assert printed.count("english_parquet: synth_001.parquet") == 1
    assert "2 nothing to do" in project.run("run", "experiments/b.yaml", "experiments/c.yaml")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_run_of_several_that_is_stopped_starts_no_other(project: TinyProject) -> None:
    project.write_experiment("a", max_steps=100_000)
    project.write_experiment("b")
    process = project.start("run", "experiments", start_new_session=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "training: step 4/" in line:
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    printed = "".join(lines)
    assert "2 experiments: 1 stopped, 1 not started" in printed
    assert [info.step > 0 for info in project.checkpoints("a")][-1]
    assert not project.checkpoints("b")


def test_failure_is_forgotten_once_the_same_job_or_the_whole_run_ends_well(project: TinyProject) -> None:
    here = Project.of_experiments(project.root / "experiments")
    note_failure(here, "a", job="evaluate_a", text="mysql://me:secret@host is away\nmore")
    forget_failure(here, "a", jobs={"report_a", "run_a"})
    noted = last_failure(here, "a")
    assert noted is not None
    assert "secret" not in noted.text
    assert noted.in_words.endswith("mysql://host is away")
    forget_failure(here, "a")
    assert last_failure(here, "a") is None


def test_failure_in_a_history_that_projects_share_is_that_of_its_own_project(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "failures").mkdir(parents=True)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    one, other = (Project(root=tmp_path / name, experiments=tmp_path / name / "experiments") for name in "ab")
    note_failure(one, "a", job="run_a", text="out of memory")
    assert last_failure(one, "a") is not None
    assert last_failure(other, "a") is None
    forget_failure(other, "a")
    assert last_failure(one, "a") is not None
    earlier = home / "failures" / "b.json"  # of an earlier version
    earlier.write_text(json.dumps({"job": "run_b", "text": "the disk is full", "at": "2026-01-01T00:00:00Z"}))
    assert last_failure(one, "b") is not None
    forget_failure(one, "b")
    assert not earlier.exists()


def test_failure_of_a_run_that_came_by_a_link_is_known_under_the_projects_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / ".dagster").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "project")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "project" / ".dagster"))
    project, linked = (Project(root=tmp_path / name, experiments=tmp_path / name) for name in ("project", "link"))
    note_failure(linked, "a", job="run_a", text="out of memory")
    assert last_failure(project, "a") is not None


def test_failure_that_cannot_be_noted_is_only_mentioned(project: TinyProject, caplog: pytest.LogCaptureFixture) -> None:
    here = Project.of_experiments(project.root / "experiments")
    (here.history / "failures").write_text("in the way")
    note_failure(here, "a", job="run_a", text="the real reason")
    assert "not noted" in caplog.text


def test_run_of_assets_picked_by_hand_counts_as_the_jobs_of_their_experiments() -> None:
    picked = [["a", "report"], ["a", "training"], ["b", "evaluation"], ["data_1", "raw_synth"], ["comparison"]]
    run = dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=frozenset(map(dg.AssetKey, picked)))
    assert jobs_of(run) == {"a": "run_a", "b": "evaluate_b"}
    whole = dg.DagsterRun(job_name="data_a", tags={EXPERIMENT_TAG: "a"})
    assert jobs_of(whole) == {"a": "data_a"}


def test_run_that_ends_well_makes_up_for_its_own_jobs_and_for_all_only_if_it_makes_everything() -> None:
    def picked(*assets: str) -> dg.DagsterRun:
        selection = frozenset(dg.AssetKey(asset.split("/")) for asset in assets)
        return dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=selection)

    assert ended_well(picked("a/training", "b/evaluation", "b/report", "data_1/raw_synth")) == {
        "a": {"run_a", "data_a"},  # and so not for an evaluation that still fails
        "b": {"evaluate_b", "report_b"},
    }
    assert ended_well(picked("a/training", "a/evaluation", "a/report")) == {"a": None}
    for job, made in (("run_a", None), ("report_a", {"report_a"})):
        assert ended_well(dg.DagsterRun(job_name=job, tags={EXPERIMENT_TAG: "a"})) == {"a": made}


def test_status_of_a_family_counts_its_states_and_marks_the_best(project: TinyProject) -> None:
    for stem, loss in (("a", 2.5), ("b", 2.25)):
        trained(project, stem, {4: loss})
        _with(project.root / "experiments" / f"{stem}.yaml", "data:", "family: lr\ndata:")
    note_failure(Project.here(), "c", job="run_c", text="the disk is full\nmore")
    files = [project.root / "experiments" / f"{stem}.yaml" for stem in "ab"] + [_of_family(project, "c")]
    project.write_experiment("alone")
    text = plain_text(sheets(statuses([*files, project.root / "experiments/alone.yaml"], experiments=project.root)))
    lines = text.splitlines()
    assert lines[0] == "lr  family of 3: 2 not started, 1 failed"
    assert lines[1].split()[:2] == ["a.yaml", "not"]
    assert lines[2].startswith("  b.yaml *")
    assert "val loss 2.250 at step 4" in lines[2]
    assert "failed" in lines[3]
    assert lines[3].endswith("the disk is full")
    assert lines[4].startswith("  next  gpt-pipeline run experiments/a.yaml experiments/b.yaml experiments/c.yaml")
    assert lines[6].startswith("alone")


def test_status_of_a_family_on_other_held_out_tokens_marks_no_best(project: TinyProject) -> None:
    for stem, shards in (("a", "d" * 64), ("b", "e" * 64)):
        trained(project, stem, {4: 2.5}, shards=shards)
    files = [_with(project.root / "experiments" / f"{stem}.yaml", "data:", "family: lr\ndata:") for stem in "ab"]
    assert " *" not in plain_text(sheets(statuses(files, experiments=project.root)))


def test_run_of_several_goes_on_past_a_mistake_of_the_program(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [project.write_experiment("a"), project.write_experiment("b")]

    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("gpt_pipeline.orchestration.driver.run_alone", fail)
    found = run_each(files, force=False, say=lambda _: None)
    assert [(each.state, each.problem) for each in found] == [("failed", "RuntimeError: a mistake")] * 2

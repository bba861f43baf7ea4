"""An experiment that starts from one in another project's folder."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.errors import UserError
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.driver import run_alone
from gpt_pipeline.orchestration.history import open_instance
from gpt_pipeline.orchestration.rebuild import reconstructable_job
from gpt_pipeline.project import EXPERIMENTS_VARIABLE, Project
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture(autouse=True)
def of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory and the environment as a run begins, and as they are afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(EXPERIMENTS_VARIABLE, "")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def _project(folder: Path) -> TinyProject:
    folder.mkdir()
    return TinyProject(root=folder)


def _here(project: TinyProject) -> Project:
    return Project.of_experiments(project.root / "experiments")


def _runs(project: TinyProject, job: str) -> int:
    with chdir(project.root), open_instance(_here(project)) as instance:  # whose settings have paths relative to it
        return instance.get_runs_count(dg.RunsFilter(job_name=job))


def test_run_trains_the_base_of_another_folder_in_its_own_project(tmp_path: Path) -> None:
    theirs, ours = _project(tmp_path / "theirs"), _project(tmp_path / "ours")
    base = theirs.write_experiment("base")
    base.write_text(base.read_text().replace("source: sample", "source: ./no-such-folder, format: text"))
    later = ours.write_experiment("later")
    lines = later.read_text().replace("storage:", f"start_from: {{experiment: {base}}}\nstorage:").splitlines()
    later.write_text("\n".join(line for line in lines if not line.startswith("model:")) + "\n")
    ours.write_experiment("base")  # another one
    said: list[str] = []
    with pytest.raises(UserError, match="no-such-folder"):  # so it got as far as the data of the one that is named
        run_alone(ours.experiment("later"), force=False, say=said.append)
    job = keys.run_job(theirs.experiment("base"))
    assert (_runs(theirs, job), _runs(ours, job)) == (1, 0)
    assert Project.here() == _here(ours)
    assert any(str(theirs.root) in text for text in said)


def test_worker_finds_the_job_of_the_project_that_asked_where_another_has_one_of_that_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        project = _project(tmp_path / name)
        file = project.write_experiment("tiny")
        job = reconstructable_job("data_tiny", _here(project)).get_definition()
        assert job.metadata["experiment_file"].value == str(file)

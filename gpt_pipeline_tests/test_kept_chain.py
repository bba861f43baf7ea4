"""Nothing people have is lost by an update: what an earlier version trained on data of one's own, and further.

The copy lies at another path than the project was made at. `fixtures/README.md` says what is in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_trained
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.experiment.training import training_job
from gpt_pipeline.progress.status import Status, experiment_status
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.fixtures.keeping import unpack
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.training_jobs import Listener

_ARCHIVE = Path(__file__).parent / "fixtures" / "chain-4f48dc5.tar.xz"
_FINISHED = ("base", "mix", "tuned", "rewarded")
_STOPPED_STEP, _END_STEP = 12, 60
# The end of `stopped` when the version that made the archive went on with it, on the same machine, with one thread.
_END = {"train_loss": 3.3359462193080356, "val_loss": 4.5505828857421875, "best_val_loss": 3.3112802505493164}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """The project at its new path, where what is known of the sources' files is found out again."""
    root = tmp_path_factory.mktemp("kept") / "a moved project"
    unpack(_ARCHIVE, root)
    project = TinyProject(root=root)
    _look_at_sources(project)
    return project


def _look_at_sources(project: TinyProject) -> None:
    for stem in (*_FINISHED, "stopped"):
        for part in project.experiment(stem).parts.values():
            prepare_raw(part.data, part.data_folder)


def _status(project: TinyProject, stem: str) -> Status:
    return experiment_status(project.experiment(stem))


def _digests(project: TinyProject) -> dict[str, str]:
    """The sha256 of every file of data, checkpoints and evaluations of the finished trainings."""
    folders = [project.root / "storage" / "data"]
    folders += [project.experiment(stem).folder.root for stem in _FINISHED]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    noted = ("evaluator.json", "job.json", "lock")
    return {
        str(path.relative_to(project.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if not path.name.endswith(noted) and path.parent.name != "users"
    }


def _tracked(project: TinyProject) -> list[tuple[str, str, int]]:
    """Experiment, name and number of metrics of each run in MLflow."""
    query = """
        SELECT experiments.name, runs.name, count(metrics.key) FROM runs JOIN experiments USING (experiment_id)
        LEFT JOIN metrics USING (run_uuid) WHERE runs.lifecycle_stage = 'active' GROUP BY runs.run_uuid ORDER BY 1, 2, 3
    """
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        return store.execute(query).fetchall()


@pytest.mark.parametrize("stem", _FINISHED)
def test_training_that_an_earlier_version_finished_is_finished(project: TinyProject, stem: str) -> None:
    status = _status(project, stem)
    assert status.problem is None
    assert {stage.name: stage.state for stage in status.stages if stage.state != "finished"} == {}
    assert status.training is not None
    assert (status.training.state, status.training.damaged) == ("finished", ())
    assert (status.start_is_ready, status.evaluations_pending, status.tracking_is_pending) == (True, 0, False)
    assert not status.report_is_outdated


def test_mean_of_the_weights_of_an_earlier_version_loads_beside_them(project: TinyProject) -> None:
    [*_, last] = project.checkpoints("base")
    raw, average = (load_trained(last.path, weights=weights).model.state_dict() for weights in ("raw", "average"))
    assert raw.keys() == average.keys()
    assert not all(torch.equal(raw[name], average[name]) for name in raw)


@pytest.mark.parametrize(("stem", "step"), [("base", 60), ("rewarded", 2)])
def test_checkpoint_of_an_earlier_version_is_resumed_from_to_the_same_end(
    project: TinyProject, tmp_path: Path, stem: str, step: int
) -> None:
    copy = TinyProject(root=shutil.copytree(project.root, tmp_path / "copy"))
    _look_at_sources(copy)
    file = copy.experiment(stem).file
    named = f"base_folder: ../storage, checkpoint_to_resume: checkpoint_step_{step}.pt"
    file.write_text(file.read_text(encoding="utf-8").replace("base_folder: ../storage", named), encoding="utf-8")
    before, after = _end(copy, stem), _trained_end(copy, stem)
    assert (after["fingerprint"], after["step"]) == (before["fingerprint"], before["step"])
    if stem == "base":  # answers that another processor samples may be others
        assert {name: after[name] for name in _END} == pytest.approx({name: before[name] for name in _END}, abs=1e-3)


def _end(project: TinyProject, stem: str) -> dict[str, Any]:
    """What the training noted at its end."""
    found: dict[str, Any] = json.loads(project.experiment(stem).folder.training.read_text(encoding="utf-8"))
    return found


def _trained_end(project: TinyProject, stem: str) -> dict[str, Any]:
    """The same after training to the end, with the data that is there."""
    experiment = project.experiment(stem)
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    assert run_job(training_job(experiment, shards), Listener()).finished
    return _end(project, stem)


def test_fine_tuning_that_an_earlier_version_stopped_goes_on_to_the_end_that_it_had_there(project: TinyProject) -> None:
    training = _status(project, "stopped").training
    assert training is not None
    assert (training.state, training.step) == ("stopped", _STOPPED_STEP)
    end = _trained_end(project, "stopped")
    assert end["step"] == _END_STEP
    assert {name: end[name] for name in _END} == pytest.approx(_END, abs=1e-3)


@pytest.mark.slow
def test_run_of_a_chain_that_an_earlier_version_finished_does_no_work_again(project: TinyProject) -> None:
    files, tracked = _digests(project), _tracked(project)
    assert len(files) > 80
    project.run("run", *(f"experiments/{stem}.yaml" for stem in _FINISHED))
    assert _digests(project) == files
    assert _tracked(project) == tracked

"""Nothing people have is lost by an update: what an earlier version trained on data of one's own, and further.

The copy lies at another path than the project was made at. `fixtures/README.md` says what is in it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

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
    for stem in (*_FINISHED, "stopped"):
        for part in project.experiment(stem).parts.values():
            prepare_raw(part.data, part.data_folder)
    return project


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


def test_fine_tuning_that_an_earlier_version_stopped_goes_on_to_the_end_that_it_had_there(project: TinyProject) -> None:
    experiment = project.experiment("stopped")
    status = _status(project, "stopped")
    assert status.training is not None
    assert (status.training.state, status.training.step) == ("stopped", _STOPPED_STEP)
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    outcome = run_job(training_job(experiment, shards), Listener())
    assert (outcome.finished, outcome.step) == (True, _END_STEP)
    end = json.loads(experiment.folder.training.read_text(encoding="utf-8"))
    assert {name: end[name] for name in _END} == pytest.approx(_END, abs=1e-3)


@pytest.mark.slow
def test_run_of_a_chain_that_an_earlier_version_finished_does_no_work_again(project: TinyProject) -> None:
    files, tracked = _digests(project), _tracked(project)
    assert len(files) > 80
    project.run("run", *(f"experiments/{stem}.yaml" for stem in _FINISHED))
    assert _digests(project) == files
    assert _tracked(project) == tracked

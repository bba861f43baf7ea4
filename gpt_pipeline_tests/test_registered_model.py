"""The best checkpoint as a version of a registered model: one for its weights, whatever processes go through."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.checkpoints.manifest import best_checkpoint
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.orchestration.training_log import catch_up
from gpt_pipeline.progress.tracking import forget_lost_runs, is_log_pending
from gpt_pipeline.storage.atomic import read_json, rewrite_json
from gpt_pipeline.tracking.registered_model import (
    NOTE_NAME,
    WEIGHTS_TAG,
    registration_is_pending,
)
from gpt_pipeline.tracking.store import TrackingError, open_client
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.projects import TinyProject, default_tracking_uri
from gpt_pipeline_tests.registering import NAME, register, write
from gpt_pipeline_tests.test_training_run import _log
from gpt_pipeline_tests.training_jobs import Listener, make_job


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job of 12 updates that ran to its end."""
    job = make_job(tmp_path_factory.mktemp("once"))
    run_job(job, Listener())
    return job


@pytest.fixture
def trained(tmp_path: Path, once: TrainingJob) -> TrainingJob:
    shutil.copytree(once.experiment_folder, tmp_path / "experiment")
    return dataclasses.replace(once, experiment_folder=str(tmp_path / "experiment"))


def versions(store: Path) -> list[Any]:
    return sorted(open_client(default_tracking_uri(store)).search_model_versions(), key=lambda each: each.version)


def best_of(store: Path) -> int:
    return int(open_client(default_tracking_uri(store)).get_model_version_by_alias(NAME, "best").version)


def with_other_weights(job: TrainingJob, weights: str) -> None:
    """As if the experiment had been trained anew, to other weights."""
    manifest = job.folder.checkpoints / "best_model.json"
    rewrite_json(manifest, {**read_json(manifest), "weights_sha256": weights})


def no_model(checkpoint: Path, target: Path) -> None:
    raise AssertionError("the model is written again")


def test_register_model_makes_one_version_of_the_best_weights_with_its_files(trained: TrainingJob, store: Path) -> None:
    _log(trained, store)
    assert registration_is_pending(trained.folder, trained.fingerprint)
    made = register(trained, store)
    assert made is not None
    assert not registration_is_pending(trained.folder, trained.fingerprint)
    best = best_checkpoint(trained.folder.checkpoints)
    assert best is not None
    (version,) = versions(store)
    assert (version.name, version.run_id, version.status) == (NAME, made.run_id, "READY")
    assert version.tags[WEIGHTS_TAG] == best.weights_sha256
    assert best_of(store) == version.version
    (place,) = store.rglob("of.txt")
    assert place.read_text() == "best_model.pt"
    assert version.source.endswith(f"/models/{best.weights_sha256[:12]}")
    assert not list(trained.folder.root.glob(".registering/*"))
    assert register(trained, store, write_model=no_model) == made
    assert len(versions(store)) == 1


def test_register_model_of_an_unfinished_training_is_neither_pending_nor_done(
    trained: TrainingJob, store: Path
) -> None:
    _log(trained, store)
    trained.folder.training.unlink()
    assert not registration_is_pending(trained.folder, trained.fingerprint)
    assert register(trained, store, write_model=no_model) is None
    assert versions(store) == []


def test_register_model_of_a_training_that_went_on_for_the_worse_is_due_for_the_best_before(
    trained: TrainingJob,
) -> None:
    training = dataclasses.replace(trained.training, max_steps=16, learning_rate=10.0)
    longer = dataclasses.replace(trained, fingerprint="b" * 64, training=training, resume="checkpoint_step_12.pt")
    run_job(longer, Listener())
    assert registration_is_pending(longer.folder, longer.fingerprint)


def test_register_model_of_weights_that_another_training_replaced_meanwhile_waits(
    trained: TrainingJob, store: Path
) -> None:
    _log(trained, store)

    def write_others(checkpoint: Path, target: Path) -> str:
        write(checkpoint, target)
        return "0" * 64

    with pytest.raises(TrackingError, match="is another one by now"):
        register(trained, store, write_model=write_others)
    assert versions(store) == []
    assert registration_is_pending(trained.folder, trained.fingerprint)


def test_register_model_trained_again_makes_another_version_and_the_alias_follows_there_and_back(
    trained: TrainingJob, store: Path
) -> None:
    _log(trained, store)
    register(trained, store)
    first = read_json(trained.folder.checkpoints / "best_model.json")["weights_sha256"]
    with_other_weights(trained, "e" * 64)
    assert registration_is_pending(trained.folder, trained.fingerprint)
    register(trained, store)
    assert ([each.version for each in versions(store)], best_of(store)) == ([1, 2], 2)
    with_other_weights(trained, first)
    register(trained, store, write_model=no_model)
    assert ([each.version for each in versions(store)], best_of(store)) == ([1, 2], 1)


@pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL are POSIX")
@pytest.mark.slow
def test_register_model_by_processes_killed_at_several_points_ends_with_one_version(
    trained: TrainingJob, store: Path
) -> None:
    _log(trained, store)
    trained.write(trained.folder.job)
    code = f"""
import os, signal
from pathlib import Path
from gpt_pipeline.tracking.store import configure_mlflow
configure_mlflow()
from mlflow.tracking import MlflowClient
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.registering import KILLED_AT, register

def kill_at(name, when):
    plain = getattr(MlflowClient, name)
    def watched(*given, **options):
        if when == "after":
            plain(*given, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(MlflowClient, name, watched)

job = TrainingJob.read(Path({str(trained.folder.job)!r}))
for point in KILLED_AT:
    child = os.fork()
    if child == 0:
        kill_at(*point)
        register(job, Path({str(store)!r}))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, point
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert not (trained.folder.root / NOTE_NAME).exists()
    register(trained, store, write_model=no_model)
    assert ([each.version for each in versions(store)], best_of(store)) == ([1], 1)
    assert (trained.folder.root / NOTE_NAME).is_file()


@pytest.mark.slow
def test_register_model_by_two_processes_at_once_makes_one_version(trained: TrainingJob, store: Path) -> None:
    _log(trained, store)
    trained.write(trained.folder.job)
    code = f"""
from pathlib import Path
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.registering import register
register(TrainingJob.read(Path({str(trained.folder.job)!r})), Path({str(store)!r}))
"""
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [each.wait(timeout=120) for each in both] == [0, 0]
    assert [each.version for each in versions(store)] == [1]


def test_register_model_without_the_trainings_run_stays_pending_and_says_so(trained: TrainingJob, store: Path) -> None:
    with pytest.raises(TrackingError, match="does not have the run of the training"):
        register(trained, store)
    assert registration_is_pending(trained.folder, trained.fingerprint)


def test_catch_up_registers_the_model_of_a_finished_experiment_and_again_in_a_wiped_store(
    copy: TinyProject, empty_store: bytes, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    file = copy.root / "experiments" / "tiny.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("evaluation: {", "evaluation: {register_model: true, "), encoding="utf-8")
    experiment = load_experiment(file)
    assert experiment.config.evaluation.register_model
    assert is_log_pending(experiment)
    said: list[str] = []
    catch_up(experiment, "http://127.0.0.1:9", say=said.append)  # nobody answers there
    assert len(said) == 1
    assert is_log_pending(experiment)
    for number in range(2):  # the second one is another store, or one that was wiped
        store = tmp_path / f"store {number}"
        store.mkdir()
        (store / "mlflow.db").write_bytes(empty_store)
        forget_lost_runs(experiment, default_tracking_uri(store))
        assert is_log_pending(experiment)
        catch_up(experiment, default_tracking_uri(store), say=said.append)
        assert len(said) == 1
        assert not is_log_pending(experiment)
        (version,) = versions(store)
        assert version.name == experiment.display_name
        (config,) = store.rglob("config.json")
        assert AutoModelForCausalLM.from_pretrained(config.parent).num_parameters() > 0


def test_experiment_that_asks_for_no_model_has_none_pending(copy: TinyProject) -> None:
    experiment = load_experiment(copy.root / "experiments" / "tiny.yaml")
    assert not experiment.config.evaluation.register_model
    assert not is_log_pending(experiment)
    forced = dataclasses.replace(experiment.config.evaluation, register_model=True)
    config = dataclasses.replace(experiment.config, evaluation=forced)
    assert is_log_pending(dataclasses.replace(experiment, config=config))

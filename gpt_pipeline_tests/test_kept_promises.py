"""Nothing people have is lost by an update: a project that an earlier version finished, opened by this one.

Each copy lies at another path than the project was made at, as if its owner had moved it.
`fixtures/README.md` says what is in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.training import training_job
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.training.run import TrainingOutcome, run_job
from gpt_pipeline_tests.fixtures.keeping import unpack
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.training_jobs import Listener

_ARCHIVE = Path(__file__).parent / "fixtures" / "finished-775e92b.tar.xz"
_FINISHED = ("adamw", "muon", "local")
_EVALUATED = {  # validation loss by step
    "adamw": {12: 10.175548834726214},
    "muon": {4: 9.480869814753532, 8: 7.4924511183053255, 12: 6.860513975843787},
}
# The end of `interrupted` when nobody interrupts it, on the machine that made the archive, with one thread.
_UNDISTURBED_STEP = 60
_UNDISTURBED_WEIGHTS = "afc412f2f5ab796682c2b2702b93d157526f579b1af62a39e7bc0dd4f06bf4fa"
_UNDISTURBED_LOSSES = {"train_loss": 9.25417709350586, "val_loss": 9.187861442565918}


@dataclass(frozen=True, kw_only=True)
class KeptProject(TinyProject):
    """A copy of the archive's project."""

    @property
    def storage(self) -> Path:
        return self.root / "storage"

    def file(self, stem: str) -> str:
        return f"experiments/{stem}.yaml"

    def folder(self, stem: str) -> Path:
        return self.storage / f"Kept {stem}"

    def resume(self, stem: str, checkpoint: str) -> None:
        """Set `storage.checkpoint_to_resume` in the experiment's file."""
        path = self.root / self.file(stem)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if "checkpoint_to_resume:" in line]
        lines[place] = f"  checkpoint_to_resume: {checkpoint}\n"
        path.write_text("".join(lines), encoding="utf-8")

    def status(self) -> dict[str, dict[str, Any]]:
        """What `status --json` says of each experiment, by the stem of its file."""
        return {Path(each["file"]).stem: each for each in json.loads(self.call("status", "--json"))}

    def digests(self) -> dict[str, str]:
        """The sha256 of every file of data, checkpoints and evaluations, but for those of locks."""
        folders = [self.storage / "data"]
        folders += [self.folder(stem) / name for stem in _FINISHED for name in ("checkpoints", "evaluations")]
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.storage)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.suffix not in ("", ".lock")
        }

    def mlflow_runs(self, stem: str) -> list[str]:
        """The names of the experiment's runs in MLflow, in order; each must be finished."""
        query = """
            SELECT runs.name, runs.status FROM runs JOIN experiments USING (experiment_id)
            WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' ORDER BY runs.name
        """
        with closing(sqlite3.connect(self.root / "mlflow.db")) as store:
            found = store.execute(query, [f"Kept {stem}"]).fetchall()
        assert {status for _, status in found} <= {"FINISHED"}
        return [name for name, _ in found]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _unpack(root: Path) -> KeptProject:
    unpack(_ARCHIVE, root)
    return KeptProject(root=root)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> KeptProject:
    """The project as it was kept. Tests must not change it."""
    return _unpack(tmp_path_factory.mktemp("kept") / "a moved project")


@pytest.fixture
def project(tmp_path: Path) -> KeptProject:
    """A copy to work in."""
    return _unpack(tmp_path / "project")


def test_status_finds_what_an_earlier_version_finished(untouched: KeptProject) -> None:
    found = untouched.status()
    for stem, losses in _EVALUATED.items():
        assert found[stem]["problem"] is None
        assert [stage["state"] for stage in found[stem]["stages"]] == ["finished"] * 3
        assert found[stem]["training"]["state"] == "finished"
        assert found[stem]["training"]["damaged"] == []
        assert found[stem]["evaluations_pending"] == 0
        assert found[stem]["tracking_is_pending"] is False
        assert found[stem]["report_is_outdated"] is False
        evaluated = {each["step"]: each["evaluated_loss"] for each in found[stem]["checkpoints"]}
        assert evaluated == pytest.approx(losses)
    training = found["interrupted"]["training"]
    assert (training["state"], training["step"], training["max_steps"]) == ("stopped", 12, _UNDISTURBED_STEP)


def test_copy_that_keeps_no_times_stays_finished_and_damage_in_it_is_named(
    untouched: KeptProject, tmp_path: Path
) -> None:
    copy = KeptProject(root=shutil.copytree(untouched.root, tmp_path / "copy", copy_function=shutil.copyfile))
    experiment = load_experiment(copy.root / copy.file("muon"))
    status = experiment_status(experiment)
    assert [stage.state for stage in status.stages] == ["finished"] * 3
    assert status.training is not None
    assert (status.training.state, status.evaluations_pending) == ("finished", 0)
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    (shards.folder / "train_000001.bin").unlink()
    status = experiment_status(experiment)
    assert "train_000001.bin is missing" in status.stages[-1].note
    assert status.training is not None
    assert status.training.state == "finished"
    assert status.next.command.startswith("gpt-pipeline run")


def test_run_of_what_an_earlier_version_finished_does_no_work_again(
    untouched: KeptProject, project: KeptProject
) -> None:
    before = project.digests()
    runs = {stem: project.mlflow_runs(stem) for stem in _FINISHED}
    metrics = {stem: (project.folder(stem) / "metrics.jsonl").read_bytes() for stem in _FINISHED}
    assert len(before) > 50
    assert runs["muon"] == ["step_0", "step_12", "step_4", "step_8", "training"]
    project.run("run", project.file("muon"), project.file("local"))
    after = project.digests()
    new = after.keys() - before.keys()
    assert {name: digest for name, digest in after.items() if name not in new} == before
    # What is known of files in a folder is kept by the folder's path: at a new one they are read again.
    assert all(Path(name).parts[:2] == ("data", "sources") for name in new)
    assert {stem: project.mlflow_runs(stem) for stem in _FINISHED} == runs
    assert {stem: (project.folder(stem) / "metrics.jsonl").read_bytes() for stem in _FINISHED} == metrics
    assert not any((project.folder(stem) / "previous").exists() for stem in _FINISHED)
    assert project.status()["local"]["training"]["state"] == "finished"


def _train(project: KeptProject, stem: str) -> TrainingOutcome:
    """Train the experiment in this process, with the data that it has."""
    experiment = load_experiment(project.root / project.file(stem))
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    return run_job(training_job(experiment, shards), Listener())


@pytest.mark.parametrize(
    ("stem", "checkpoint"),
    [
        ("muon", "checkpoint_step_4.pt"),
        ("muon", "checkpoint_step_8.pt"),
        ("muon", "checkpoint_step_12.pt"),
        ("muon", "best_model.pt"),
        ("adamw", "checkpoint_step_12.pt"),
    ],
)
def test_checkpoint_of_an_earlier_version_is_resumed_from_to_the_same_end(
    project: KeptProject, stem: str, checkpoint: str
) -> None:
    before = _read_json(project.folder(stem) / "training.json")
    project.resume(stem, checkpoint)
    outcome = _train(project, stem)
    assert (outcome.finished, outcome.step) == (True, 12)
    after = _read_json(project.folder(stem) / "training.json")
    assert after["fingerprint"] == before["fingerprint"]
    for name in ("train_loss", "val_loss", "best_val_loss"):
        assert after[name] == pytest.approx(before[name], abs=1e-3), name
    assert [path.name for path in (project.folder(stem) / "checkpoints").glob("*.damaged")] == []


@pytest.mark.slow
def test_training_that_an_earlier_version_interrupted_goes_on_to_the_end_of_an_undisturbed_one(
    project: KeptProject,
) -> None:
    folder = project.folder("interrupted")
    project.run("run", project.file("interrupted"))
    steps = [line["step"] for line in _read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == list(range(1, _UNDISTURBED_STEP + 1))
    end = _read_json(folder / "training.json")
    assert end["step"] == _UNDISTURBED_STEP
    assert {name: end[name] for name in _UNDISTURBED_LOSSES} == pytest.approx(_UNDISTURBED_LOSSES, abs=1e-3)
    assert project.mlflow_runs("interrupted") == ["step_12", "step_60", "training"]
    if _undisturbed_weights(project) == _UNDISTURBED_WEIGHTS:  # another processor rounds otherwise
        assert end["weights_sha256"] == _UNDISTURBED_WEIGHTS


def _undisturbed_weights(project: KeptProject) -> str:
    """The end weights of `interrupted`, trained from its first step by this version on this machine."""
    text = (project.root / project.file("interrupted")).read_text(encoding="utf-8")
    path = project.root / project.file("undisturbed")
    path.write_text(text.replace("Kept interrupted", "Kept undisturbed"), encoding="utf-8")
    outcome = _train(project, "undisturbed")
    assert outcome.checkpoint is not None
    return outcome.checkpoint.weights_sha256


def test_deleted_evaluation_of_an_earlier_version_is_made_again_and_logged_once(project: KeptProject) -> None:
    folder = project.folder("adamw") / "evaluations"
    [path] = folder.glob("step_00000012-*.json")
    before = _read_json(path)
    path.unlink()
    (folder / "logged" / path.name).unlink()
    runs = project.mlflow_runs("adamw")
    project.call("evaluate", project.file("adamw"))
    after = _read_json(path)
    assert after["fingerprint"] == before["fingerprint"]
    measured_then = {name: after["metrics"][name] for name in before["metrics"]}  # this version measures more
    assert measured_then == pytest.approx(before["metrics"], rel=1e-4)
    assert [each["question"] for each in after["answers"]] == [each["question"] for each in before["answers"]]
    assert project.mlflow_runs("adamw") == runs
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        places = [place for (place,) in store.execute("SELECT artifact_uri FROM runs")]
    assert places
    assert all(place.startswith(f"{project.root.as_uri()}/mlflow_artifacts/") for place in places)


@pytest.mark.slow  # that a run does nothing again is tested above
def test_run_after_the_histories_were_deleted_trains_and_evaluates_nothing_again(project: KeptProject) -> None:
    before = project.digests()
    shutil.rmtree(project.root / ".dagster")
    (project.root / "mlflow.db").unlink()
    project.run("run", project.file("adamw"))
    after = project.digests()
    changed = {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}
    assert all(Path(name).parent == Path("Kept adamw/evaluations/logged") for name in changed)
    assert project.mlflow_runs("adamw") == ["step_12", "training"]


def test_compare_shows_what_an_earlier_version_evaluated(untouched: KeptProject) -> None:
    found = json.loads(untouched.call("compare", untouched.file("adamw"), untouched.file("muon"), "--json"))
    assert found["comparable"]
    ranks = [(each["display_name"], each["rank"]) for each in found["experiments"]]
    assert ranks == [("Kept muon", 1), ("Kept adamw", 2)]
    losses = [each["best"]["metrics"]["val_loss"] for each in found["experiments"]]
    assert losses == pytest.approx([_EVALUATED["muon"][12], _EVALUATED["adamw"][12]])


def test_generate_answers_with_a_checkpoint_of_an_earlier_version(untouched: KeptProject) -> None:
    [path] = (untouched.folder("muon") / "evaluations").glob("step_00000008-*.json")
    answer = _read_json(path)["answers"][-1]
    prompt = ("--prompt", answer["question"], "--max-new-tokens", "4", "--checkpoint", "step_8")
    assert answer["generated"] in untouched.call("generate", untouched.file("muon"), *prompt)


def test_export_writes_the_weights_of_an_earlier_version(untouched: KeptProject, tmp_path: Path) -> None:
    untouched.call("export", untouched.file("muon"), "--to", str(tmp_path / "hf"))
    kept = torch.load(untouched.folder("muon") / "checkpoints" / "best_model.pt", weights_only=True)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    name = "transformer.wte.weight"
    assert torch.equal(weights[name], kept["model"][name][: len(weights[name])])


def test_verify_finds_every_byte_that_an_earlier_version_made(untouched: KeptProject) -> None:
    untouched.call("verify", untouched.file("muon"))


def test_data_made_now_is_what_an_earlier_version_made(untouched: KeptProject, tmp_path: Path) -> None:
    config = load_experiment(untouched.root / untouched.file("local")).data
    raw = prepare_raw(config, tmp_path)
    english = prepare_documents(config, raw, tmp_path)
    shards = prepare_shards(config, english, tmp_path)
    made = {f"{stage.manifest.stage}-{stage.fingerprint[:12]}" for stage in (raw, english, shards)}
    assert made <= {path.name for path in (untouched.storage / "data").iterdir()}
    kept = _read_json(untouched.storage / "data" / shards.folder.name / "manifest.json")
    now = {name: record.sha256 for name, record in shards.manifest.files.items()}
    assert {name: now.get(name) for name in kept["files"]} == {
        name: record["sha256"] for name, record in kept["files"].items()
    }

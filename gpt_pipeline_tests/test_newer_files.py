"""Newer is not damaged: files that a later version wrote keep every byte; damaged ones are treated as ever."""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.choose import choose_checkpoint
from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, list_checkpoints, read_info, write_manifest
from gpt_pipeline.checkpoints.retention import prune
from gpt_pipeline.checkpoints.save import save_best, save_checkpoint
from gpt_pipeline.data.stage import prepare_stage
from gpt_pipeline.errors import DamagedFileError, NewerFileError, UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.orchestration.driver import is_complete
from gpt_pipeline.planning.plan import make_plan
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.progress.training import newest_records
from gpt_pipeline.storage.atomic import rewrite_json, sha256_of
from gpt_pipeline.storage.manifest import finished, verify
from gpt_pipeline.training.decision import decide_start
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.heartbeat import read_heartbeat
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics, write_metrics_up_to
from gpt_pipeline.training.run import TrainingOutcome, run_job
from gpt_pipeline_tests.training_jobs import SHARDS_FINGERPRINT, Listener, make_job, write_shards

_NEWER = "9.8.7"
_DEEP = "[" * 100_000
_DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "not JSON": lambda text: "no JSON at all",
    "nested deeply": lambda text: _DEEP,
    "a long integer": lambda text: text.replace("{", '{"step": ' + "9" * 5000 + ",", 1),
    "wrong type": lambda text: json.dumps({**json.loads(text), "step": "many"}),
    "a list": lambda text: "[]",
    "not UTF-8": lambda text: text.encode("utf-16"),
}
_damaged = pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_job(make_job(folder), Listener())
    return folder


@pytest.fixture
def job(kept: Path, tmp_path: Path) -> TrainingJob:
    """A finished training of 12 steps, with checkpoints at 4, 8 and 12."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return make_job(tmp_path)


def _bytes(job: TrainingJob) -> dict[str, bytes]:
    """Every file of the experiment but for locks and the note of the last start, which each start writes."""
    root = job.folder.root
    paths = [path for path in root.rglob("*") if path.is_file() and "lock" not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.name != "start.json"}


def _mutate(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    if "versions" in value:
        value["versions"]["gpt_pipeline"] = _NEWER
    path.write_text(json.dumps(value), encoding="utf-8")


def _damage(path: Path, damage: Callable[[str], str | bytes]) -> None:
    content = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def _unknown(value: dict[str, Any]) -> None:
    value["shard_of"] = 3


def _schema(value: dict[str, Any]) -> None:
    value["schema"] = 2


def _model(value: dict[str, Any]) -> None:
    value["model"]["n_experts"] = 1


def _manifest(job: TrainingJob, step: int = 12) -> Path:
    return job.folder.checkpoints / f"checkpoint_step_{step}.json"


def _info(job: TrainingJob, step: int = 12) -> CheckpointInfo:
    info = read_info(_manifest(job, step).with_suffix(".pt"))
    assert info is not None
    return info


def _run(job: TrainingJob) -> TrainingOutcome:
    return run_job(job, Listener())


@pytest.mark.parametrize("change", [_schema, _model])
@pytest.mark.parametrize("step", [4, 12])
def test_checkpoint_of_a_newer_version_stops_the_training_and_keeps_every_byte(
    job: TrainingJob, change: Callable[[dict[str, Any]], None], step: int
) -> None:
    _mutate(_manifest(job, step), change)
    before = _bytes(job)
    for call in (_run, decide_start):
        with pytest.raises(NewerFileError) as raised:
            call(job)
        said = str(raised.value)
        assert said.startswith(f"{_manifest(job, step)} was written by a newer version")
        assert f"({_NEWER}; this is {__version__})" in said
        assert ("'model.n_experts'" if change is _model else "schema 2") in said
        assert "update gpt_pipeline" in said
    assert _bytes(job) == before


def test_checkpoint_of_a_newer_version_is_listed_pruned_and_replaced_by_nobody(job: TrainingJob) -> None:
    snapshot = load_checkpoint(_info(job, 4).path)
    best = job.folder.checkpoints / "best_model.json"
    for manifest in (_manifest(job, 4), best):
        _mutate(manifest, _model)
    before = _bytes(job)
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)] == [8, 12]
    assert prune(job.folder, keep_last=2) == []
    for save in (save_checkpoint, save_best):
        with pytest.raises(NewerFileError):
            save(job.folder.checkpoints, snapshot)
    for name in ("best", "last", "step_4"):
        with pytest.raises(NewerFileError):
            choose_checkpoint(job.folder.checkpoints, name)
    assert choose_checkpoint(job.folder.checkpoints, "step_12").step == 12
    assert _bytes(job) == before


def test_checkpoint_with_an_unknown_key_beside_its_model_counts(
    job: TrainingJob, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (4, 8, 12):
        _mutate(_manifest(job, step), _unknown)
    before = _bytes(job)
    assert _run(job).reused
    assert _bytes(job) == before
    assert "another version of gpt_pipeline wrote unknown 'shard_of'" in caplog.text


@_damaged
def test_checkpoint_whose_manifest_is_damaged_is_set_aside(
    job: TrainingJob, damage: Callable[[str], str | bytes]
) -> None:
    _damage(_manifest(job), damage)
    outcome = _run(job)
    assert (outcome.reused, outcome.step) == (False, 12)
    assert (job.folder.checkpoints / "checkpoint_step_12.pt.damaged").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"ema": {}}, "'ema'"),
        ({"model_config": {"n_experts": 1}}, "'model_config.n_experts'"),
    ],
)
def test_payload_of_a_newer_version_stops_the_training_and_keeps_its_name(
    job: TrainingJob, change: dict[str, Any], said: str
) -> None:
    job.folder.training.unlink()
    (job.folder.checkpoints / "best_model.pt").unlink()
    info = _info(job)
    payload = torch.load(info.path, weights_only=True)
    for key, value in change.items():
        payload[key] = {**payload[key], **value} if key == "model_config" else value
    torch.save(payload, info.path)
    write_manifest(_with_content(info))
    before = _bytes(job)
    with pytest.raises(NewerFileError, match=said):
        _run(job)
    assert _bytes(job) == before


def _with_content(info: CheckpointInfo) -> CheckpointInfo:
    value = {**info.to_json(), "size": info.path.stat().st_size, "sha256": sha256_of(info.path)}
    return CheckpointInfo.from_json(value)


def test_payload_without_a_field_is_damaged(job: TrainingJob) -> None:
    info = _info(job)
    payload = torch.load(info.path, weights_only=True)
    del payload["random"]
    torch.save(payload, info.path)
    write_manifest(_with_content(info))
    with pytest.raises(DamagedFileError):
        load_checkpoint(info.path)


def test_training_that_a_newer_version_finished_is_finished(job: TrainingJob) -> None:
    _mutate(job.folder.training, _unknown)
    before = _bytes(job)
    assert _run(job).reused
    assert _bytes(job) == before


def test_training_of_a_newer_schema_stops_the_training_also_with_other_settings(
    job: TrainingJob, tmp_path: Path
) -> None:
    _mutate(job.folder.training, _schema)
    before = _bytes(job)
    for each in (job, make_job(tmp_path, fingerprint="b" * 64), make_job(tmp_path, resume="scratch")):
        with pytest.raises(NewerFileError, match=r"training\.json.*9\.8\.7.*schema 2"):
            _run(each)
    assert _bytes(job) == before


@_damaged
def test_training_whose_end_is_damaged_is_not_finished(job: TrainingJob, damage: Callable[[str], str | bytes]) -> None:
    _damage(job.folder.training, damage)
    assert find_finished_training(job.folder, job.fingerprint) is None
    assert _run(job).step == 12
    assert find_finished_training(job.folder, job.fingerprint) is not None


def test_note_of_a_start_keeps_what_a_newer_version_added(job: TrainingJob) -> None:
    path = job.folder.root / "start.json"
    _mutate(path, _unknown)
    assert _run(job).reused
    assert json.loads(path.read_text(encoding="utf-8"))["shard_of"] == 3
    _mutate(path, _schema)
    kept = path.read_bytes()
    with pytest.raises(NewerFileError):
        _run(job)
    assert path.read_bytes() == kept


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "stage")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stage_of_a_newer_version_is_read_without_what_is_unknown_and_kept(stage: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        _unknown(value)
        for record in value["files"].values():
            record["crc32"] = 7

    _mutate(stage / "manifest.json", change)
    _mutate(stage / "made.json", _unknown)
    before = _files(stage)
    found = finished(stage, SHARDS_FINGERPRINT)
    assert found is not None
    assert found.made is not None
    verify(found)
    assert _files(stage) == before


def test_stage_of_a_newer_schema_is_made_again_by_nobody(stage: Path) -> None:
    _mutate(stage / "manifest.json", _schema)
    _mutate(stage / "made.json", lambda value: value.update(version=_NEWER))
    before = _files(stage)
    with pytest.raises(NewerFileError, match=rf"manifest\.json .*schema 2.*names version {_NEWER}"):
        prepare_stage(stage, SHARDS_FINGERPRINT, force=False, say=print, make=pytest.fail)
    assert _files(stage) == before


@_damaged
def test_stage_whose_manifest_is_damaged_is_none(stage: Path, damage: Callable[[str], str | bytes]) -> None:
    if damage is _DAMAGE["wrong type"]:
        damage = _DAMAGE["a list"]  # a manifest has no step
    path = stage / "manifest.json"
    _damage(path, damage)
    content = path.read_bytes()
    assert finished(stage, SHARDS_FINGERPRINT) is None
    assert path.read_bytes() == content


@_damaged
def test_stage_whose_time_is_damaged_is_finished(stage: Path, damage: Callable[[str], str | bytes]) -> None:
    _damage(stage / "made.json", damage)
    found = finished(stage, SHARDS_FINGERPRINT)
    assert found is not None
    found.made  # noqa: B018  # does not raise
    assert (stage / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("section", "said"), [(None, "'shard_of'"), ("training", "'training.shard_of'"), ("model", "'model.shard_of'")]
)
def test_job_of_a_newer_version_is_refused_by_name(job: TrainingJob, section: str | None, said: str) -> None:
    job.write(job.folder.job)
    assert TrainingJob.read(job.folder.job) == job
    _mutate(job.folder.job, lambda value: _unknown(value if section is None else value[section]))
    with pytest.raises(NewerFileError, match=said):
        TrainingJob.read(job.folder.job)


@_damaged
def test_job_that_is_damaged_is_no_job(job: TrainingJob, damage: Callable[[str], str | bytes]) -> None:
    if damage is _DAMAGE["wrong type"]:
        damage = _DAMAGE["a list"]
    job.write(job.folder.job)
    _damage(job.folder.job, damage)
    with pytest.raises(UserError, match=r"is no job file|unknown 'step'"):
        TrainingJob.read(job.folder.job)


def test_metrics_with_unknown_fields_and_kinds_are_kept(job: TrainingJob, tmp_path: Path) -> None:
    lines = job.folder.metrics.read_text(encoding="utf-8").splitlines()
    newer = {**json.loads(lines[-1]), "kind": "preference", "margin": 0.5}
    odd = [_DEEP, json.dumps(newer), "9" * 5000, '{"kind": "train", "step": 1' + "0" * 5000 + "}"]
    job.folder.metrics.write_text("\n".join([*lines, *odd]) + "\n", encoding="utf-8")
    with job.folder.metrics.open("ab") as file:
        file.write(b"\xff\xfe\n")
    before = job.folder.metrics.read_bytes()
    assert read_metrics(job.folder.metrics)[-1] == newer
    assert newest_records(job.folder.metrics)["preference"] == newer
    assert _run(job).reused
    assert job.folder.metrics.read_bytes() == before
    write_metrics_up_to(job.folder.metrics, tmp_path / "copy.jsonl", step=12)
    assert newer in read_metrics(tmp_path / "copy.jsonl")


@_damaged
def test_heartbeat_that_is_damaged_is_none(tmp_path: Path, damage: Callable[[str], str | bytes]) -> None:
    path = tmp_path / "heartbeat.json"
    path.write_text(json.dumps({"process": {"host": "here", "pid": 1}, "run": "", "step": 3, "lr": 1}))
    found = read_heartbeat(tmp_path)
    assert found is not None
    assert found.step == 3
    _damage(path, damage)
    assert read_heartbeat(tmp_path) is None


def test_kept_state_keeps_unknown_keys_when_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    rewrite_json(path, {"step": 1})
    _mutate(path, _unknown)
    rewrite_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 2, "shard_of": 3}


@pytest.fixture(scope="module")
def kept_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project") / "project"
    with tarfile.open(Path(__file__).parent / "fixtures" / "finished-775e92b.tar.xz") as tar:
        tar.extractall(root, filter="data")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "Kept muon/checkpoints/checkpoint_step_8.json",
        "Kept muon/training.json",
        "Kept muon/start.json",
        "Kept muon/evaluations/step_00000008-*.json",
        "data/token_shards-*/manifest.json",
    ],
)
def test_status_and_plan_name_what_a_newer_version_wrote_and_change_nothing(
    kept_project: Path, tmp_path: Path, name: str
) -> None:
    root = shutil.copytree(kept_project, tmp_path / "project")
    for path in (root / "storage").glob(name):
        _mutate(path, _schema)
    experiment = load_experiment(root / "experiments" / "muon.yaml")
    before = _tree(root)
    status = experiment_status(experiment)
    assert "was written by a newer version of gpt_pipeline" in str(status.problem)
    assert Path(name).name.split("*")[0] in str(status.problem)
    assert status.next.command == "update gpt_pipeline"
    with pytest.raises(NewerFileError):
        make_plan(experiment, measured=False, say=print)
    with contextlib.suppress(NewerFileError):
        assert is_complete(experiment)
    assert _tree(root) == before


def test_status_of_unknown_keys_everywhere_is_that_of_a_finished_experiment(kept_project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(kept_project, tmp_path / "project")
    experiment = load_experiment(root / "experiments" / "muon.yaml")
    expected = experiment_status(experiment)
    for folder in (root / "storage" / "Kept muon", root / "storage" / "data"):
        for path in folder.rglob("*.json"):
            if "lock" not in path.name and path.name not in ("job.json", "training.json"):
                _mutate(path, _unknown)
    before = _tree(root)
    assert experiment_status(experiment) == expected
    assert expected.training is not None
    assert expected.training.state == "finished"
    assert _tree(root) == before


def _tree(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and "lock" not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}

"""Results of experiments as DataFrames."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpt_pipeline import results
from gpt_pipeline.checkpoints.manifest import BEST_NAME, CheckpointInfo, checkpoint_path, write_manifest
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, write_evaluation
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.metrics import MetricsLog
from gpt_pipeline_tests.projects import TinyProject

READERS = (
    results.metrics,
    results.checkpoints,
    results.evaluations,
    results.kinds,
    results.answers,
    results.continuations,
)
ARCHIVE = Path(__file__).parent / "fixtures" / "finished-775e92b.tar.xz"
DOCUMENTATION = Path(__file__).parent.parent / "docs" / "results.md"


def started(project: TinyProject, stem: str) -> Experiment:
    project.write_experiment(stem)
    return project.experiment(stem)


def log(experiment: Experiment, *lines: dict[str, Any]) -> None:
    file = MetricsLog(experiment.folder.metrics)
    for line in lines:
        file.write({"tokens_seen": line["step"] * 128, "seconds": 1.5, "time": "2026-11-01T10:00:00Z", **line})
    file.close()


def save(experiment: Experiment, name: str, *, step: int, weights: str) -> Path:
    folder = experiment.folder.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"weights")
    info = CheckpointInfo(
        path=path,
        step=step,
        sha256="f" * 64,
        weights_sha256=weights,
        size=7,
        fingerprint="a" * 64,
        shards_fingerprint="b" * 64,
        tokens_seen=step * 128,
        metrics={"train_loss": 3.5, "val_loss": None},
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16),
        created_at="2026-11-01T10:00:00Z",
    )
    write_manifest(info)
    return path


def evaluate(experiment: Experiment, step: int, *, made: int, seed: int = 0, correct: bool = True) -> None:
    key, identity = f"step_{step:08d}", f"{step}{seed}{made}".ljust(64, "0")
    answer = {
        "synth_id": "a",
        "exercise": "math exercise",
        "question": "1 + 1?",
        "expected": "2",
        "generated": "2",
        "correct": correct,
        "numeric_match": correct,
        "choice_match": None,
        "new_tokens": 3,
    }
    write_evaluation(
        EvaluationResult(
            fingerprint=identity,
            key=key,
            checkpoint={"step": step, "weights_sha256": f"{step}", "metrics": {}},
            config={"seed": seed},
            upstream={"shards": "d" * 64},
            metrics={
                "val_loss": 4.0 - step / 10,
                "correct": float(correct),
                "val_loss/editing": 2.5,
                "correct/math": 1.0,
            },
            answers=(answer,),
            continuations=(
                {"document": 7, "kind": "a", "beginning": "Once", "generated": " upon", "original": " more"},
            ),
            started_at="2026-11-01T10:00:00Z",
            created_at=f"2026-11-01T10:00:{made:02d}Z",
            seconds=2.0,
            device="cpu",
            versions={},
            path=evaluation_path(experiment.folder.evaluations, key, identity),
            reused=False,
        )
    )


def test_metrics_of_a_resumed_training_have_the_last_line_of_each_step_and_kind(project: TinyProject) -> None:
    log(
        started(project, "a"),
        {"kind": "train", "step": 4, "train_loss": 3.0, "updates": 4},
        {"kind": "validation", "step": 4, "val_loss": 3.25, "is_best": True},
        {"kind": "train", "step": 4, "train_loss": 2.0, "updates": 4},
    )
    log(started(project, "b"), {"kind": "train", "step": 8, "train_loss": 1.0})
    found = results.metrics(project.root / "experiments" / "a.yaml", str(project.root / "experiments" / "b.yaml"))
    rows = found[["experiment", "kind", "step", "tokens_seen"]].to_numpy().tolist()
    assert rows == [["a", "train", 4, 512], ["a", "validation", 4, 512], ["b", "train", 8, 1024]]
    assert found["train_loss"].fillna(-1).tolist() == [2.0, -1, 1.0]
    assert found["is_best"].tolist() == [pd.NA, True, pd.NA]
    assert found["time"][0] == pd.Timestamp("2026-11-01T10:00:00Z")


def test_metrics_with_a_field_of_a_newer_version_keep_it_after_the_documented_columns(project: TinyProject) -> None:
    log(started(project, "a"), {"kind": "train", "step": 4, "reward": 0.5})
    found = results.metrics(project.root / "experiments")
    assert found.columns[-1] == "reward"
    assert found["reward"].tolist() == [0.5]
    assert list(found.columns[:-1]) == list(results.metrics().columns)


def test_checkpoints_under_two_names_are_one_row_that_names_the_numbered_file(project: TinyProject) -> None:
    experiment = started(project, "a")
    numbered = save(experiment, checkpoint_path(Path(), 8).name, step=8, weights="w8")
    save(experiment, BEST_NAME, step=8, weights="w8")
    save(experiment, checkpoint_path(Path(), 12).name, step=12, weights="w12")
    found = results.checkpoints(experiment.file)
    assert found[["step", "is_best_model", "size"]].to_numpy().tolist() == [[8, True, 7], [12, False, 7]]
    assert found["path"][0] == str(numbered)
    assert found["train_loss"].tolist() == [3.5, 3.5]
    assert found["val_loss"].isna().all()


def test_evaluations_of_a_step_judged_again_are_its_newest_and_say_which_compare(project: TinyProject) -> None:
    experiment = started(project, "a")
    evaluate(experiment, 4, made=1)
    evaluate(experiment, 8, made=2, correct=False)
    evaluate(experiment, 8, made=3, seed=1)
    found = results.evaluations(experiment.file)
    rows = found[["step", "comparable", "correct", "val_loss"]].to_numpy().tolist()
    assert rows == [[4, False, 1.0, 3.6], [8, True, 1.0, 3.2]]
    assert not [name for name in found.columns if "/" in name]
    assert found["choice_match"].isna().all()


def test_kinds_have_a_row_per_kind_with_what_was_measured_of_it(project: TinyProject) -> None:
    experiment = started(project, "a")
    evaluate(experiment, 4, made=1)
    found = results.kinds(experiment.file)
    rows = found[["step", "kind", "val_loss", "correct"]].fillna(-1).to_numpy().tolist()
    assert rows == [[4, "editing", 2.5, -1], [4, "math", -1, 1.0]]


def test_answers_count_by_kind_with_pandas_own_means(project: TinyProject) -> None:
    experiment = started(project, "a")
    evaluate(experiment, 4, made=1)
    evaluate(experiment, 8, made=2, correct=False)
    found = results.answers(experiment.file)
    right = found.pivot_table(index="kind", columns="step", values="correct", aggfunc="mean")
    assert right.loc["math exercise"].tolist() == [1.0, 0.0]
    assert found["document"].tolist() == ["a", "a"]
    assert found["choice_match"].isna().all()


@pytest.mark.parametrize("read", READERS)
def test_results_without_a_training_are_empty_with_the_dtypes_of_full_ones(read: Any, project: TinyProject) -> None:
    full, empty = started(project, "full"), started(project, "empty")
    log(full, {"kind": "train", "step": 4, "train_loss": 3.0})
    save(full, checkpoint_path(Path(), 4).name, step=4, weights="w")
    evaluate(full, 4, made=1)
    assert len(read(full.file)) > 0
    assert len(read(empty.file)) == 0
    assert read(empty.file).dtypes.to_dict() == read(full.file).dtypes.to_dict()


@pytest.mark.parametrize("read", READERS)
def test_results_document_every_column(read: Any) -> None:
    said = read.__doc__ + results.__doc__
    missing = [name for name in read().columns if f"`{name}`" not in said]
    assert missing == []


def test_results_of_a_folder_with_a_dot_in_its_name_are_of_what_is_in_it(project: TinyProject) -> None:
    experiment = started(project, "a")
    save(experiment, checkpoint_path(Path(), 4).name, step=4, weights="w")
    folder = experiment.file.parent.rename(project.root / "runs-v1.5")
    assert results.checkpoints(folder)["step"].tolist() == [4]
    for name in ("missing.yaml", "missing.folder"):
        with pytest.raises(UserError, match=name):
            results.checkpoints(project.root / name)


def test_results_of_a_folder_with_a_broken_file_warn_and_read_the_others(project: TinyProject) -> None:
    log(started(project, "a"), {"kind": "train", "step": 4})
    broken = project.root / "experiments" / "b.yaml"
    broken.write_text("experiment_name: 3\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"b\.yaml"):
        assert results.metrics(project.root / "experiments")["experiment"].tolist() == ["a"]
    with pytest.raises(UserError, match=r"b\.yaml"):
        results.metrics(broken)


def test_results_of_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = []
    for folder, train_loss in (("one", 2.0), ("two", 3.0)):
        (tmp_path / folder).mkdir()
        project = TinyProject(root=tmp_path / folder)
        for stem in ("a-b", folder):
            log(started(project, stem), {"kind": "train", "step": 4, "train_loss": train_loss, "updates": 4})
            files.append(project.root / "experiments" / f"{stem}.yaml")
    found = results.metrics(*files).set_index("experiment")["train_loss"]
    assert dict(found) == {
        "one/experiments/a-b.yaml": 2.0,
        "one": 2.0,
        "two/experiments/a-b.yaml": 3.0,
        "two": 3.0,
    }
    assert set(results.metrics(files[0])["experiment"]) == {"a_b"}


def test_results_of_an_experiment_named_twice_count_once(project: TinyProject) -> None:
    experiment = started(project, "a")
    log(experiment, {"kind": "train", "step": 4})
    assert len(results.metrics(experiment.file, experiment.file.parent)) == 1


def test_results_module_imports_pandas_only_when_asked() -> None:
    code = "import sys; from gpt_pipeline import results; assert not {'pandas', 'torch', 'dagster'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_of_a_project_that_an_earlier_version_finished_are_all_there(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        wanted = [each for each in archive.getmembers() if each.name.startswith(("experiments", "storage/"))]
        archive.extractall(tmp_path, [each for each in wanted if "/data/" not in each.name], filter="data")
    given = tmp_path / "experiments" / "muon.yaml"
    train = results.metrics(given).query("kind == 'train'")
    assert train["step"].tolist() == list(range(1, 13))
    assert train["train_loss"].notna().all()
    assert results.checkpoints(given)["step"].tolist() == [4, 8, 12]
    evaluated = results.evaluations(given)
    assert evaluated["step"].tolist() == [0, 4, 8, 12]
    assert evaluated["val_loss"].notna().all()
    answers = results.answers(given)
    assert len(answers) == evaluated["num_questions"].sum()
    assert answers["question"].notna().all()
    assert set(results.answers(tmp_path / "experiments")["experiment"]) >= {"muon", "adamw"}


def test_results_documentation_example_runs_on_two_experiments(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in ("adamw", "muon"):
        experiment = started(project, stem)
        log(experiment, {"kind": "train", "step": 4, "train_loss": 3.0})
        save(experiment, checkpoint_path(Path(), 4).name, step=4, weights="w")
        evaluate(experiment, 4, made=1)
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = DOCUMENTATION.read_text(encoding="utf-8").split("```python\n")[1:]
    values: dict[str, Any] = {}
    for block in blocks:
        exec(block.partition("```")[0], values)
    assert values["best"]["step"].tolist() == [4, 4]
    assert values["right"].shape == (1, 2)

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.executors import PRELOADED, _start_method, project_executor
from gpt_pipeline.project import Project
from gpt_pipeline_tests.projects import TinyProject


def write(folder: Path, text: str) -> Path:
    (folder / "executor.yaml").write_text(text, encoding="utf-8")
    return folder


def test_executor_file_decides_for_every_job_of_the_project(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    write(tmp_path, "executor: multiprocess\nconfig: {max_concurrent: 3}\n")
    definitions = build_definitions(Project(root=tmp_path, experiments=tmp_path / "experiments"))
    for name in ("data_tiny", "run_tiny", "evaluate_tiny"):
        assert definitions.resolve_job_def(name).executor_def.name == "multiprocess"


def test_executor_without_file_is_dagsters_own(tmp_path: Path) -> None:
    assert project_executor(tmp_path).name == dg.multi_or_in_process_executor.name


def test_executor_file_without_a_config_is_read(tmp_path: Path) -> None:
    assert project_executor(write(tmp_path, "executor: in_process\nconfig:\n")).name == "in_process"


def test_preloaded_modules_exist_and_bring_no_library_that_few_steps_need() -> None:
    # Dagster says nothing of a module that is not there, and a step would begin without any.
    code = f"import sys, {', '.join(PRELOADED)}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"pyarrow.parquet", "tiktoken"} <= set(modules)
    assert not {"torch", "pandas", "huggingface_hub", "mlflow", "datasets"} & set(modules)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("executor: cluster", ConfigError, r"executor: found 'cluster', need one of in_process, multiprocess, k8s"),
        ("executor: dask", ConfigError, r"executor: found 'dask', need one of .*calls the run a success"),
        ("config: {}", ConfigError, r"executor: found None"),
        (
            "executor: multiprocess\nconfig: {max_concurent: 3}",
            ConfigError,
            r"need what multiprocess takes .*max_concurent",
        ),
        ("executor: multiprocess\nworkers: 3", ConfigError, r"found \['workers'\], need the keys executor and config"),
        ("multiprocess", ConfigError, r"need the keys executor and config"),
        ("- executor", ConfigError, r"need the keys executor and config"),
        ("executor: [k8s]", ConfigError, r"executor: found \['k8s'\], need one of"),
        ("executor: [", UserError, r"is not YAML"),
        ("executor: celery_k8s", UserError, r"pip install dagster-celery-k8s"),
    ],
)
def test_executor_file_that_cannot_be_used_says_why(
    tmp_path: Path, text: str, error: type[UserError], says: str
) -> None:
    with pytest.raises(error, match=says):
        project_executor(write(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "says"),
    [("# für alle\nexecutor: ray".encode("latin-1"), "save it as UTF-8"), (b"[" * 3000, "is not YAML")],
)
def test_executor_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "executor.yaml").write_bytes(content)
    with pytest.raises(UserError, match=says):
        project_executor(tmp_path)


def test_steps_on_macos_are_started_anew_and_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert "forkserver" not in str(_start_method())
    monkeypatch.undo()
    if "forkserver" in multiprocessing.get_all_start_methods():
        assert "forkserver" in str(_start_method())

"""Fixtures of the faults that are tried on the whole product."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gpt_pipeline_tests.faults.aftermath import kill_every_process, weights, write_long
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture(scope="session")
def long_finished(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A project whose experiment `long` nobody disturbed. Tests must not change it."""
    project = TinyProject(root=tmp_path_factory.mktemp("undisturbed"))
    write_long(project)
    project.run("run", "experiments/long.yaml")
    return project


@pytest.fixture(scope="session")
def undisturbed(long_finished: TinyProject) -> Mapping[int, str]:
    """Hashes of its weights by step."""
    return weights(long_finished)


@pytest.fixture
def project(tmp_path: Path, empty_store: bytes) -> Iterator[TinyProject]:
    """A project with the same experiment, nothing of which is made but an empty MLflow; nothing of it runs on."""
    project = TinyProject(root=tmp_path / "project")
    project.root.mkdir()
    (project.root / "mlflow.db").write_bytes(empty_store)
    write_long(project)
    yield project
    kill_every_process(project)
    shutil.rmtree(project.root)

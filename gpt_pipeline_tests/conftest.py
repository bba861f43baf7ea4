"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new MLflow store's bytes: MLflow takes seconds to create one."""
    from gpt_pipeline.tracking.store import configure_mlflow, default_tracking_uri, open_client

    folder = tmp_path_factory.mktemp("empty")
    configure_mlflow()
    open_client(default_tracking_uri(folder)).search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def store(tmp_path: Path, empty_store: bytes) -> Path:
    """A folder with a new MLflow store in it."""
    folder = tmp_path / "a store"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store)
    return folder

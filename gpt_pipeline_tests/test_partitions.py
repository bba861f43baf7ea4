"""Partitions of checkpoints, added by several processes at once."""

from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy.exc import IntegrityError

from gpt_pipeline.orchestration import keys
from gpt_pipeline_tests.projects import TinyProject


class _LateInstance:
    """A history in which another process adds each partition between our look and our insert."""

    def __init__(self, instance: dg.DagsterInstance, *, also_adds: bool) -> None:
        self._instance = instance
        self._also_adds = also_adds

    def add_dynamic_partitions(self, name: str, partitions: list[str]) -> None:
        if self._also_adds:
            self._instance.add_dynamic_partitions(name, partitions)
        raise IntegrityError("INSERT INTO dynamic_partitions", {}, Exception("UNIQUE constraint failed"))

    def has_dynamic_partition(self, name: str, partition: str) -> bool:
        return self._instance.has_dynamic_partition(name, partition)


def test_checkpoint_partition_that_another_process_adds_meanwhile_is_there(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    experiment = project.experiment("tiny")
    name = keys.checkpoint_partitions(experiment).name or ""
    with dg.DagsterInstance.ephemeral() as instance:
        keys.add_checkpoint_partitions(instance, experiment, ["step_00000001"])
        late = _LateInstance(instance, also_adds=True)
        keys.add_checkpoint_partitions(late, experiment, ["step_00000001", "step_00000002"])  # type: ignore[arg-type]
        assert list(instance.get_dynamic_partitions(name)) == ["step_00000001", "step_00000002"]
        refusing = _LateInstance(instance, also_adds=False)
        with pytest.raises(IntegrityError):
            keys.add_checkpoint_partitions(refusing, experiment, ["step_00000003"])  # type: ignore[arg-type]

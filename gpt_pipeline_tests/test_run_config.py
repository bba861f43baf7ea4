"""What the configuration of a run cannot do: lead pickles elsewhere, name code, show a variable of the environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._config import validate_config
from dagster._core.definitions.job_definition import JobDefinition

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.project import Project
from gpt_pipeline_tests.projects import TinyProject

SECRET = "hf_a_secret"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    project = TinyProject(root=tmp_path_factory.mktemp("project"))
    project.write_experiment("tiny")
    project.write_experiment("other")
    return build_definitions(Project(root=project.root, experiments=project.root / "experiments"))


def _jobs(definitions: dg.Definitions) -> Iterator[JobDefinition]:
    for job in definitions.resolve_all_job_defs():
        if not job.name.startswith("__"):
            yield job


def _refuses(job: JobDefinition, config: dict[str, Any]) -> bool:
    return not validate_config(job.run_config_schema.run_config_schema_type, config).success


PRELOAD = {"multiprocess": {"start_method": {"forkserver": {"preload_modules": ["antigravity"]}}}}
HARMFUL: dict[str, dict[str, Any]] = {
    "pickles from another host": {"resources": {"io_manager": {"config": {"base_dir": "ftp://evil.example/"}}}},
    "pickles from another folder": {"resources": {"io_manager": {"config": {"base_dir": "/tmp/evil"}}}},
    "pickles from a variable": {"resources": {"io_manager": {"config": {"base_dir": {"env": "HF_TOKEN"}}}}},
    "modules to import": {"execution": {"config": PRELOAD}},
    "another executor": {"execution": {"config": {"in_process": {}}}},
    "another store": {"resources": {"mlflow": {"config": {"tracking_uri": "http://evil.example"}}}},
    "another resource": {"resources": {"other": {"config": {}}}},
    "a logger's name from a variable": {"loggers": {"console": {"config": {"name": {"env": "HF_TOKEN"}}}}},
}


@pytest.mark.parametrize("name", HARMFUL)
def test_run_config_that_leads_elsewhere_is_refused_by_every_job(definitions: dg.Definitions, name: str) -> None:
    jobs = list(_jobs(definitions))
    assert len(jobs) >= 9
    assert not [job.name for job in jobs if _refuses(job, {})]
    assert not [job.name for job in jobs if not _refuses(job, HARMFUL[name])]


def test_run_config_no_field_of_any_job_takes_a_variable_of_the_environment(definitions: dg.Definitions) -> None:
    for job in _jobs(definitions):
        schema = job.run_config_schema
        taken = [
            each.given_name or each.key
            for each in schema.run_config_schema_type.type_iterator()
            if "env" in getattr(each, "fields", {})
        ]
        assert not taken, (job.name, taken)


def test_run_config_variable_in_place_of_an_option_is_refused_without_its_value(
    definitions: dg.Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    job = definitions.resolve_job_def("run_tiny")
    run_config = {"ops": {"tiny__training": {"config": {"force": {"env": "HF_TOKEN"}}}}}
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        job.execute_in_process(run_config=run_config, instance=dg.DagsterInstance.ephemeral())
    assert SECRET not in str(refused.value)
    assert not _refuses(job, {"ops": {"tiny__training": {"config": {"force": True}}}})

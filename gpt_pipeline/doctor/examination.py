"""All checks, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpt_pipeline.doctor.launchers import check_launchers
from gpt_pipeline.doctor.machine import check_disk, check_files, check_memory, check_open_files, check_port
from gpt_pipeline.doctor.services import (
    CountRuns,
    check_dagster_home,
    check_history,
    check_hub,
    check_mirrors,
    check_mlflow,
    check_notifications,
)
from gpt_pipeline.doctor.software import check_compiler, check_libraries, check_python, check_torch
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.findings import Finding, note, ok, problem, problem_of
from gpt_pipeline.project import DAGSTER_PORT, MLFLOW_PORT, Project

Check = Callable[[], Iterable[Finding]]


def examine(project: Project, experiment: Experiment | None, *, offline: bool, count_runs: CountRuns) -> list[Finding]:
    """Check this machine for `experiment`, or for all those of `project`; `offline` leaves the hub out."""
    experiments = [experiment] if experiment is not None else _experiments(project)
    folders = [*_base_folders(experiments), project.root]
    downloads = [each for each in experiments if _downloads(each)] if experiments else [None]
    pages = project.pages
    hardware = experiment.config.hardware if experiment is not None else None
    if hardware is not None:  # what the nodes of a cluster have is not known here
        hardware = (
            dataclasses.replace(hardware, device=hardware.device_here, num_gpus=1) if hardware.place else hardware
        )
    return findings_of(
        {
            "python": check_python,
            "libraries": check_libraries,
            "torch": lambda: check_torch(hardware),
            "compiling": check_compiler,
            "experiments": lambda: _check_experiments(project) if experiment is None else (),
            "paths": lambda: _check_paths(project),
            "launchers": lambda: check_launchers([each.config.hardware for each in experiments]),
            "disk": lambda: check_disk([*folders, *([_cache()] if downloads else [])]),
            "files": lambda: check_files(folders),
            "memory": check_memory,
            "open files": check_open_files,
            "hub": lambda: check_hub() if downloads and not offline else _skipped(offline=offline),
            "Dagster's port": lambda: check_port(DAGSTER_PORT, page="Dagster's page", pages=pages),
            "MLflow's port": lambda: check_port(MLFLOW_PORT, page="MLflow's page", pages=pages),
            "DAGSTER_HOME": lambda: check_dagster_home(project),
            "Dagster history": lambda: check_history(project, count_runs),
            "mirror": lambda: check_mirrors(_mirrors(experiments)) if not offline else (),
            "notifications": lambda: check_notifications(project),
            "MLflow": lambda: check_mlflow(project.tracking_uri),
        }
    )


def findings_of(checks: Mapping[str, Check]) -> list[Finding]:
    """Return the findings of the checks, by their names in order; one that fails itself is a problem, in its words."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check()
        except UserError as error:
            found.append(problem_of(error, name))
        except Exception as error:
            # Whatever keeps one check from running is worth knowing, and must not keep the others from running.
            text = f"could not be checked: {type(error).__name__}: {error}"
            found.append(problem(name, text, "this was not foreseen; the text says what the system refused"))
    return found


def _experiments(project: Project) -> list[Experiment]:
    if not project.experiments.is_dir():
        return []
    return [found.experiment for found in find_experiments(project.experiments) if found.experiment is not None]


def _check_experiments(project: Project) -> Iterator[Finding]:
    if not project.experiments.is_dir():
        yield note("experiments", f"no folder {project.experiments}", "`gpt-pipeline init` writes a first experiment")
        return
    for found in find_experiments(project.experiments):
        if found.problem is not None:
            yield note("experiments", found.problem.splitlines()[0], f"gpt-pipeline validate {found.file}")


def _check_paths(project: Project) -> Iterator[Finding]:
    project.require_usable()
    yield ok("paths", "Dagster and MLflow can work in the project's folder and in the temporary one")


def _base_folders(experiments: Sequence[Experiment]) -> Iterator[Path]:
    for experiment in experiments:
        try:
            yield experiment.base_folder
        except UserError:  # of another system; `find_experiments` and `validate` say so
            continue


def _mirrors(experiments: Sequence[Experiment]) -> list[str]:
    return [url for each in experiments if (url := each.config.storage.mirror) is not None]


def _downloads(experiment: Experiment) -> bool:
    data = experiment.config.data
    return data.tokenizer_on_hub is not None or any(
        part.local is None and not part.is_sample for part in data.parts.values()
    )


def _cache() -> Path:
    from gpt_pipeline.data.sources.hub import Hub

    return Hub().cache


def _skipped(*, offline: bool) -> Iterator[Finding]:
    yield note("hub", "skipped (--offline)" if offline else "skipped: no experiment here downloads from it")

"""All looks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpt_pipeline.data.config import SAMPLE
from gpt_pipeline.doctor.files import look_at_files
from gpt_pipeline.doctor.hub import look_at_hub
from gpt_pipeline.doctor.machine import look_at_disk, look_at_memory, look_at_open_files
from gpt_pipeline.doctor.ports import look_at_port
from gpt_pipeline.doctor.python import look_at_libraries, look_at_python
from gpt_pipeline.doctor.stores import CountRuns, look_at_dagster_home, look_at_history, look_at_mlflow
from gpt_pipeline.doctor.torch_build import look_at_compiler, look_at_torch
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.discover import find_experiments
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.findings import Finding, note, problem, problem_of
from gpt_pipeline.project import DAGSTER_PORT, MLFLOW_PORT, Project

Look = Callable[[], Iterable[Finding]]


def examine(project: Project, experiment: Experiment | None, *, offline: bool, count_runs: CountRuns) -> list[Finding]:
    """Return what is found on this machine: for `experiment`, or for all those of `project`; `offline` asks no hub."""
    experiments = [experiment] if experiment is not None else _experiments(project)
    folders = [*_base_folders(experiments), project.root]
    downloads = [each for each in experiments if _downloads(each)] if experiments else [None]
    pages = project.pages
    hardware = experiment.config.hardware if experiment is not None else None
    return findings_of(
        {
            "python": look_at_python,
            "libraries": look_at_libraries,
            "torch": lambda: look_at_torch(hardware),
            "compiling": look_at_compiler,
            "experiments": lambda: _look_at_experiments(project) if experiment is None else (),
            "disk": lambda: look_at_disk([*folders, *([_cache()] if downloads else [])]),
            "files": lambda: look_at_files(folders),
            "memory": look_at_memory,
            "open files": look_at_open_files,
            "hub": lambda: look_at_hub() if downloads and not offline else _not_asked(offline=offline),
            "Dagster's port": lambda: look_at_port(DAGSTER_PORT, page="Dagster's page", pages=pages),
            "MLflow's port": lambda: look_at_port(MLFLOW_PORT, page="MLflow's page", pages=pages),
            "DAGSTER_HOME": lambda: look_at_dagster_home(project),
            "Dagster history": lambda: look_at_history(project, count_runs),
            "MLflow": lambda: look_at_mlflow(project.tracking_uri),
        }
    )


def findings_of(looks: Mapping[str, Look]) -> list[Finding]:
    """Return the findings of the checks, by their names in order; one that fails itself is a problem, in its words."""
    found: list[Finding] = []
    for name, look in looks.items():
        try:
            found += look()
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


def _look_at_experiments(project: Project) -> Iterator[Finding]:
    if not project.experiments.is_dir():
        yield note("experiments", f"no folder {project.experiments}", "`gpt-pipeline init` writes a first experiment")
        return
    for found in find_experiments(project.experiments):
        if found.problem is not None:
            yield note("experiments", found.problem.splitlines()[0], f"gpt-pipeline validate {found.file}")


def _base_folders(experiments: Sequence[Experiment]) -> Iterator[Path]:
    for experiment in experiments:
        try:
            yield experiment.base_folder
        except UserError:  # of another system; `find_experiments` and `validate` say so
            continue


def _downloads(experiment: Experiment) -> bool:
    data = experiment.config.data
    return data.local_dataset_path is None and data.source != SAMPLE


def _cache() -> Path:
    from gpt_pipeline.data.sources.hub import Hub

    return Hub().cache


def _not_asked(*, offline: bool) -> Iterator[Finding]:
    yield note("hub", "not asked, as wished" if offline else "not asked: no experiment here downloads from it")

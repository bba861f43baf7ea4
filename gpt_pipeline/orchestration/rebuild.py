"""A job by its name alone, for the worker processes of a run that the command line started."""

from pathlib import Path

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.project import Project


def job(name: str, experiments: str) -> dg.JobDefinition:
    """Return the job `name` of the project whose files lie in the folder `experiments`."""
    return build_definitions(Project.of_experiments(Path(experiments))).resolve_job_def(name)


def reconstructable_job(name: str, project: Project) -> ReconstructableJob:
    """Return what a worker process needs to find the job `name` of the project again.

    Dagster keeps the job that it found last, by these arguments; two projects may have one of the same name.
    """
    where = {"experiments": str(project.experiments)}
    return dg.build_reconstructable_job(
        __name__, job.__name__, reconstructable_args=(name,), reconstructable_kwargs=where
    )

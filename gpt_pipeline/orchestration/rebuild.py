"""A job by its name alone, for the worker processes of a run that the command line started."""

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.project import Project


def job(name: str) -> dg.JobDefinition:
    """Return the job `name` of the project in the working directory."""
    return build_definitions(Project.here()).resolve_job_def(name)


def reconstructable_job(name: str) -> ReconstructableJob:
    """Return what a worker process needs to find the job `name` again."""
    return dg.build_reconstructable_job(__name__, job.__name__, reconstructable_args=(name,))

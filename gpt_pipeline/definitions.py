"""What Dagster loads: every experiment of the project in the working directory."""

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.project import Project

defs = build_definitions(Project.here())

"""What stands in place of experiments: a file that cannot be used, and a folder without any file."""

import os
import re
from pathlib import Path

import dagster as dg

from gpt_pipeline.experiment.discover import ExperimentFile
from gpt_pipeline.orchestration.attributes import OWNERS, file_metadata
from gpt_pipeline.shown import in_markdown
from gpt_pipeline.storage.fingerprint import fingerprint


def broken_experiment_asset(file: ExperimentFile) -> dg.AssetsDefinition:
    """Return an asset whose description, and whose materialization, tell what is wrong with the file."""
    problem = file.problem or ""
    # Files such as a-b.yaml and a_b.yaml share a group; the digest keeps their keys apart.
    digest = fingerprint("file", config={"name": file.file.name}, code_version="1")[:6]

    @dg.asset(
        key=[file.name, f"experiment_file_{digest}"],
        group_name=file.name,
        kinds={"yaml"},
        owners=OWNERS,
        tags={"gpt_pipeline/broken": "true"},
        metadata=file_metadata(file.file, line=_first_line(file)),
        description=f"**{in_markdown(file.file.name)} cannot be used.** Mend it; `gpt-pipeline ui` then loads it by "
        f"itself, `dagster dev` by *Reload definitions*.\n\n{_as_list(file)}",
    )
    def experiment_file() -> None:
        raise dg.Failure(description=problem, allow_retries=False)

    return experiment_file


def no_experiments_asset(folder: Path) -> dg.AssetSpec:
    """Return what the pages show of a project without experiments: how to begin."""
    return dg.AssetSpec(
        key="start_here",
        group_name="start_here",
        kinds={"yaml"},
        owners=OWNERS,
        description=f"**There is no experiment yet** in {in_markdown(str(folder))}.\n\nWrite one there, for instance "
        "by `gpt-pipeline init experiments/my-idea.yaml`. `gpt-pipeline ui` loads it by itself: each file becomes a "
        "group of assets and a job `run_<file>`, whose button *Materialize all* starts it.",
    )


def _as_list(file: ExperimentFile) -> str:
    """Return the problems as markdown, one point each, shown as they are and wrapped by the page."""
    folder = f"{file.file.parent}{os.sep}"
    lines = (file.problem or "").replace(folder, "").splitlines()
    return "\n".join("- " + in_markdown(line) for line in lines if line.strip())


def _first_line(file: ExperimentFile) -> int:
    """Return the line of the first problem, from 1."""
    found = re.match(re.escape(str(file.file)) + r":(\d+)", file.problem or "")
    return int(found[1]) if found else 1

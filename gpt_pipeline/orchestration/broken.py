"""An experiment file that cannot be used, as a group of its own that says why."""

import dagster as dg

from gpt_pipeline.experiment.discover import ExperimentFile
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
        tags={"gpt_pipeline/broken": "true"},
        description=f"{file.file.name} cannot be used; mend it and reload the definitions.\n\n```\n{problem}\n```",
    )
    def experiment_file() -> None:
        raise dg.Failure(description=problem, allow_retries=False)

    return experiment_file

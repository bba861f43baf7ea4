"""What a run's configuration may say: a few options, and nothing that leads elsewhere.

Whoever reaches the page that starts a run writes its configuration. Plain types, not those of `dg.Config`: these accept
`{env: NAME}` too, and the events of the run would then show what the variable holds.
"""

from collections.abc import Sequence

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration.stoppable import stoppable


def switch(description: str) -> dg.Field:
    """Return an option that is off unless chosen."""
    return dg.Field(dg.Bool, default_value=False, description=description)


def number(description: str, *, default: int) -> dg.Field:
    """Return an option that is a whole number."""
    return dg.Field(dg.Int, default_value=default, description=description)


@dg.io_manager(config_schema={}, description="Keeps what the steps of a run hand on in Dagster's own folder.")
def step_outputs(context: dg.InitResourceContext) -> dg.IOManager:
    """Return Dagster's own, without its `base_dir`: what it reads are pickles, so a place is never configured."""
    instance = context.instance
    assert instance is not None
    return dg.FilesystemIOManager(base_dir=instance.storage_directory()).create_io_manager(context)


def fixed_executor(
    definition: dg.ExecutorDefinition, config: dict[str, object], *, name: str, experiments: Sequence[Experiment]
) -> dg.ExecutorDefinition:
    """Return the executor with `config`, to which a run adds nothing: it could name modules to import."""
    return stoppable(definition, experiments).configured(lambda _: config, config_schema={}, name=name)

"""The partitions of an experiment's checkpoints, added by several processes at once."""

from collections.abc import Iterable

import dagster as dg

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.orchestration import keys


def add_checkpoint_partitions(instance: dg.DagsterInstance, experiment: Experiment, partitions: Iterable[str]) -> None:
    """Add those of `partitions` that are not there yet.

    Dagster looks first and inserts then, so two processes that add the same one (the training step and the evaluator
    beside it) can collide in the database; the one that comes second has what it wanted.
    """
    from sqlalchemy.exc import IntegrityError

    name = keys.checkpoint_partitions(experiment).name or ""
    for partition in partitions:
        try:
            instance.add_dynamic_partitions(name, [partition])
        except IntegrityError:
            if not instance.has_dynamic_partition(name, partition):
                raise

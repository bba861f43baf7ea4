"""Whether the checkpoint that an experiment names to continue from is there: known before its data is. No torch."""

from __future__ import annotations

from gpt_pipeline.checkpoints.choose import checkpoint_to_resume
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.training.decision import Demand
from gpt_pipeline.training.job import SCRATCH


def require_checkpoint_to_resume(experiment: Experiment) -> None:
    """Refuse an experiment whose training would end with its `checkpoint_to_resume` not being there.

    One that was resumed before may have made room for its successors since.

    Raises:
        UserError: it is not there; names those that are.
        ConfigError: the base folder is not one of this machine.
    """
    name = experiment.config.storage.checkpoint_to_resume
    if name not in (None, SCRATCH) and not _was_resumed(experiment, name):
        checkpoint_to_resume(experiment.folder.checkpoints, name)


def _was_resumed(experiment: Experiment, name: str) -> bool:
    before = Demand.read(experiment.folder)
    if before is None:
        return False
    # Data that was removed is made again as it was, so before it is there, nothing speaks against the same training.
    wanted = wanted_fingerprint(experiment) or before.fingerprint
    return Demand(fingerprint=wanted, resume=name, request="").is_met_by(before)

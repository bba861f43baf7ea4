"""How long a training is, from the config and the number of its tokens alone: no torch, no data read."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import DataError
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.training.config import StepLayout


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """The length of a training."""

    steps_per_epoch: int
    """Updates in one pass over the training tokens; what does not fill a whole update is left out of the pass."""

    layout: StepLayout

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens trained on in one pass."""
        return self.steps_per_epoch * self.layout.tokens_per_step


def training_size(config: ExperimentConfig, *, train_tokens: int) -> TrainingSize:
    """Return the length of the training that `config` asks for on `train_tokens` tokens.

    Raises:
        DataError: the tokens do not fill one update.
    """
    # As `BatchSampler` cuts them: a sequence's targets reach one token into the next one.
    sequences = max(0, train_tokens - 1) // config.data.max_length
    steps_per_epoch = sequences // config.sequences_per_step
    if steps_per_epoch == 0:
        raise DataError(
            f"found {train_tokens} training tokens, need at least {config.tokens_per_step + 1} for one update of "
            f"{config.sequences_per_step} sequences of {config.data.max_length} tokens; "
            "raise data.num_samples, or lower training.batch_size or data.max_length"
        )
    return TrainingSize(steps_per_epoch=steps_per_epoch, layout=config.step_layout(steps_per_epoch=steps_per_epoch))

"""How long a training is, without torch: from the config and the number of its tokens, or from its shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_pipeline.data.config import STREAM
from gpt_pipeline.errors import DataError
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.storage.manifest import Manifest
from gpt_pipeline.training.config import StepLayout

if TYPE_CHECKING:
    from gpt_pipeline.data.tokens.packing import Answers


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """The length of a training."""

    steps_per_epoch: int
    """Updates in one pass over the training tokens; what does not fill a whole update is left out of the pass."""

    layout: StepLayout
    padding: float | None = 0.0
    """Share of the positions that no token fills, in [0, 1); None: whole documents are to be packed, and not known."""

    answers: Answers | None = None
    """What of the documents counts, where only answers do; None: everything, or not known."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens trained on in one pass, padding included."""
        return self.steps_per_epoch * self.layout.tokens_per_step


def size_on(folder: Path, manifest: Manifest, config: ExperimentConfig) -> TrainingSize:
    """Return the length of the training that `config` asks for on the shards in `folder`.

    Raises:
        DataError: the tokens do not fill one update.
        UserError: only answers count, and the shards were made by a version that did not say where they are.
        DamagedFileError: whole documents are to be packed, and what says where they begin cannot be read.
    """
    tokens = int(manifest.facts["train_tokens"])
    if config.data.packing == STREAM or config.has_rollouts:
        return training_size(config, train_tokens=tokens)
    answers_only = config.training.answers_only
    rows, filled, answers = _packed_on(folder, manifest.fingerprint, config.data.max_length, answers_only)
    size = training_size(config, train_tokens=tokens, rows=rows)
    return replace(size, padding=1 - filled / (rows * config.data.max_length), answers=answers)


@lru_cache(maxsize=64)
def _packed_on(folder: Path, _fingerprint: str, row_length: int, answers_only: bool) -> tuple[int, int, Answers | None]:
    """Return how many rows documents make, the positions that they fill, and which of them count, if not all do."""
    from gpt_pipeline.data.tokens.packing import begin, count, count_answers, cut  # numpy
    from gpt_pipeline.data.tokens.stream import open_shards

    stream = open_shards(folder).train
    amount = count(stream.documents_by_shard(), row_length, begin if answers_only else cut)
    return *amount, count_answers(stream, row_length) if answers_only else None


def training_size(config: ExperimentConfig, *, train_tokens: int, rows: int | None = None) -> TrainingSize:
    """Return the length of the training that `config` asks for on `train_tokens` tokens.

    `rows`: how many sequences they are where documents are packed; None: as many as they fill.

    Raises:
        DataError: the tokens do not fill one update.
    """
    if config.has_rollouts:  # without epochs: one that is as long as the training
        steps = config.training.max_steps or 1
        return TrainingSize(steps_per_epoch=steps, layout=config.step_layout(steps_per_epoch=steps))
    # As `BatchSampler` cuts them: a sequence's targets reach one token into the next one.
    sequences = max(0, train_tokens - 1) // config.data.max_length if rows is None else rows
    steps_per_epoch = sequences // config.sequences_per_step
    if steps_per_epoch == 0:
        # Shorter sequences make more updates of as many sequences, and not of as many tokens.
        lower = "batch_size or data.max_length" if config.training.tokens_per_step is None else "tokens_per_step"
        if rows is None:
            found, need = f"{train_tokens:,} training tokens", config.tokens_per_step + 1
        else:
            found = f"{rows:,} sequences of whole documents ({train_tokens:,} training tokens)"
            need = config.sequences_per_step
        raise DataError(
            f"found {found}, need at least {need:,} for one update of "
            f"{config.sequences_per_step} sequences of {config.data.max_length} tokens; "
            f"{config.data.way_to_more}, or lower training.{lower}"
        )
    return TrainingSize(
        steps_per_epoch=steps_per_epoch,
        layout=config.step_layout(steps_per_epoch=steps_per_epoch),
        padding=0.0 if config.data.packing == STREAM else None,
    )

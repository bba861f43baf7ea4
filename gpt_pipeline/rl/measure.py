"""Make the stage `rl_prompts`: have the weights of a checkpoint answer the candidates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.load import load_model
from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.candidates import Candidates, Documents, choose_candidates
from gpt_pipeline.rl.prompts import Prompt
from gpt_pipeline.rl.rollouts import Group, RolloutSampler
from gpt_pipeline.rl.stage import PromptsStage
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.manifest import StageResult

_AT_ONCE = 128  # texts continued together, unless the training has fewer in a forward pass
_logger = logging.getLogger(__name__)


def prepare_prompts(
    stage: PromptsStage,
    documents: Documents,
    shards: StageResult,
    checkpoint: Path,
    *,
    device: str,
    batch_size: int | None = None,
    force: bool = False,
    say: Say = _logger.info,
) -> StageResult:
    """Return the finished stage, measured with the weights in `checkpoint` if it is not finished.

    Raises:
        DataError: there is no question to train on, or none to measure with.
        ConfigError: there is no such device.
        UserError: the checkpoint is damaged, or holds other weights by now.
    """
    tokenizer = tokenizer_of(shards)
    sampler = RolloutSampler(
        config=stage.config, tokenizer=tokenizer, context_length=stage.max_length, batch_size=batch_size or _AT_ONCE
    )
    facts, on = shards.manifest.facts, devices.choose_kind(device)
    answers = _Answers(sampler, checkpoint, stage.weights_sha256, device=on, shards_facts=facts)

    def candidates() -> Candidates:
        config, longest = stage.config, stage.config.longest_question(stage.max_length)
        return choose_candidates(documents, tokenizer, count=config.candidates, seed=stage.seed, longest=longest)

    return stage.prepare(candidates, answers.to, force=force, say=say)


class _Answers:
    """Answers of the weights in a checkpoint, which is loaded when the first are asked for."""

    def __init__(
        self, sampler: RolloutSampler, checkpoint: Path, wanted: str, *, device: str, shards_facts: Mapping[str, Any]
    ) -> None:
        self._sampler, self._checkpoint, self._wanted = sampler, checkpoint, wanted
        self._device, self._shards_facts = device, shards_facts

    def to(self, prompts: Sequence[Prompt], names: Sequence[str]) -> list[Group]:
        """Return the answers to the prompts."""
        return self._sampler.sample(self._model, prompts, names)

    @cached_property
    def _model(self) -> LanguageModel:
        with hold(self._checkpoint):
            model, found = load_model(self._checkpoint, device=self._device, shards_facts=self._shards_facts)
        if found.weights_sha256 != self._wanted:
            raise UserError(
                f"{self._checkpoint}: found weights with sha256 {found.weights_sha256}, need {self._wanted}: it was "
                "written anew meanwhile; run again to start from what is there now"
            )
        return model

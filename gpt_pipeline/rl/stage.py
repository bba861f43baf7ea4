"""The stage `rl_prompts`: which questions the start weights answer sometimes right and sometimes wrong.

The others teach nothing: where all answers are worth the same, none is better than another. Each chunk of measured
questions is written when it is done, so that a killed run goes on behind it.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.data.stage import PlacedStage, prepare_stage
from gpt_pipeline.errors import DataError
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.prompts import HELD_OUT, TRAINING, Prompt, write_prompts
from gpt_pipeline.rl.rewards import REWARDS_VERSION
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.storage.fingerprint import fingerprint, identity_of
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, record_file, stage_folder

if TYPE_CHECKING:
    from gpt_pipeline.rl.candidates import Candidates
    from gpt_pipeline.rl.rollouts import Group

Answer = Callable[[Sequence[Prompt], Sequence[str]], "list[Group]"]
"""Gives answers of the start weights to questions, by draws with these names."""

NAME = "rl_prompts"
PROMPTS_VERSION = "1"
"""Raise it when the same data and weights give other questions, or the same questions other answers."""

_CHUNK = 16  # questions measured between two looks at the disk
_MEASURED = "measured"  # their results, until the stage is finished
_logger = logging.getLogger(__name__)


def prompts_identity(config: RlConfig) -> dict[str, Any]:
    """Return what decides how questions are chosen and answers judged, besides data, weights, seed and length."""
    keys = ("candidates", "samples_per_prompt", "max_new_tokens", "temperature", "top_k")
    return {**identity_of(config, *keys), "versions": [PROMPTS_VERSION, REWARDS_VERSION]}


@dataclass(frozen=True, kw_only=True)
class PromptsStage(PlacedStage):
    """The stage, by all that decides it."""

    config: RlConfig
    seed: int
    max_length: int
    """Tokens of question and answer together, at most."""

    shards_fingerprint: str
    weights_sha256: str
    data_folder: Path

    @property
    def name(self) -> str:
        return NAME

    @property
    def identity(self) -> dict[str, Any]:
        """What is computed, besides shards and weights."""
        return {**prompts_identity(self.config), "seed": self.seed, "max_length": self.max_length}

    def place(self) -> tuple[Path, str]:
        """Return the stage's folder and fingerprint."""
        upstream = [self.shards_fingerprint, self.weights_sha256]
        found = fingerprint(NAME, config=self.identity, upstream=upstream, code_version=PROMPTS_VERSION)
        return stage_folder(self.data_folder, NAME, found), found

    def prepare(
        self,
        candidates: Callable[[], Candidates],
        answer: Answer,
        *,
        force: bool = False,
        say: Say = _logger.info,
    ) -> StageResult:
        """Return the finished stage, measuring `candidates` by the answers of the start weights if it is not finished.

        Raises:
            DataError: there is no question to train on, or none to measure with.
        """
        folder, wanted = self.place()

        def make() -> Manifest:
            if force and finished(folder, wanted) is not None:  # what a kill behind its manifest left is not asked anew
                shutil.rmtree(folder / _MEASURED, ignore_errors=True)
            return self._make(candidates(), answer, say)

        stage = prepare_stage(folder, wanted, force=force, say=say, make=make)
        if not stage.reused:  # only now: before its manifest is written, what was measured is all there is
            shutil.rmtree(folder / _MEASURED, ignore_errors=True)
        return stage

    def _make(self, candidates: Candidates, answer: Answer, say: Say) -> Manifest:
        folder, wanted = self.place()
        require_candidates(candidates)
        measured = _measured(folder / _MEASURED, candidates.training, answer, seed=self.seed, say=say)
        kept = [prompt for prompt in measured if 0 < (prompt.pass_rate or 0) < 1]
        facts = _facts(candidates, measured, kept)
        _require_kept(facts)
        write_prompts(folder / TRAINING, kept)
        write_prompts(folder / HELD_OUT, candidates.held_out)
        say(
            f"{len(kept):,} of {len(measured):,} questions are answered sometimes right and sometimes wrong by the "
            f"start weights: pass@1 {facts['pass_at_1']:.3f}, pass@{self.config.samples_per_prompt} "
            f"{facts['pass_at_k']:.3f}"
        )
        return Manifest(
            stage=NAME,
            fingerprint=wanted,
            config=self.identity,
            upstream=(self.shards_fingerprint, self.weights_sha256),
            files={name: record_file(folder / name) for name in (TRAINING, HELD_OUT)},
            facts=facts,
        )


def _measured(chunks: Path, prompts: Sequence[Prompt], answer: Answer, *, seed: int, say: Say) -> list[Prompt]:
    """Return the prompts with their pass rates; those of chunks that lie in `chunks` are read."""
    rates: list[float] = []
    for first in range(0, len(prompts), _CHUNK):
        path, some = chunks / f"{first:06d}.json", prompts[first : first + _CHUNK]
        found = read_kept(path, partial(_rates_of, count=len(some)), otherwise="its questions are answered again")
        if found is None:
            groups = answer(some, [f"{seed}/candidate/{first + place}" for place in range(len(some))])
            found = [sum(each.reward > 0 for each in samples) / len(samples) for _, samples in groups]
            chunks.mkdir(parents=True, exist_ok=True)
            write_json(path, {"pass_rates": found})
            say(f"{first + len(some):,} of {len(prompts):,} questions answered by the start weights")
        rates += found
    return [dataclasses.replace(prompt, pass_rate=rate) for prompt, rate in zip(prompts, rates, strict=True)]


def _rates_of(value: Mapping[str, Any], *, count: int) -> list[float]:
    rates = [float(rate) for rate in value["pass_rates"]]
    if len(rates) != count:
        raise ValueError(f"found {len(rates)} pass rates, need {count}")
    return rates


def _facts(candidates: Candidates, measured: Sequence[Prompt], kept: Sequence[Prompt]) -> dict[str, Any]:
    rates = [prompt.pass_rate or 0.0 for prompt in measured]
    return {
        "candidates": len(measured),
        "prompts": len(kept),
        "never_right": sum(rate == 0 for rate in rates),
        "always_right": sum(rate == 1 for rate in rates),
        "pass_at_1": sum(rates) / len(rates),
        "pass_at_k": sum(rate > 0 for rate in rates) / len(rates),
        "held_out": len(candidates.held_out),
        "left_out": dict(candidates.left_out),
    }


def require_candidates(candidates: Candidates) -> None:
    """Raise DataError unless there is a question on each side."""
    reasons = ", ".join(f"{name} {count:,}" for name, count in candidates.left_out.items()) or "no documents"
    checks = "a number, an option or a short text as the expected answer (SYNTH's result:..., data.columns.result)"
    if not candidates.training:
        raise DataError(
            f"found no training-side question whose answer can be checked ({reasons}); need {checks}, and "
            "room for question and rl.max_new_tokens within data.max_length"
        )
    if not candidates.held_out:
        raise DataError(
            f"found no held-out question whose answer can be checked; need {checks} there too: raise "
            "data.validation_fraction or data.num_samples"
        )


def _require_kept(facts: dict[str, Any]) -> None:
    if not facts["prompts"]:
        further = (
            "Train the model to start from further, or raise rl.candidates, rl.samples_per_prompt or, where answers "
            "are cut off, rl.max_new_tokens"
        )
        harder = "Take harder questions, or raise rl.temperature or rl.samples_per_prompt"
        raise DataError(
            f"found none of {facts['candidates']:,} questions that the start weights answer sometimes right and "
            f"sometimes wrong ({facts['never_right']:,} never right, {facts['always_right']:,} always), need one at "
            f"least: there is nothing to sharpen. {further if facts['never_right'] else harder}"
        )

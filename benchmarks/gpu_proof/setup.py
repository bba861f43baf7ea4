"""On what is measured, and how large."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda_step import tiny_settings
from benchmarks.steps import StepSettings
from gpt_pipeline.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all parts share."""

    step: StepSettings
    """An update: GPT-2 124M, T = 1,024, 524,288 tokens; or a tiny one."""

    tiny: bool
    scratch: Path
    """For what is large and may be lost: shards and trainings. Trainings of part 7 go on from there."""

    shards: Path | None
    """A finished token_shards stage for part 7; None: bytes of text that lies on this machine."""

    recipe_seconds: float
    """Of training, for each recipe."""

    turns: int
    """Of contestants."""

    steps: int
    """In a turn."""

    deadline: float
    """By `time.monotonic`: what can go on in another call stops then."""

    stack: ExitStack
    """Closed at the end of the call."""

    @property
    def device(self) -> str:
        """Its kind, such as `cuda`."""
        return self.step.device

    def folder(self, name: str) -> Path:
        """Return a folder of the scratch space, made if it is not there."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def full_step(device: str, *, micro_batch_size: int) -> StepSettings:
    """Return the step that the project is for."""
    return StepSettings(
        model=ModelConfig(qkv_bias=True, dropout=0.1),
        sequences=512,
        micro_batch_size=micro_batch_size,
        length=1024,
        compile="auto",
        device=device,
    )


def tiny_step() -> StepSettings:
    """Return one that goes through everything on a CPU within minutes."""
    model = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64, vocab_size=512, dropout=0.1)
    return dataclasses.replace(tiny_settings(), model=model)

"""One step of our trainer, as the training loop makes it, and the settings that all contestants share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.contest import Step
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig, step_layout
from gpt_pipeline.training.device import choose_compute, prepare_process
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.update import Updater

BETAS, WEIGHT_DECAY, LEARNING_RATE, CLIP = (0.9, 0.95), 0.1, 6e-4, 1.0


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What one step computes, the same for every contestant."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(qkv_bias=True))
    """With the biases of the published GPT-2, which transformers' model always has."""

    sequences: int = 2
    """In one update."""

    micro_batch_size: int | None = None
    length: int = 512
    """Tokens of a sequence."""

    precision: str = "auto"
    compile: bool | str = "auto"
    device: str = "cpu"
    threads: int | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = False
    without: str = ""
    """A technique to leave out, where a benchmark knows how."""

    @property
    def tokens(self) -> int:
        """Tokens of one update."""
        return self.sequences * self.length

    def training(self) -> TrainingConfig:
        """Return the same for our trainer."""
        return TrainingConfig(
            batch_size=self.sequences,
            micro_batch_size=self.micro_batch_size,
            max_steps=1_000_000,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            gradient_clip=CLIP,
            precision=self.precision,  # type: ignore[arg-type]
            compile=self.compile,  # type: ignore[arg-type]
            gradient_checkpointing=self.gradient_checkpointing,
            deterministic=self.deterministic,
        )

    def layout(self) -> StepLayout:
        return step_layout(self.training(), max_length=self.length, steps_per_epoch=1, world_size=1)

    def use_threads(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step, int64 [sequences, length]: random, as speed does not depend on them."""
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, self.model.vocab_size, (self.sequences, self.length + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def make_updater(settings: StepSettings) -> Updater:
    """Return our trainer's updater on the device and in the way that the trainer would choose."""
    settings.use_threads()
    training = settings.training()
    compute = choose_compute(HardwareConfig(device=settings.device), training, ranks=Ranks(), say=print)  # type: ignore[arg-type]
    prepare_process(compute)
    torch.manual_seed(0)
    model = make_model(settings.model).to(compute.device)
    return Updater(model, training, layout=settings.layout(), compute=compute, ranks=Ranks(), say=print)


def make_ours(settings: StepSettings) -> Step:
    """Return a step of our trainer."""
    updater = make_updater(settings)
    step = 0

    def update() -> float:
        nonlocal step
        step += 1
        device = updater.model.head_weight.device
        inputs, targets = (part.to(device, non_blocking=True) for part in settings.batch(step))
        return updater.update(step, Batch(inputs, targets)).result().train_loss

    return update

"""Which checkpoints are served, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt_pipeline.checkpoints.choose import BEST, choose_checkpoint
from gpt_pipeline.checkpoints.load import Weights
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.export import trained_length
from gpt_pipeline.experiment.document import SUFFIXES
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.serving.chat import ChatForm
from gpt_pipeline.writing import Writer


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A checkpoint that was named for serving; nothing of it is loaded yet."""

    name: str
    """`my-idea` for the best checkpoint of `my-idea.yaml`, `my-idea@step_500` for another one."""

    experiment: Experiment
    checkpoint: CheckpointInfo


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that answers."""

    name: str
    experiment: Experiment
    writer: Writer
    chat: ChatForm | None
    """None for a model of texts without questions, which can only continue a text."""

    @property
    def fingerprint(self) -> str:
        """Names the weights."""
        return f"fp_{self.writer.checkpoint.weights_sha256[:12]}"

    @property
    def created(self) -> int:
        """When the checkpoint was written, in seconds since 1970."""
        return int(datetime.fromisoformat(self.writer.checkpoint.created_at).timestamp())

    @property
    def step(self) -> int:
        return self.writer.checkpoint.step

    @property
    def reasons(self) -> bool:
        return self.chat is not None and self.chat.reasons


def find_wanted(arguments: Sequence[str]) -> list[Wanted]:
    """Return the checkpoints that `FILE.yaml`, for its best, and `FILE.yaml@CHECKPOINT` name.

    Raises:
        UserError: there is no such experiment or checkpoint, or two have the same name.
    """
    found = [_wanted(argument) for argument in arguments]
    for place, wanted in enumerate(found):
        same = next((other for other in found[:place] if other.name == wanted.name), None)
        if same is not None:
            raise UserError(
                f"found two models of the name {wanted.name} ({same.experiment.file} and {wanted.experiment.file}), "
                "need different ones; name each checkpoint once, or rename one of the files"
            )
    return found


def load_served(wanted: Wanted, *, device: str | None, weights: Weights) -> Served:
    """Return the model of a checkpoint, on `device` or that of its experiment.

    Raises:
        UserError: as `Writer.of_checkpoint`.
    """
    experiment = wanted.experiment
    writer = Writer.of_checkpoint(
        wanted.checkpoint.path,
        device=device or experiment.config.hardware.device_here,
        trained_length=trained_length(experiment, wanted.checkpoint),
        weights=weights,
    )
    return Served(
        name=wanted.name,
        experiment=experiment,
        writer=writer,
        chat=ChatForm.of(experiment.config.data, writer.tokenizer),
    )


def _wanted(argument: str) -> Wanted:
    file, checkpoint = _split(argument)
    if file.suffix == ".pt":
        raise UserError(
            f"found the checkpoint {argument}, need its experiment, which says how it was trained to be asked: "
            f"FILE.yaml@{file.name}"
        )
    experiment = load_experiment(file.absolute())
    stem = file.stem
    return Wanted(
        name=stem if checkpoint == BEST else f"{stem}@{checkpoint}",
        experiment=experiment,
        checkpoint=choose_checkpoint(experiment.folder.checkpoints, checkpoint, if_none=experiment.way_to_checkpoints),
    )


def _split(argument: str) -> tuple[Path, str]:
    file, at, checkpoint = argument.rpartition("@")
    if at and Path(file).suffix in SUFFIXES and not Path(argument).exists():
        return Path(file), checkpoint
    return Path(argument), BEST

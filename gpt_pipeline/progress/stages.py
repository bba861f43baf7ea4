"""How far each data stage is, read from the folders alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.stage import Part
from gpt_pipeline.data.tokens.choose import shards_stage
from gpt_pipeline.data.tokens.mixed import MixedShardsStage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import prompts_stage
from gpt_pipeline.rl.stage import NAME as PROMPTS
from gpt_pipeline.rl.stage import PromptsStage
from gpt_pipeline.storage.lock import is_locked
from gpt_pipeline.storage.manifest import StageResult, damaged_sizes

State = Literal["finished", "partly", "absent"]


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """How far one data stage is."""

    name: str
    part: str = ""
    """The part of a mix that it belongs to; empty without a mix."""

    state: State
    files_done: int
    """Source files whose part is finished."""

    files: int | None
    """Source files that the stage needs; None where that is only known while it runs."""

    size: int
    """Bytes in the experiment's data folder."""

    folder: Path | None
    """Where the finished stage lies."""

    note: str = ""

    @property
    def label(self) -> str:
        """The stage's name for a person."""
        return f"{self.part}: {self.name}" if self.part else self.name


SeenParts = dict[tuple[str, Path], tuple[StageProgress, ...]]
"""What `part_progress` found by data block and folder, for one look at experiments that may share their data."""


def data_progress(experiment: Experiment, seen: SeenParts | None = None) -> tuple[StageProgress, ...]:
    """Return what training is made of, in order, part after part of a mix; uses no network, reads no file's content.

    `seen`: what is in it is not looked at again, and what is looked at is added to it.
    """
    seen = {} if seen is None else seen
    stages: tuple[StageProgress, ...] = ()
    for name, part in experiment.parts.items():
        key = repr(part.data), part.data_folder
        if key not in seen:
            seen[key] = part_progress(part)
        stages += tuple(replace(stage, part=name) for stage in seen[key])
    if experiment.config.data.mix is not None:
        mixed = shards_stage(experiment.data, experiment.data_folder)
        stages = (*stages, _progress(mixed, list, ready=stages[0]))
    return (*stages, _prompts_progress(experiment, ready=stages[0])) if experiment.config.has_rollouts else stages


def _prompts_progress(experiment: Experiment, *, ready: StageProgress) -> StageProgress:
    try:
        stage = prompts_stage(experiment)
    except UserError:  # the weights to begin with cannot be had, which `start_in_words` says
        stage = None
    if stage is None:
        return StageProgress(name=PROMPTS, state="absent", files_done=0, files=None, size=0, folder=None)
    return _progress(stage, list, ready=ready)


def part_progress(experiment: Experiment) -> tuple[StageProgress, ...]:
    """Return the data stages of one of `Experiment.parts`."""
    data, folder = experiment.data, experiment.data_folder
    shards = ShardsStage(config=data, data_folder=folder)
    documents = DocumentsStage(config=data, data_folder=folder)
    documents_result = documents.find()
    raw = _raw_progress(RawStage(config=data, data_folder=folder), is_used_up=documents_result is not None)
    return (
        raw,
        _progress(documents, lambda: [each.part for each in documents.parts()], ready=raw),
        *([_progress(shards.tokenizer, list, ready=raw)] if shards.tokenizer.is_made else []),
        _progress(
            shards,
            lambda: [each.part for each in shards.parts()] if _can_be_made(shards, documents_result) else [],
            ready=raw,
        ),
    )


def _can_be_made(shards: ShardsStage, documents: StageResult | None) -> bool:
    return documents is not None and shards.tokenizer.identity is not None


def _raw_progress(stage: RawStage, *, is_used_up: bool) -> StageProgress:
    found = stage.find()
    known = found or stage.known()
    if known is not None and (found is not None or is_used_up):
        away = "" if found is not None else "files are gone; not needed, since what was made from them is finished"
        count = len(known.manifest.facts["files"])
        return StageProgress(
            name=stage.name, state="finished", files_done=count, files=count, size=0, folder=known.folder, note=away
        )
    ready = len(stage.ready())
    return StageProgress(
        name=stage.name, state="partly" if ready else "absent", files_done=ready, files=None, size=0, folder=None
    )


def _progress(
    stage: DocumentsStage | TokenizerStage | ShardsStage | MixedShardsStage | PromptsStage,
    parts: Callable[[], Sequence[Part]],
    *,
    ready: StageProgress,
) -> StageProgress:
    known = stage.known()
    damage = None if known is None else next(damaged_sizes(known), None)
    if known is not None and damage is None:
        count = len(known.manifest.files)
        size = sum(record.size for record in known.manifest.files.values())
        return StageProgress(
            name=stage.name, state="finished", files_done=count, files=count, size=size, folder=known.folder
        )
    wanted = parts() if ready.folder is not None else []
    made = [found for part in wanted if (found := part.find()) is not None]
    return StageProgress(
        name=stage.name,
        state="partly" if made else "absent",
        files_done=len(made),
        files=len(wanted) or None,
        size=sum(record.size for part in made for record in part.manifest.files.values()),
        folder=None,
        note="being made now" if any(is_locked(part.folder) for part in wanted) else _damage_note(damage),
    )


def _damage_note(damage: str | None) -> str:
    return "" if damage is None else f"damaged: {damage}; the next run makes it again"

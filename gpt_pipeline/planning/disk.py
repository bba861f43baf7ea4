"""What an experiment will write where, against the free space. Sizes are estimates except for what exists already.

Where the constants come from: 2,000,000 English documents of PleIAs/SYNTH are 16 files of the hub, 7.6 GB. Text in
the English parquet takes 0.42 of its bytes (measured on GSM8K's solutions; 0.32 on the sample), at 4.5 bytes of English
text a GPT-2 token. Shards are exact: 2 bytes a token and two int64 a document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.checkpoints.retention import kept_checkpoints
from gpt_pipeline.data.documents.near import bytes_per_document
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.costs import checkpoint_bytes
from gpt_pipeline.planning.survey import is_surveyed, survey
from gpt_pipeline.planning.tokens import TokenCount, documents_per_english
from gpt_pipeline.progress.stages import StageProgress
from gpt_pipeline.rl.stage import NAME as PROMPTS
from gpt_pipeline.storage.room import existing_folder, free_bytes
from gpt_pipeline.training.decision import StartDecision

SYNTH_FILE_BYTES = 7.6e9 / 16
SYNTH_DOCUMENTS_PER_FILE = 2_000_000 / 16
_SAMPLE_FILE_BYTES, _SAMPLE_DOCUMENTS_PER_FILE = 403_000, 7_700  # of the sample's first three files
_ENGLISH_BYTES_PER_TOKEN = 0.42 * 4.5
_SAMPLE_ENGLISH_BYTES_PER_TOKEN = 1.04  # of 16,000 documents of the sample
_INDEX_BYTES_PER_DOCUMENT = 20  # a hash of 16 bytes and a position of 4
_SHARD_BYTES_PER_TOKEN, _SHARD_BYTES_PER_DOCUMENT = 2, 16


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Something that takes disk space."""

    what: str
    folder: Path
    size: int
    """Bytes when it is complete."""

    present: int
    """Bytes of it that exist."""

    is_written: bool = True
    """False for space that only has to be free."""

    @property
    def room(self) -> int:
        """Bytes that must be free for it."""
        return max(0, self.size - self.present)

    @property
    def to_write(self) -> int:
        return self.room if self.is_written else 0


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One disk, with everything that will be written to it."""

    folder: Path
    """The first folder on it that is written to."""

    free: int
    needs: tuple[DiskNeed, ...]

    @property
    def to_write(self) -> int:
        return sum(need.to_write for need in self.needs)

    @property
    def needed(self) -> int:
        """Bytes that must be free: what will be written, and what must stay free besides."""
        return sum(need.room for need in self.needs)


def disks(
    experiment: Experiment,
    tokens: TokenCount,
    stages: Sequence[StageProgress],
    start: StartDecision,
    *,
    checkpoints: int | None,
) -> tuple[Disk, ...]:
    """Return the disks that the experiment writes to, in the order in which they are written.

    `checkpoints` is how many the training has yet to write; None where unknown.

    Raises:
        UserError: one of them does not exist.
    """
    needs = [*_data_needs(experiment, tokens, stages), *_checkpoint_needs(experiment, start, checkpoints)]
    by_disk: dict[int, list[DiskNeed]] = {}
    for need in needs:
        by_disk.setdefault(existing_folder(need.folder).stat().st_dev, []).append(need)
    return tuple(
        Disk(folder=own[0].folder, free=free_bytes(own[0].folder), needs=tuple(own)) for own in by_disk.values()
    )


def _data_needs(experiment: Experiment, tokens: TokenCount, stages: Sequence[StageProgress]) -> list[DiskNeed]:
    """Return what data stages write; the shards of a mix are links to those of its parts, but for a little.

    The questions of a training by rewards take next to nothing.
    """
    of_data = [each for each in stages if each.name != PROMPTS]
    return [
        need
        for name, part in experiment.parts.items()
        for need in _part_needs(part, tokens.parts.get(name, tokens), [each for each in of_data if each.part == name])
    ]


def _part_needs(experiment: Experiment, tokens: TokenCount, stages: Sequence[StageProgress]) -> list[DiskNeed]:
    raw, documents, *_, shards = stages  # the tokenizer takes next to nothing
    folder = experiment.data_folder
    sample = experiment.data.is_sample
    per_token = _SAMPLE_ENGLISH_BYTES_PER_TOKEN if sample else _ENGLISH_BYTES_PER_TOKEN
    sizes = {
        documents.name: per_token * tokens.tokens,
        shards.name: _SHARD_BYTES_PER_TOKEN * tokens.tokens + _SHARD_BYTES_PER_DOCUMENT * tokens.documents,
    }
    by_document = {"document index": _INDEX_BYTES_PER_DOCUMENT}
    if (threshold := experiment.data.near_duplicates) is not None:
        by_document["signatures of near duplicates"] = bytes_per_document(threshold)
    indexes = {what: each * tokens.documents for what, each in by_document.items()}
    return [
        *_raw_needs(experiment, raw, tokens),
        *(
            DiskNeed(what=what, folder=folder, size=size, present=size if raw.state == "finished" else 0)
            for what, size in indexes.items()
        ),
        *(_stage_need(stage, folder, round(sizes[stage.name])) for stage in (documents, shards)),
    ]


def _raw_needs(experiment: Experiment, raw: StageProgress, tokens: TokenCount) -> list[DiskNeed]:
    """Return the raw files, and on the hub's disk the space that downloads leave free; nothing for a local folder."""
    if raw.state == "finished" or experiment.data.local is not None:
        return []
    if experiment.data.is_sample:
        files = math.ceil(tokens.documents / _SAMPLE_DOCUMENTS_PER_FILE)
        size, present = files * _SAMPLE_FILE_BYTES, raw.files_done * _SAMPLE_FILE_BYTES
        return [DiskNeed(what=f"{raw.name} (written)", folder=experiment.data_folder, size=size, present=present)]
    from gpt_pipeline.data.sources.hub import Hub
    from gpt_pipeline.data.sources.hub.dataset import SPARE_BYTES

    documents_per_file, file_bytes = _hub_files(experiment)
    files = math.ceil(tokens.documents / documents_per_file)
    size, present = round(files * file_bytes), round(raw.files_done * file_bytes)
    cache = Hub().cache
    return [
        DiskNeed(what=f"{raw.name} (download)", folder=cache, size=size, present=present),
        DiskNeed(what="left free by downloads", folder=cache, size=SPARE_BYTES, present=0, is_written=False),
    ]


def _hub_files(experiment: Experiment) -> tuple[float, float]:
    """Return the documents of one of the hub's files, and its bytes: those of SYNTH where nothing is known of them."""
    try:
        held = survey(experiment.data, experiment.data_folder) if is_surveyed(experiment.data) else None
    except UserError:  # a finding says it
        held = None
    if held is None or not held.documents:
        return SYNTH_DOCUMENTS_PER_FILE * documents_per_english(experiment.data), SYNTH_FILE_BYTES
    return held.documents / held.files, held.size / held.files


def _stage_need(stage: StageProgress, folder: Path, estimate: int) -> DiskNeed:
    finished = stage.state == "finished"
    return DiskNeed(what=stage.name, folder=folder, size=stage.size if finished else estimate, present=stage.size)


def _checkpoint_needs(experiment: Experiment, start: StartDecision, to_come: int | None) -> list[DiskNeed]:
    """Return the checkpoints on disk at the same time; those of an earlier training stay in `previous/`.

    A training that writes fewer than it may keep checks for the space of all of them when it starts.
    """
    config, folder = experiment.config, experiment.folder.checkpoints
    training = config.training
    each = checkpoint_bytes(config.model, training.optimizer, averaged=training.average_weights.is_wanted)
    present = 0 if start.kind in ("anew", "weights") else len(list_checkpoints(folder))
    if start.kind == "finished":
        return [DiskNeed(what="checkpoints", folder=folder, size=present * each, present=present * each)]
    wanted = max(kept_checkpoints(config.evaluation.keep_last), present + 1)
    kept = wanted if to_come is None else min(wanted, present + to_come + 1)  # one for the best
    spare = DiskNeed(
        what="left free by checkpoints", folder=folder, size=(wanted - kept) * each, present=0, is_written=False
    )
    written = DiskNeed(what=f"{kept} checkpoints", folder=folder, size=kept * each, present=present * each)
    return [*([spare] if spare.size else []), written]

"""Every byte of the finished data against what its manifests say."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import files_of, find_raw, raw_files
from gpt_pipeline.data.documents.stage import find_documents
from gpt_pipeline.data.formats import stage_names
from gpt_pipeline.data.stage import Say
from gpt_pipeline.data.tokens.shards import find_shards
from gpt_pipeline.data.tokens.stream import Positions, TokenStream, open_shards
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.errors import DamagedFileError, DataError, UserError
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import StageResult, verify

_logger = logging.getLogger(__name__)
_CHUNK = 16 << 20  # tokens looked at at a time: 32 MB


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found of one stage."""

    stage: str
    folder: Path | None
    """Null where the stage is not finished."""

    problem: str | None
    """What is wrong and what to do about it; null if nothing is."""


def verify_data(config: DataConfig, data_folder: Path, *, say: Say = _logger.info) -> list[Verified]:
    """Read all files of the finished data stages and return what was found, a line a stage."""
    stages: list[tuple[StageResult | None, Callable[[StageResult], None]]] = [
        (find_raw(config, data_folder), lambda stage: _verify_raw(config, stage)),
        (find_documents(config, data_folder), verify),
        (find_shards(config, data_folder), _verify_shards),
    ]
    found = []
    for name, (stage, check) in zip(stage_names(config).all, stages, strict=True):
        if stage is not None:
            say(f"reading {name} in {stage.folder}")
        problem = "not finished" if stage is None else _problem(stage, check)
        found.append(Verified(stage=name, folder=None if stage is None else stage.folder, problem=problem))
    return found


def _problem(stage: StageResult, check: Callable[[StageResult], None]) -> str | None:
    try:
        check(stage)
    except UserError as error:
        return str(error)
    return None


def _verify_raw(config: DataConfig, raw: StageResult) -> None:
    """Raise unless the raw files still have their checksums, and so have the lists of repeated documents."""
    verify(raw)
    paths = raw_files(config, raw)
    for file in files_of(raw):
        found = sha256_of(paths[file.name])
        if found != file.sha256:
            raise DamagedFileError(
                f"{paths[file.name]}: found sha256 {found}, need {file.sha256}; bring the file here again, "
                f"or materialize {stage_names(config).raw} with force if it was meant to change"
            )


def _verify_shards(stage: StageResult) -> None:
    """Raise unless the shards are intact and their sidecars fit the tokens."""
    verify(stage)
    shards = open_shards(stage.folder)
    for stream in (shards.train, shards.validation):
        for name in stream.names:
            _verify_shard(stage.folder / name)


def _verify_shard(path: Path) -> None:
    shard = TokenStream(path.parent, (path.name,))
    starts, answers = shard.document_starts, shard.answer_starts
    found = np.concatenate([np.empty(0, np.int64), *_positions_of_eot(shard)])
    if not np.array_equal(found, starts):
        raise DataError(
            f"{path}: found {len(found)} documents, in its sidecar {len(starts)}, or at other places; "
            "delete its folder and run again"
        )
    ends = np.append(starts[1:], shard.n_tokens)
    if len(answers) != len(starts) or not ((starts < answers) & (answers < ends)).all():
        raise DataError(f"{path}: answers lie outside their documents; delete its folder and run again")


def _positions_of_eot(stream: TokenStream) -> Iterator[Positions]:
    for first, last in itertools.pairwise([*range(0, stream.n_tokens, _CHUNK), stream.n_tokens]):
        yield first + np.flatnonzero(stream.read(first, last - first) == EOT_TOKEN)

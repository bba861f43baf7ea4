"""Every byte of the finished data against what its manifests say."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import RawStage, files_of
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.file_kinds import TEXT_LIST, kind_of
from gpt_pipeline.data.formats import shards_name, stage_names
from gpt_pipeline.data.sources.text_lists import gone_of, listed_files
from gpt_pipeline.data.tokens.choose import shards_stage
from gpt_pipeline.data.tokens.shards import ShardsStage
from gpt_pipeline.data.tokens.stream import Positions, TokenStream, open_shards
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
from gpt_pipeline.errors import DamagedFileError, DataError, UserError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import MANIFEST_NAME, StageResult, has_damaged_manifest, recorded, verify

_logger = logging.getLogger(__name__)
_CHUNK = 16 << 20  # tokens looked at at a time: 32 MB


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found of one stage."""

    stage: str
    folder: Path | None
    """Null where there is nothing to compare, which is no damage."""

    problem: str | None
    """What is wrong and what to do about it, or why nothing was compared; null if all is as it was made."""

    @property
    def is_damaged(self) -> bool:
        return self.folder is not None and self.problem is not None


def verify_data(config: DataConfig, data_folder: Path, *, say: Say = _logger.info) -> list[Verified]:
    """Read all files of the data stages that were finished and return what was found, a line a stage.

    A stage counts by its manifest, whatever has become of its files, and of those that it was made of.
    """
    if config.mix is None:
        return _verify_part(config, data_folder, say)
    of_parts = [
        replace(each, stage=f"{name}: {each.stage}")
        for name, part in config.parts.items()
        for each in _verify_part(part, data_folder, say)
    ]
    mixed = _Made.at(shards_stage(config, data_folder).place())
    return [*of_parts, _verified(shards_name(config), mixed, _verify_shards, say)]


def _verify_part(config: DataConfig, data_folder: Path, say: Say) -> list[Verified]:
    raw_stage = RawStage(config=config, data_folder=data_folder)
    raw = _Made.at(raw_stage.last_place())
    documents = _Made.after(raw, lambda given: DocumentsStage(config=config, data_folder=data_folder, given_raw=given))

    def shards_of(given: StageResult) -> ShardsStage:
        return ShardsStage(config=config, data_folder=data_folder, given_documents=given)

    tokenizer = _Made.after(documents, lambda given: shards_of(given).tokenizer)
    shards = _Made.after(documents, shards_of)
    checks: list[Callable[[StageResult], None]] = [
        lambda stage: _verify_raw(raw_stage, stage, are_needed=documents.result is None),
        verify,
        *([verify] if stage_names(config).has_tokenizer else []),
        _verify_shards,
    ]
    made = [raw, documents, *([tokenizer] if stage_names(config).has_tokenizer else []), shards]
    stages = zip(stage_names(config).all, made, checks, strict=True)
    return [_verified(name, made, check, say) for name, made, check in stages]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a manifest says of a stage."""

    folder: Path | None = None
    """Where the stage lies, or would."""

    result: StageResult | None = None

    @classmethod
    def at(cls, place: tuple[Path, str] | None) -> _Made:
        return cls() if place is None else cls(folder=place[0], result=recorded(*place))

    @classmethod
    def after(
        cls, upstream: _Made, stage: Callable[[StageResult], DocumentsStage | TokenizerStage | ShardsStage]
    ) -> _Made:
        """Return what is said of the stage that is made of `upstream`."""
        return cls() if upstream.result is None else cls.at(stage(upstream.result).place())


def verify_files(name: str, place: tuple[Path, str] | None, *, say: Say = _logger.info) -> Verified:
    """Read all files of another stage, by its folder and fingerprint; None where these are not known yet."""
    return _verified(name, _Made.at(place), verify, say)


class _NothingToCompareError(UserError):
    """Files that were made for something, and may be gone since that is finished."""


def _verified(name: str, made: _Made, check: Callable[[StageResult], None], say: Say) -> Verified:
    if made.result is None:
        is_damaged = made.folder is not None and has_damaged_manifest(made.folder)
        problem = f"{made.folder}: its {MANIFEST_NAME} is damaged; run again" if is_damaged else "not finished"
        return Verified(stage=name, folder=made.folder if is_damaged else None, problem=problem)
    say(f"reading {name} in {made.result.folder}")
    try:
        check(made.result)
    except _NothingToCompareError as error:
        return Verified(stage=name, folder=None, problem=str(error))
    except UserError as error:
        return Verified(stage=name, folder=made.result.folder, problem=str(error))
    return Verified(stage=name, folder=made.result.folder, problem=None)


def _verify_raw(stage: RawStage, raw: StageResult, *, are_needed: bool) -> None:
    """Raise unless the raw files still have their checksums, and so have the lists of repeated documents."""
    verify(raw)
    places = stage.places(raw)
    remedy = f"bring the file here again, or materialize {stage.name} with force if it was meant to change"
    gone = [name for name, path in places.items() if path is None]
    for file in files_of(raw):
        path = places[file.name]
        if path is not None and (found := sha256_of(path)) != file.sha256:
            raise DamagedFileError(f"{path}: found sha256 {found}, need {file.sha256}; {remedy}")
        if path is not None and kind_of(path.name) == TEXT_LIST:
            texts_gone = gone_of(path)
            gone += texts_gone
            if not texts_gone:
                deque(listed_files(path), maxlen=0)  # raises if one of its texts is another
    if gone:
        which = f"{', '.join(gone[:3])}{', ...' if gone[3:] else ''}"
        if are_needed:
            raise DamagedFileError(f"{len(gone)} of the raw files are gone ({which}); run again")
        raise _NothingToCompareError(f"gone: {which}; not needed, since what was made from it is finished")


def _verify_shards(stage: StageResult) -> None:
    """Raise unless the shards are intact and their sidecars fit the tokens."""
    verify(stage)
    shards = open_shards(stage.folder)
    for stream in (shards.train, shards.validation):
        for name in stream.names:
            _verify_shard(stage.folder / name, stream.eot_token)


def _verify_shard(path: Path, eot_token: int) -> None:
    shard = TokenStream(path.parent, (path.name,), eot_token=eot_token)
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
        yield first + np.flatnonzero(stream.read(first, last - first) == stream.eot_token)

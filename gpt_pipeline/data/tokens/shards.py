"""The documents' tokens as shards, split by article. Reading them needs `stream.py` only."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.data.config import ADDED_TURNS, CHATML, CHATML_SUFFIX, DataConfig, SharedTokenizerConfig
from gpt_pipeline.data.stage import Part, PlacedStage, finish_stage, grouped, intact_parts, needs_nothing, prepare
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME, TRAIN, VALIDATION, shard_name
from gpt_pipeline.data.tokens.tokenizer import TOKENIZER_ID, Tokenizer, added_turns, with_turns
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import link_or_copy
from gpt_pipeline.storage.fingerprint import fingerprint, identity_of
from gpt_pipeline.storage.manifest import Manifest, StageResult, not_finished, stage_folder, verify

if TYPE_CHECKING:
    from gpt_pipeline.data.tokens.encoder import Encoders

STAGE = "token_shards"
CODE_VERSION = "2"
_KIND = "document_tokens"
_THREADS = 2  # that encode one file: more would wait for its reading, and other files are done beside it
_SPLITS = (TRAIN, VALIDATION)
_logger = logging.getLogger(__name__)


def prepare_shards(
    config: DataConfig, documents: StageResult, data_folder: Path, *, force: bool = False, say: Say = _logger.info
) -> StageResult:
    """Return the finished stage: the tokens of every document of `documents`, each after an `<|endoftext|>`.

    Raises:
        ConfigError: no document is held out, or the rest is shorter than one sequence of `max_length` tokens.
        DamagedFileError: a file of documents is not the one that its manifest describes.
    """
    stage = ShardsStage(config=config, data_folder=data_folder, given_documents=documents)
    if stage.tokenizer.is_made:
        prepare(stage.tokenizer, say=say)
    return prepare(stage, force=force, say=say)


@dataclass(frozen=True, kw_only=True)
class TokenizedFile:
    """A file of documents and the part that holds its tokens."""

    name: str
    """Of the raw file that its documents come from."""

    file: str
    """Name in the folder of the stage of documents."""

    size: int
    """Bytes."""

    part: Part


@dataclass(frozen=True, kw_only=True)
class ShardsStage(PlacedStage):
    """The stage token_shards; a part is the tokens of one file of documents."""

    config: DataConfig
    data_folder: Path
    given_documents: StageResult | None = None
    """The finished english_parquet; null: the one that the configuration names."""

    @property
    def name(self) -> str:
        return STAGE

    @cached_property
    def tokenizer(self) -> TokenizerStage:
        """The stage of the tokenizer."""
        is_shared = isinstance(self.config.tokenizer, SharedTokenizerConfig)  # trained on more than these documents
        given = None if self.given_documents is None or is_shared else [(self.given_documents, self.config)]
        return TokenizerStage(config=self.config, data_folder=self.data_folder, given_documents=given)

    @cached_property
    def documents(self) -> StageResult:
        """The stage of documents.

        Raises:
            DataError: it is not finished.
        """
        from gpt_pipeline.data.documents.stage import finished_documents

        return self.given_documents or finished_documents(self.config, self.data_folder)

    @cached_property
    def _encoders(self) -> Encoders:
        from gpt_pipeline.data.tokens.encoder import Encoders  # pyarrow

        tokenizer = self.tokenizer.tokenizer()
        # What stands for ChatML's tokens in other documents is a character of a text like any other.
        return Encoders(with_turns(tokenizer) if self.config.writes_turns else tokenizer)

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while the documents are not known."""
        from gpt_pipeline.data.documents.stage import DocumentsStage

        documents = self.given_documents or DocumentsStage(config=self.config, data_folder=self.data_folder).known()
        if documents is None:
            return None
        tokenizer = self.tokenizer.identity
        if tokenizer is None:
            return None
        wanted = _fingerprint(self.config, documents.fingerprint, tokenizer)
        return stage_folder(self.data_folder, STAGE, wanted), wanted

    def plan(self, *, force: bool, say: Say) -> list[list[str]]:
        """Return the raw files whose documents' tokens are missing, in groups; see `PartedStage`."""
        stage = self.find()
        if not force and needs_nothing(stage, say=say):
            require_a_sequence(self.config, stage.manifest.facts)
            return []
        parts = self.parts()
        if force and self.tokenizer.is_made:
            self.tokenizer.found()  # raises if it is not finished, before anything is begun
        return grouped({each.name: each.size for each in parts if force or each.part.find() is None})

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> dict[str, Any]:
        """Write the tokens of the raw files' documents; see `PartedStage`.

        Raises:
            DamagedFileError: a file is not the one that the manifest describes.
        """
        wanted = set(names)
        made = [self._made(each, say, force=force) for each in self.parts() if each.name in wanted]
        facts = _added([part.manifest.facts for part in made])
        return {**facts, "megabytes": sum(facts[f"{split}_text_bytes"] for split in _SPLITS) / 1e6}

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Put the parts together; see `PartedStage`.

        Raises:
            ConfigError: no document is held out, or the rest is shorter than one sequence of `max_length` tokens.
        """
        wanted = _fingerprint(self.config, self.documents.fingerprint, self._tokenizer_identity)
        folder = stage_folder(self.data_folder, STAGE, wanted)
        stage = finish_stage(folder, wanted, force=force, say=say, make=lambda: self._together(folder, wanted, say))
        require_a_sequence(self.config, stage.manifest.facts)
        return stage

    def parts(self) -> list[TokenizedFile]:
        """Return the files of documents with the parts that hold their tokens, in order."""
        return [
            TokenizedFile(
                name=entry["name"],
                file=entry["file"],
                size=self.documents.manifest.files[entry["file"]].size,
                part=self._part(entry["fingerprint"]),
            )
            for entry in self.documents.manifest.facts["parts"]
        ]

    def part_of(self, documents: Part) -> Part:
        """Return the part that holds the tokens of a part of the documents; the tokenizer has to be known."""
        return self._part(documents.fingerprint)

    @property
    def _tokenizer_identity(self) -> str:
        found = self.tokenizer.identity
        if found is None:
            raise not_finished(self.tokenizer.name, self.data_folder)
        return found

    @property
    def _identity(self) -> dict[str, Any]:
        return _identity(self.config, self._tokenizer_identity)

    def _part(self, documents: str) -> Part:
        identity = fingerprint(_KIND, config=self._identity, upstream=[documents], code_version=CODE_VERSION)
        return Part(kind=_KIND, fingerprint=identity, data_folder=self.data_folder)

    def _made(self, each: TokenizedFile, say: Say, *, force: bool = False) -> StageResult:
        return each.part.prepare(force=force, say=say, make=lambda: self._write(each, say))

    def _write(self, each: TokenizedFile, say: Say) -> Manifest:
        from gpt_pipeline.data.tokens.part import write_token_part

        verify(self.documents, [each.file])
        tokens = write_token_part(
            self.documents.folder / each.file,
            each.part.folder,
            seed=self.config.seed,
            fraction=self.config.validation_fraction,
            threads=min(_THREADS, os.cpu_count() or 1),
            say=say,
            encoders=self._encoders,
        )
        return Manifest(
            stage=_KIND,
            fingerprint=each.part.fingerprint,
            config=self._identity,
            files=tokens.records,
            facts=tokens.facts,
        )

    def _together(self, folder: Path, wanted: str, say: Say) -> Manifest:
        """Link the parts' shards into the stage's folder, numbered through, and return its manifest."""
        wanted_parts = self.parts()
        found = intact_parts([each.part for each in wanted_parts], say=say)
        parts = [part or self._made(each, say) for each, part in zip(wanted_parts, found, strict=True)]
        facts = _added([part.manifest.facts for part in parts])
        _require_documents(self.config, facts)
        files = {}
        for name, part, own in _numbered_through(parts):
            link_or_copy(part.folder / own, folder / name)
            files[name] = part.manifest.files[own]
        documents = facts["train_documents"] + facts["validation_documents"]
        tokens = facts["train_tokens"] + facts["validation_tokens"]
        facts["tokens_per_document"] = tokens / documents
        upstream = [self.documents]
        if self.tokenizer.is_made:
            tokenizer = self.tokenizer.found()
            link_or_copy(tokenizer.folder / TOKENIZER_NAME, folder / TOKENIZER_NAME)
            files |= tokenizer.manifest.files
            facts |= tokenizer_facts(tokenizer)
            upstream.append(tokenizer)
        if self.config.template == CHATML:
            facts |= _chatml_facts(self.tokenizer.tokenizer())
        return Manifest(
            stage=STAGE,
            fingerprint=wanted,
            config=self._identity,
            upstream=tuple(each.fingerprint for each in upstream),
            files=files,
            facts=facts,
        )


def _chatml_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    made = with_turns(tokenizer)
    return {
        "tokenizer": made.identity,
        "vocab_size": made.vocab_size,
        "eot_token": made.eot_token,
        ADDED_TURNS: added_turns(tokenizer),
    }


def has_turns(shards: StageResult) -> bool:
    """Whether shards have the tokens of ChatML."""
    return str(shards.manifest.facts.get("tokenizer", "")).endswith(CHATML_SUFFIX)


def tokenizer_facts(stage: StageResult) -> dict[str, Any]:
    """Return what the facts of a tokenizer, or of shards made with it, say of it; nothing for GPT-2's."""
    facts = stage.manifest.facts
    return {name: facts[name] for name in ("tokenizer", "vocab_size", "eot_token", ADDED_TURNS) if name in facts}


def _fingerprint(config: DataConfig, upstream: str, tokenizer: str = TOKENIZER_ID) -> str:
    return fingerprint(STAGE, config=_identity(config, tokenizer), upstream=[upstream], code_version=CODE_VERSION)


def _identity(config: DataConfig, tokenizer: str) -> dict[str, Any]:
    split = {"validation_fraction": config.validation_fraction, "seed": config.seed}
    return {**split, "tokenizer": tokenizer, **identity_of(config, "template")}


def _numbered_through(parts: Sequence[StageResult]) -> Iterator[tuple[str, StageResult, str]]:
    """Yield each file of the parts as its name in the stage, its part, and its name there."""
    for split in _SPLITS:
        number = 0
        for part in parts:
            for shard in sorted(name for name in part.manifest.files if _is_shard(name, split)):
                number += 1
                stem, own_stem = shard_name(split, number).removesuffix(".bin"), shard.removesuffix(".bin")
                for own in part.manifest.files:
                    if own.startswith(f"{own_stem}."):
                        yield stem + own.removeprefix(own_stem), part, own


def _is_shard(name: str, split: str) -> bool:
    return name.startswith(f"{split}_") and name.endswith(".bin")


def _added(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of counts by name, and within tables and histograms."""
    total: dict[str, Any] = {}
    for own in facts:
        for name, value in own.items():
            if isinstance(value, Mapping):
                total[name] = dict(Counter(total.get(name, {})) + Counter(value))
            elif isinstance(value, list):
                total[name] = [sum(pair) for pair in zip(total.get(name, [0] * len(value)), value, strict=True)]
            else:
                total[name] = total.get(name, 0) + value
    return total


def _require_documents(config: DataConfig, facts: Mapping[str, Any]) -> None:
    for split, remedy in ((VALIDATION, "raise"), (TRAIN, "lower")):
        if facts[f"{split}_documents"] == 0:
            documents = facts["train_documents"] + facts["validation_documents"]
            if documents == 1:
                need = "at least two documents, one of which is held out"
                raise ConfigError("data.num_samples", found=documents, need=need, remedy=config.way_to_two)
            together = "" if config.group is None else f"; documents with one value of {config.group} stay together"
            raise ConfigError(
                "data.validation_fraction",
                found=config.validation_fraction,
                need=f"a share that leaves the {split} split some of the {documents} documents",
                remedy=f"{remedy} data.validation_fraction, set another data.seed, or {config.way_to_more}{together}",
            )


def require_a_sequence(config: DataConfig, facts: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the training split is longer than one sequence."""
    if facts["train_tokens"] <= config.max_length:
        raise ConfigError(
            "data.num_samples",
            found=config.num_samples,
            need=f"enough documents for one sequence of data.max_length={config.max_length} and one more token "
            f"(their training split has {facts['train_tokens']} tokens)",
            remedy=f"{config.way_to_more}, or lower data.max_length or data.validation_fraction",
        )

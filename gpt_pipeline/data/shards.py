"""The documents' tokens as shards, split by article. Reading them needs `token_stream` only."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents import is_held_out
from gpt_pipeline.data.stage import Say, prepare_stage
from gpt_pipeline.data.token_stream import (
    TRAIN,
    VALIDATION,
    ShardFile,
    Tokens,
    TokenShards,
    TokenStream,
    new_shard,
    open_shards,
    shard_name,
    starts_name,
)
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.storage.atomic import atomic_path
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, record_file, stage_folder, utc_now, verify

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TokenShards", "TokenStream", "find_shards", "open_shards", "prepare_shards"]

STAGE = "token_shards"
CODE_VERSION = "1"
MAX_SHARD_TOKENS = 100_000_000  # 200 MB; as in modded-nanogpt, and far below the format's 2^31
_BATCH_ROWS = 2_000
_BATCH_BYTES = 4 << 20  # of text encoded at a time; some 1 M tokens, 40 MB as Python integers
_logger = logging.getLogger(__name__)


def prepare_shards(
    config: DataConfig, english: StageResult, data_folder: Path, *, force: bool = False, say: Say = _logger.info
) -> StageResult:
    """Return the finished stage: the tokens of every document of `english`, each after an `<|endoftext|>`.

    Raises:
        ConfigError: no document is held out, or the rest is shorter than one sequence of `max_length` tokens.
        DamagedFileError: the English file is not the one that its manifest describes.
    """
    wanted = _fingerprint(config, english.fingerprint)
    folder = stage_folder(data_folder, STAGE, wanted)
    stage = prepare_stage(
        folder, wanted, force=force, say=say, make=lambda: _make(config, english, folder, wanted, say)
    )
    _require_a_sequence(config, stage.manifest.facts)
    return stage


def find_shards(config: DataConfig, data_folder: Path) -> StageResult | None:
    """Return the finished stage, or None; does no work."""
    from gpt_pipeline.data.english import find_english

    english = find_english(config, data_folder)
    if english is None:
        return None
    wanted = _fingerprint(config, english.fingerprint)
    return finished(stage_folder(data_folder, STAGE, wanted), wanted)


def _fingerprint(config: DataConfig, upstream: str) -> str:
    return fingerprint(STAGE, config=_identity(config), upstream=[upstream], code_version=CODE_VERSION)


def _identity(config: DataConfig) -> dict[str, Any]:
    from gpt_pipeline.data.tokenizer import TOKENIZER_ID

    return {"validation_fraction": config.validation_fraction, "seed": config.seed, "tokenizer": TOKENIZER_ID}


def _make(config: DataConfig, english: StageResult, folder: Path, wanted: str, say: Say) -> Manifest:
    from gpt_pipeline.data.english import english_file

    started = time.monotonic()
    verify(english)
    progress = _Progress(say=say, total=english.manifest.facts["documents"])
    documents = progress.over(encoded_documents(english_file(english), threads=os.cpu_count() or 1))
    train, validation = write_splits(documents, folder, config)
    _require_documents(config, train, validation)
    return Manifest(
        stage=STAGE,
        fingerprint=wanted,
        config=_identity(config),
        upstream=(english.fingerprint,),
        files={path.name: record_file(path) for path in [*train.files, *validation.files]},
        facts={**_facts(train, validation), "seconds": round(time.monotonic() - started, 3)},
        created_at=utc_now(),
    )


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document as tokens."""

    article: str

    tokens: Tokens
    """`<|endoftext|>` first."""

    text_bytes: int
    """Of its text in UTF-8."""


def encoded_documents(path: Path, *, threads: int) -> Iterator[Document]:
    """Yield the documents of an English parquet file in order; memory does not grow with the file."""
    import pyarrow.parquet as pq

    from gpt_pipeline.data.tokenizer import EOT_TOKEN, gpt2

    encoding = gpt2()
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["article", "text"]):
            for part in _cut_by_bytes(batch):
                articles, texts = part["article"].to_pylist(), part["text"].to_pylist()
                ids = encoding.encode_ordinary_batch(texts, num_threads=threads)
                for article, text, own in zip(articles, texts, ids, strict=True):
                    tokens = np.array([EOT_TOKEN, *own], dtype=np.uint16)
                    yield Document(article=article, tokens=tokens, text_bytes=len(text.encode()))


def _cut_by_bytes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield `batch` in slices of about `_BATCH_BYTES` of text each, a longer text alone."""
    import pyarrow.compute as pc

    ends = np.cumsum(pc.binary_length(batch["text"]).to_numpy(zero_copy_only=False))
    cuts = np.flatnonzero(np.diff(ends // _BATCH_BYTES)) + 1
    bounds = [0, *cuts.tolist(), batch.num_rows]
    for first, last in itertools.pairwise(bounds):
        yield batch.slice(first, last - first)


@dataclass(kw_only=True)
class SplitWriter:
    """Writes the shards of one split in the order in which documents arrive; no document is cut by a shard's end."""

    folder: Path
    split: str
    max_shard_tokens: int = MAX_SHARD_TOKENS
    files: list[Path] = field(default_factory=list)
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    _shard: ShardFile | None = None
    _starts: list[int] = field(default_factory=list)
    _shard_tokens: int = 0
    _unfinished: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_shard()
        else:
            self._unfinished.__exit__(kind, error, trace)

    def add(self, document: Document) -> None:
        """Append a document, to a new shard if it would not fit into this one."""
        n_tokens = len(document.tokens)
        if self._shard is None or self._shard_tokens + n_tokens > self.max_shard_tokens:
            self._finish_shard()
            self._shard = self._begin_shard()
        self._shard.append(document.tokens)
        self._starts.append(self._shard_tokens)
        self._shard_tokens += n_tokens
        self.tokens += n_tokens
        self.documents += 1
        self.text_bytes += document.text_bytes

    def _begin_shard(self) -> ShardFile:
        path = self.folder / shard_name(self.split, len(self.files) // 2 + 1)
        self.files += [path, path.with_name(starts_name(path.name))]
        self._starts, self._shard_tokens = [], 0
        return self._unfinished.enter_context(new_shard(path))

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._unfinished.close()
        self._shard = None
        with atomic_path(self.files[-1]) as temporary, temporary.open("wb") as file:
            np.save(file, np.array(self._starts, dtype="<i8"))


def write_splits(
    documents: Iterable[Document], folder: Path, config: DataConfig, *, max_shard_tokens: int = MAX_SHARD_TOKENS
) -> tuple[SplitWriter, SplitWriter]:
    """Write training and validation shards into `folder`; returns both writers, finished, in this order."""
    train = SplitWriter(folder=folder, split=TRAIN, max_shard_tokens=max_shard_tokens)
    validation = SplitWriter(folder=folder, split=VALIDATION, max_shard_tokens=max_shard_tokens)
    with train, validation:
        for document in documents:
            held_out = is_held_out(document.article, seed=config.seed, fraction=config.validation_fraction)
            (validation if held_out else train).add(document)
    return train, validation


@dataclass(kw_only=True)
class _Progress:
    """Says now and then how far the documents are."""

    say: Say
    total: int
    every_seconds: float = 10.0

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        started = last = time.monotonic()
        text_bytes = 0
        for done, document in enumerate(documents, start=1):
            yield document
            text_bytes += document.text_bytes
            now = time.monotonic()
            if done == self.total or now - last >= self.every_seconds:
                rate = text_bytes / 1e6 / max(now - started, 1e-9)
                self.say(f"{done:,} of {self.total:,} documents encoded, {rate:.1f} MB/s")
                last = now


def _facts(train: SplitWriter, validation: SplitWriter) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for writer in (train, validation):
        facts[f"{writer.split}_tokens"] = writer.tokens
        facts[f"{writer.split}_documents"] = writer.documents
        facts[f"{writer.split}_text_bytes"] = writer.text_bytes
        facts[f"{writer.split}_shards"] = len(writer.files) // 2
    documents = train.documents + validation.documents
    return {**facts, "tokens_per_document": (train.tokens + validation.tokens) / documents}


def _require_documents(config: DataConfig, train: SplitWriter, validation: SplitWriter) -> None:
    for writer, remedy in ((validation, "raise"), (train, "lower")):
        if writer.documents == 0:
            raise ConfigError(
                "data.validation_fraction",
                found=config.validation_fraction,
                need=f"a share that leaves the {writer.split} split some of the {config.num_samples} documents",
                remedy=f"{remedy} data.validation_fraction, or raise data.num_samples",
            )


def _require_a_sequence(config: DataConfig, facts: Mapping[str, Any]) -> None:
    if facts["train_tokens"] <= config.max_length:
        raise ConfigError(
            "data.num_samples",
            found=config.num_samples,
            need=f"enough documents for one sequence of data.max_length={config.max_length} and one more token "
            f"(their training split has {facts['train_tokens']} tokens)",
            remedy="raise data.num_samples, or lower data.max_length or data.validation_fraction",
        )

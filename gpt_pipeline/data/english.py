"""The English documents as one parquet file: text, the article it grew from, and where its parts lie."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.eligibility import BATCH_ROWS, DOCUMENT_SCHEMA, RULE_VERSION, documents_of, read_batches, select
from gpt_pipeline.data.raw import raw_files, raw_fingerprint
from gpt_pipeline.data.stage import Say, prepare_stage
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.storage.atomic import atomic_path
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, record_file, stage_folder, utc_now

STAGE = "english_parquet"
CODE_VERSION = f"1.{RULE_VERSION}"
ROW_GROUP_ROWS = 2_000  # documents; with MAX_DOCUMENT_BYTES a group's text stays below Arrow's 2 GiB
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 1_000
_logger = logging.getLogger(__name__)


def prepare_english(
    config: DataConfig, raw: StageResult, data_folder: Path, *, force: bool = False, say: Say = _logger.info
) -> StageResult:
    """Return the finished stage: the first `num_samples` English documents of `raw`, in file order.

    Raises:
        ConfigError: there are fewer.
        DataError: a raw file cannot be read.
    """
    wanted = _fingerprint(config, raw.fingerprint)
    folder = stage_folder(data_folder, STAGE, wanted)
    return prepare_stage(folder, wanted, force=force, say=say, make=lambda: _make(config, raw, folder, wanted, say))


def find_english(config: DataConfig, data_folder: Path) -> StageResult | None:
    """Return the finished stage, or None; does no work."""
    upstream = raw_fingerprint(config, data_folder)
    if upstream is None:
        return None
    wanted = _fingerprint(config, upstream)
    return finished(stage_folder(data_folder, STAGE, wanted), wanted)


def english_file(stage: StageResult) -> Path:
    """Return the path of the stage's parquet file (`eligibility.DOCUMENT_SCHEMA`)."""
    return stage.folder / next(iter(stage.manifest.files))


def _fingerprint(config: DataConfig, upstream: str) -> str:
    return fingerprint(STAGE, config=_identity(config), upstream=[upstream], code_version=CODE_VERSION)


def _identity(config: DataConfig) -> dict[str, Any]:
    return {"num_samples": config.num_samples}


@dataclass(kw_only=True)
class Tally:
    """What was read, kept and dropped so far."""

    rows_read: int = 0
    documents: int = 0
    text_bytes: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    exercises: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_rows(self, batch: pa.RecordBatch, dropped: Counter[str]) -> None:
        self.rows_read += batch.num_rows
        self.languages.update(_counts(batch["language"]))
        self.dropped.update(dropped)

    def add_documents(self, documents: pa.RecordBatch) -> None:
        self.documents += documents.num_rows
        self.text_bytes += pc.sum(pc.binary_length(documents["text"])).as_py() or 0
        self.exercises.update(_counts(documents["exercise"]))
        for text in documents["text"][: max(0, _EXAMPLES - len(self.examples))].to_pylist():
            self.examples.append(text[:_EXAMPLE_CHARACTERS])

    def facts(self) -> dict[str, Any]:
        """Return the counts as JSON values, the most frequent first."""
        counters = {name: dict(getattr(self, name).most_common()) for name in ("dropped", "languages", "exercises")}
        counts = {name: getattr(self, name) for name in ("rows_read", "documents", "text_bytes")}
        return {**counts, **counters, "examples": self.examples}


def _counts(column: pa.Array) -> dict[str, int]:
    # As bytes: a name that is not UTF-8 must not stop the count of the others.
    counts = pc.value_counts(column.cast(pa.binary())).to_pylist()
    names = ["null" if pair["values"] is None else pair["values"].decode(errors="replace") for pair in counts]
    return {name: pair["counts"] for name, pair in zip(names, counts, strict=True)}


def _make(config: DataConfig, raw: StageResult, folder: Path, wanted: str, say: Say) -> Manifest:
    started = time.monotonic()
    path = folder / f"synth_en_samples_{config.num_samples}.parquet"
    tally = Tally()
    with atomic_path(path) as temporary:
        _write(temporary, english_documents(raw_files(config, raw), config.num_samples, tally, say=say))
        if tally.documents < config.num_samples:
            raise _too_few(config.num_samples, tally.documents)
    return Manifest(
        stage=STAGE,
        fingerprint=wanted,
        config=_identity(config),
        upstream=(raw.fingerprint,),
        files={path.name: record_file(path)},
        facts={**tally.facts(), "seconds": round(time.monotonic() - started, 3)},
        created_at=utc_now(),
    )


def _too_few(num_samples: int, documents: int) -> ConfigError:
    return ConfigError(
        "data.num_samples",
        found=num_samples,
        need=f"at most {documents}, the English documents in the raw files",
        remedy=f"set it to {documents} or fewer",
    )


def english_documents(
    files: Iterable[Path], limit: int, tally: Tally, *, say: Say, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the first `limit` documents of `files` in order, counting into `tally`; reads no row beyond the last."""
    for path in files:
        if tally.documents >= limit:
            return
        yield from _documents_of_file(path, limit, tally, batch_rows)
        say(f"{path.name}: {tally.documents:,} of {limit:,} documents after {tally.rows_read:,} rows")


def _documents_of_file(path: Path, limit: int, tally: Tally, batch_rows: int) -> Iterator[pa.RecordBatch]:
    for whole in read_batches(path, batch_rows=batch_rows):
        batch, selection = whole, select(whole)
        wanted = limit - tally.documents
        if selection.rows.num_rows >= wanted:  # end at the last document, so that the counts know no batch size
            batch = whole.slice(0, selection.positions[wanted - 1].as_py() + 1)
            selection = select(batch)
        documents = documents_of(selection.rows)
        tally.add_rows(batch, selection.dropped)
        tally.add_documents(documents)
        yield documents
        if tally.documents >= limit:
            return


def _write(path: Path, documents: Iterable[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(
        path, DOCUMENT_SCHEMA, compression="zstd", compression_level=1, use_dictionary=["exercise", "article"]
    ) as writer:
        for group in _grouped(documents, ROW_GROUP_ROWS):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)


def _grouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows as tables of `rows` rows, the last maybe smaller, whatever the size of the batches."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(part.num_rows for part in waiting) >= rows:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, rows).combine_chunks()
            waiting = table.slice(rows).to_batches()
    if any(part.num_rows for part in waiting):
        yield pa.Table.from_batches(waiting).combine_chunks()

"""The documents as parquet, made of the raw files by their format; see `files` for the columns."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.arrays import record_of
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.choice import REPEATED
from gpt_pipeline.data.documents.files import names_in
from gpt_pipeline.data.documents.index import Rows
from gpt_pipeline.data.documents.raw import RawFile, RawPlaces, files_of, known_raw, left_out_of, raw_places
from gpt_pipeline.data.documents.tally import Tally
from gpt_pipeline.data.formats import StageNames, format_of, stage_names
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.formats.rules import in_words
from gpt_pipeline.data.overlap import ahead
from gpt_pipeline.data.readers.rows import content_of, read_rows
from gpt_pipeline.data.stage import Part, PlacedStage, finish_stage, grouped, intact_parts, needs_nothing, prepare
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.atomic import HashedFile, atomic_path, link_or_copy
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult, not_finished, stage_folder

CODE_VERSION = "5"
_FILE = "documents.parquet"
_logger = logging.getLogger(__name__)


def prepare_documents(
    config: DataConfig, raw: StageResult, data_folder: Path, *, force: bool = False, say: Say = _logger.info
) -> StageResult:
    """Return the finished stage: the first `num_samples` different documents of `raw`, in file order.

    Raises:
        DataError: a raw file cannot be read.
    """
    return prepare(DocumentsStage(config=config, data_folder=data_folder, given_raw=raw), force=force, say=say)


def find_documents(config: DataConfig, data_folder: Path) -> StageResult | None:
    """Return the finished stage, or None; does no work."""
    return DocumentsStage(config=config, data_folder=data_folder).find()


def finished_documents(config: DataConfig, data_folder: Path) -> StageResult:
    """Return the finished stage.

    Raises:
        DataError: it is not finished.
    """
    found = find_documents(config, data_folder)
    if found is None:
        raise not_finished(stage_names(config).documents, data_folder)
    return found


def document_files(stage: StageResult) -> list[Path]:
    """Return the paths of the stage's parquet files in order."""
    return [stage.folder / name for name in stage.manifest.files]


@dataclass(frozen=True, kw_only=True)
class DocumentsPart:
    """What the stage takes of one raw file."""

    raw: RawFile

    take: int
    """Documents, from the file's first on."""

    file: str
    """Name of the parquet file in the stage's folder."""

    part: Part


@dataclass(frozen=True, kw_only=True)
class DocumentsStage(PlacedStage):
    """The stage of the documents, for SYNTH english_parquet; a part is the documents of one raw file."""

    config: DataConfig
    data_folder: Path
    given_raw: StageResult | None = None
    """The finished stage of raw files; null: the one that the configuration names."""

    @property
    def name(self) -> str:
        return self._names.documents

    @property
    def _names(self) -> StageNames:
        return stage_names(self.config)

    @cached_property
    def _format(self) -> Format:
        return format_of(self.config)

    @cached_property
    def raw(self) -> StageResult:
        """The raw files' stage.

        Raises:
            DataError: it is not finished.
        """
        raw = self.given_raw or known_raw(self.config, self.data_folder)
        if raw is None:
            raise not_finished(self._names.raw, self.data_folder)
        return raw

    @cached_property
    def _places(self) -> RawPlaces:
        return raw_places(self.config, self.raw)

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while the raw files are not known."""
        raw = self.given_raw or known_raw(self.config, self.data_folder)
        if raw is None:
            return None
        wanted = _fingerprint(self.config, raw.fingerprint)
        return stage_folder(self.data_folder, self.name, wanted), wanted

    def plan(self, *, force: bool, say: Say) -> list[list[str]]:
        """Return the raw files whose documents are missing, in groups; see `PartedStage`."""
        if not force and needs_nothing(self.find(), say=say):
            return []
        parts = self.parts()
        if force:
            for each in parts:
                self._places.path(each.raw)  # raises if it is gone, before anything is begun
        missing = [each for each in parts if force or each.part.find() is None]
        return grouped({each.raw.name: each.raw.size for each in missing})

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> dict[str, Any]:
        """Write the documents of the raw files; see `PartedStage`.

        Raises:
            DataError: a raw file cannot be read, or is not there any more.
        """
        wanted = set(names)
        made = [self._made(each, say, force=force) for each in self.parts() if each.raw.name in wanted]
        return {
            "rows_read": sum(part.manifest.facts["rows_read"] for part in made),
            "documents": sum(part.manifest.facts["documents"] for part in made),
            "megabytes": sum(part.manifest.facts["text_bytes"] for part in made) / 1e6,
        }

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Put the parts together; see `PartedStage`."""
        wanted = _fingerprint(self.config, self.raw.fingerprint)
        folder = stage_folder(self.data_folder, self.name, wanted)
        return finish_stage(folder, wanted, force=force, say=say, make=lambda: self._together(folder, wanted, say))

    def parts(self) -> list[DocumentsPart]:
        """Return what the stage takes of each raw file, in order; files of which it takes nothing are left out."""
        takes: list[tuple[RawFile, int]] = []
        missing = self.config.document_limit
        for raw in files_of(self.raw):
            take = raw.documents if missing is None else min(missing, raw.documents)
            missing = None if missing is None else missing - take
            if take:
                takes.append((raw, take))
        names = [_file_name(self.config, number, len(takes)) for number in range(1, len(takes) + 1)]
        return [
            DocumentsPart(raw=raw, take=take, file=name, part=self._part(raw, take, self._content(raw)))
            for (raw, take), name in zip(takes, names, strict=True)
        ]

    def _content(self, raw: RawFile) -> str:
        return content_of(raw.name, raw.sha256, self._format.columns)

    def own_parts(self) -> list[Part]:
        """Return the parts, and those that earlier versions found by the raw file's checksum alone."""
        parts = ((each.part, self._part(each.raw, each.take, each.raw.sha256)) for each in self.parts())
        return [*dict.fromkeys(part for pair in parts for part in pair)]

    def _part(self, raw: RawFile, take: int, content: str) -> Part:
        left_out = {reason: self.raw.manifest.files[name].sha256 for reason, name in raw.left_out.items()}
        repeats = left_out.pop(REPEATED, None)  # named before there were other reasons
        config = {"raw": content, "repeats": repeats, **left_out, "take": take, **self._format.identity}
        kind = self._names.documents_part
        identity = fingerprint(kind, config=config, code_version=f"{CODE_VERSION}.{self._format.version}")
        return Part(kind=kind, fingerprint=identity, data_folder=self.data_folder)

    def _made(self, each: DocumentsPart, say: Say, *, force: bool = False) -> StageResult:
        return each.part.prepare(force=force, say=say, make=lambda: self._write(each, say))

    def _write(self, each: DocumentsPart, say: Say) -> Manifest:
        source = self._places.path(each.raw)
        path = each.part.folder / _FILE
        tally = Tally()
        left_out = left_out_of(self.raw, each.raw)
        limit = None if each.take == each.raw.documents else each.take
        documents = documents_of_file(source, self._format, limit, left_out, tally)
        record = write_documents(path, self._format.document_schema, ahead(documents))
        if tally.documents != each.take:
            raise DataError(
                f"{source}: found {tally.documents} documents, need {each.take}: it has changed; "
                f"materialize {self._names.raw} again"
            )
        self._places.path(each.raw)  # raises if the file became another one while it was read
        why = f"; the others: {in_words(tally.dropped)}" if tally.dropped else ""
        say(
            f"{each.raw.name}: {counted(tally.documents, 'document')} of {counted(tally.rows_read, 'row')} written{why}"
        )
        return Manifest(
            stage=each.part.kind,
            fingerprint=each.part.fingerprint,
            config={"raw": each.raw.sha256, "take": each.take},
            files={_FILE: record},
            facts=tally.facts(),
        )

    def _together(self, folder: Path, wanted: str, say: Say) -> Manifest:
        """Link the parts' files into the stage's folder and return its manifest."""
        tally = Tally()
        files, listed, linked = {}, [], True
        parts = self.parts()
        for each, found in zip(parts, intact_parts([each.part for each in parts], say=say), strict=True):
            part = found or self._made(each, say)
            linked = link_or_copy(part.folder / _FILE, folder / each.file) and linked
            files[each.file] = part.manifest.files[_FILE]
            tally.add(Tally.of(part.manifest.facts))
            listed.append(
                {"name": each.raw.name, "file": each.file, "documents": each.take, "fingerprint": part.fingerprint}
            )
        self._tell_missing_languages(tally.tables.get("languages", {}), say)
        if not linked:
            say(f"{folder}: this disk does not support hard links; the parts were copied, which takes twice the space")
        return Manifest(
            stage=self.name,
            fingerprint=wanted,
            config=_identity(self.config),
            upstream=(self.raw.fingerprint,),
            files=files,
            facts={**tally.facts(), "parts": listed},
        )

    def _tell_missing_languages(self, rows: Mapping[str, int], say: Say) -> None:
        missing = [each for each in self.config.wanted_languages or () if each not in rows]
        if rows and missing:
            found = ", ".join(f"{name} {count:,}" for name, count in rows.items())
            say(f"data.languages: no row is in {', '.join(missing)}; found: {found}")


def _file_name(config: DataConfig, number: int, count: int) -> str:
    """Return the name of the `number`-th of `count` files, from 1 on."""
    place = "" if count == 1 else f"-{number:05d}-of-{count:05d}"
    return f"{stage_names(config).documents_file}_{config.document_limit or 'all'}{place}.parquet"


def _fingerprint(config: DataConfig, upstream: str) -> str:
    return fingerprint(
        stage_names(config).documents,
        config=_identity(config),
        upstream=[upstream],
        code_version=f"{CODE_VERSION}.{format_of(config).version}",
    )


def _identity(config: DataConfig) -> dict[str, Any]:
    return {"num_samples": config.document_limit or "all", **format_of(config).identity}


def documents_of_file(
    path: Path,
    format: Format,
    limit: int | None,
    left_out: Mapping[str, Rows],
    tally: Tally,
    *,
    batch_rows: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the first `limit` documents of a file in order, counting into `tally`; reads no row beyond the last.

    None: all of its documents, for which every row is read and counted.
    `left_out` are documents, counted from 0 without them being taken out, by the reason why they are not taken.
    """
    seen = 0
    all_left_out = np.sort(np.concatenate([np.empty(0, np.int64), *left_out.values()]))
    for whole in read_rows(path, format.columns, batch_rows=batch_rows):
        batch, selection = whole, format.select(whole)
        new = _new_ones(seen, len(selection.kept), all_left_out)
        wanted = None if limit is None else limit - tally.documents
        if wanted is not None and len(new) >= wanted:
            # End at the last document, so that counts do not depend on the batch size.
            batch = whole.slice(0, int(selection.positions[new[wanted - 1]]) + 1)
            selection = format.select(batch)
            new = new[:wanted]
        bounds = (seen, seen + len(selection.kept))
        seen = bounds[1]
        documents = format.documents_of(selection.only(new))
        not_new = {reason: int(np.diff(np.searchsorted(rows, bounds))[0]) for reason, rows in left_out.items()}
        tally.add_rows(batch, selection.dropped + Counter(not_new), format)
        tally.add_documents(documents, format)
        yield documents
        if tally.documents == limit:
            return


def _new_ones(first: int, count: int, left_out: Rows) -> Rows:
    """Return which of `count` documents, of which the first has the number `first`, are not among those left out.

    `left_out` ascends, and may be that of a whole file: only its part for these documents is gone through.
    """
    begin, end = np.searchsorted(left_out, (first, first + count))
    is_new = np.ones(count, bool)
    is_new[left_out[begin:end] - first] = False
    return np.flatnonzero(is_new)


def write_documents(path: Path, schema: pa.Schema, documents: Iterable[pa.RecordBatch]) -> FileRecord:
    """Write documents as parquet, a row group a batch, and return what the file has to be; atomic."""
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        names = names_in(schema)
        repeating = [names[name] for name in ("kind", "group") if name in names]
        settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": repeating}
        with pq.ParquetWriter(file, schema, **settings) as writer:
            for batch in documents:
                if batch.num_rows:
                    writer.write_batch(batch)
    return record_of(file)

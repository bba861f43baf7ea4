"""What files hold, as far as their footers and first rows tell."""

from __future__ import annotations

import io
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from gpt_pipeline.data.columns import text_sizes
from gpt_pipeline.data.config import SYNTH, DataConfig
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.readers.parquet import count_parquet
from gpt_pipeline.data.readers.rows import is_parquet, read_rows_of
from gpt_pipeline.data.sources.folder import local_files
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.errors import UserError

_SAMPLED_BYTES, _SAMPLED_ROWS = 4 << 20, 10_000  # read of the first files
_REMOTE_FOOTERS = 8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the files hold."""

    rows: int
    is_exact: bool
    """Whether the rows were counted, by footers or because all were read."""

    files: int
    size: int
    """Bytes of all files."""

    documents: int
    """What becomes of the rows, judged by the first ones."""

    text_bytes: int
    """Of these documents."""

    dropped: Counter[str]
    """Of the rows that were read, those that become no document, by reason."""

    read: int
    """Rows that were read."""

    first: tuple[pa.RecordBatch, ...] = field(repr=False, compare=False)
    """The documents that these become."""


def is_surveyed(data: DataConfig) -> bool:
    """Whether `survey` tells something: the sample and SYNTH are known without being looked into."""
    return not data.is_sample and (data.local is not None or data.source != SYNTH)


def survey(data: DataConfig, data_folder: Path) -> Survey:
    """Return what the files that `data` names hold; a dataset of the hub is asked once, for as little as possible.

    Raises:
        ConfigError: there are no such files.
        DataError: one cannot be read, or lacks a column of the format; or the hub cannot be reached.
    """
    if data.local is not None:
        return _survey_of(local_files(data.local, key=f"data.{data.local_key}").opened(), format_of(data))
    key = f"{data} {data_folder}"
    if key not in _ON_HUB:
        _ON_HUB[key] = _survey_on_hub(data, data_folder)
    found = _ON_HUB[key]
    if isinstance(found, UserError):
        raise found
    return found


_ON_HUB: dict[str, Survey | UserError] = {}
"""What this process was told: a plan asks several times."""


def _survey_on_hub(data: DataConfig, data_folder: Path) -> Survey | UserError:
    from gpt_pipeline.data.sources.hub import Hub
    from gpt_pipeline.data.sources.hub.patience import Patience

    try:
        hub = Hub(patience=Patience(attempts=1))
        stage = RawStage(config=data, data_folder=data_folder, hub=hub)
        return _survey_of(stage.dataset(say=_logger.info), format_of(data))
    except UserError as error:
        return error


def _survey_of(source: Source, format: Format) -> Survey:
    sample = _sampled(source, format)
    size = sum(source.size(name) for name in source.names)
    footers = _footers(source, format)
    of_footers = sum(source.size(name) for name in footers)
    if footers and of_footers:
        rows, is_exact = round(sum(footers.values()) * size / of_footers), of_footers == size
    else:
        rows, is_exact = round(sample.rows * size / max(1, sample.size_read)), sample.size_read >= size
    return sample.scaled(rows, source, is_exact=is_exact)


def _footers(source: Source, format: Format) -> dict[str, int]:
    """Return the rows of files that are all of parquet, by their footers; of the hub's those of the first ones."""
    if not all(map(is_parquet, source.names)):
        return {}
    names = source.names if source.revision is None else source.names[:_REMOTE_FOOTERS]

    def rows_of(file: io.IOBase, name: str) -> int:
        return count_parquet(file, str(source.find(name) or name), format.columns)

    return dict(source.read_each(names, rows_of, say=_logger.info))


@dataclass(kw_only=True)
class _Sample:
    rows: int = 0
    documents: int = 0
    text_bytes: int = 0
    size_read: int = 0
    """Bytes of the files, compressed as they are."""

    dropped: Counter[str] = field(default_factory=Counter)
    first: list[pa.RecordBatch] = field(default_factory=list)

    def scaled(self, rows: int, source: Source, *, is_exact: bool) -> Survey:
        share = rows / max(1, self.rows)
        return Survey(
            rows=rows,
            is_exact=is_exact,
            files=len(source.names),
            size=sum(source.size(name) for name in source.names),
            documents=round(self.documents * share),
            text_bytes=round(self.text_bytes * share),
            dropped=self.dropped,
            read=self.rows,
            first=tuple(self.first),
        )


def _sampled(source: Source, format: Format) -> _Sample:
    """Return what the first rows of the first files hold."""
    sample = _Sample()
    for name in source.names:
        with source.open(name, say=_logger.info) as file:
            for batch in read_rows_of(file, format.columns, name=str(source.find(name) or name)):
                selection = format.select(batch)
                sample.rows += batch.num_rows
                sample.documents += len(selection.kept)
                sample.first.append(format.documents_of(selection))
                sample.text_bytes += int(text_sizes(sample.first[-1]["text"]).sum())
                sample.dropped += selection.dropped
                if sample.text_bytes >= _SAMPLED_BYTES or sample.rows >= _SAMPLED_ROWS:
                    sample.size_read += file.tell() if not is_parquet(name) else 0
                    return sample
            sample.size_read += source.size(name)
    return sample

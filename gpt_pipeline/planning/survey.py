"""What one's own files hold, as far as their footers and first rows tell."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import pyarrow.parquet as pq

from gpt_pipeline.data.columns import text_sizes
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.readers.parquet import open_parquet
from gpt_pipeline.data.readers.rows import is_parquet, read_rows_of
from gpt_pipeline.data.sources.folder import LocalFolder, local_files

_SAMPLED_BYTES, _SAMPLED_ROWS = 4 << 20, 10_000  # read of the first files


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the files hold."""

    rows: int
    is_exact: bool
    """Whether the rows were counted, by footers or because all were read."""

    documents: int
    """What becomes of the rows, judged by the first ones."""

    text_bytes: int
    """Of these documents."""

    dropped: Counter[str]
    """Of the rows that were read, those that become no document, by reason."""

    read: int
    """Rows that were read."""


def survey(data: DataConfig) -> Survey:
    """Return what the files of one's own that `data` names hold.

    Raises:
        ConfigError: there are no such files.
        DataError: one cannot be read, or lacks a column of the format.
    """
    assert data.local is not None
    folder = local_files(data.local, key=f"data.{data.local_key}").opened()
    format = format_of(data)
    sample = _sampled(folder, format)
    footers = _footers(folder, format)
    if footers is not None:
        rows = sum(footer.num_rows for footer in footers)
        return dataclasses.replace(sample.scaled(rows), is_exact=True)
    size = sum(folder.size(name) for name in folder.names)
    if sample.size_read >= size:
        return sample.scaled(sample.rows)
    rows = round(sample.rows * size / max(1, sample.size_read))
    return dataclasses.replace(sample.scaled(rows), is_exact=False)


def _footers(folder: LocalFolder, format: Format) -> list[pq.FileMetaData] | None:
    """Return the footers of files that are all of parquet."""
    if not all(map(is_parquet, folder.names)):
        return None
    footers = []
    for name in folder.names:
        with open_parquet(folder.path(name), format.columns) as file:
            footers.append(file.metadata)
    return footers


@dataclass(kw_only=True)
class _Sample:
    rows: int = 0
    documents: int = 0
    text_bytes: int = 0
    size_read: int = 0
    """Bytes of the files, compressed as they are."""

    dropped: Counter[str] = dataclasses.field(default_factory=Counter)

    def scaled(self, rows: int) -> Survey:
        share = rows / max(1, self.rows)
        return Survey(
            rows=rows,
            is_exact=True,
            documents=round(self.documents * share),
            text_bytes=round(self.text_bytes * share),
            dropped=self.dropped,
            read=self.rows,
        )


def _sampled(folder: LocalFolder, format: Format) -> _Sample:
    """Return what the first rows of the first files hold."""
    sample = _Sample()
    for path in map(folder.path, folder.names):
        with path.open("rb") as file:
            for batch in read_rows_of(file, path, format.columns):
                selection = format.select(batch)
                sample.rows += batch.num_rows
                sample.documents += len(selection.kept)
                sample.text_bytes += int(text_sizes(format.documents_of(selection)["text"]).sum())
                sample.dropped += selection.dropped
                if sample.text_bytes >= _SAMPLED_BYTES or sample.rows >= _SAMPLED_ROWS:
                    sample.size_read += file.tell() if not is_parquet(path.name) else 0
                    return sample
            sample.size_read += path.stat().st_size
    return sample

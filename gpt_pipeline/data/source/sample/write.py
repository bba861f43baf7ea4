"""Writing the sample as the parquet files that a download of SYNTH would have been."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.documents import (
    ENGLISH,
    FAILED_CONSTRAINT,
    SYNTH_COLUMNS,
    is_blank,
)
from gpt_pipeline.data.source.sample.rows import Row, rows_of_file
from gpt_pipeline.storage.atomic import atomic_path

SCHEMA: Final = pa.schema([(name, pa.int64() if name == "words" else pa.string()) for name in SYNTH_COLUMNS])
"""SYNTH's: 14 nullable columns."""


def write_sample(folder: Path, *, num_english: int, seed: int = 0, rows_per_file: int = 10_000) -> list[Path]:
    """Write `synth_001.parquet`, `synth_002.parquet`, ... until they hold `num_english` usable English documents.

    All files have `rows_per_file` rows. A file's content depends on `seed`, `rows_per_file` and its number alone, so
    asking for more documents adds files and changes none. Returns the files in order; one is in memory at a time.
    """
    files: list[Path] = []
    usable = 0
    while usable < num_english or not files:
        number = len(files) + 1
        rows = list(rows_of_file(number, seed=seed, n_rows=rows_per_file))
        usable += sum(map(_is_usable_english, rows))
        files.append(_write(folder / f"synth_{number:03d}.parquet", rows))
    return files


def _is_usable_english(row: Row) -> bool:
    return (
        row["language"] == ENGLISH
        and not is_blank(row["query"])
        and not is_blank(row["synthetic_answer"])
        and row["constraints"] != FAILED_CONSTRAINT
    )


def _write(path: Path, rows: Sequence[Row]) -> Path:
    table = pa.Table.from_pydict({name: [row[name] for row in rows] for name in SYNTH_COLUMNS}, schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=len(rows), compression="zstd")
    return path

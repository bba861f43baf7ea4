"""Writing the sample as the parquet files that a download of SYNTH would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.documents import SYNTH_COLUMNS
from gpt_pipeline.data.sources.sample.rows import rows_of_file
from gpt_pipeline.storage.atomic import atomic_path

SCHEMA: Final = pa.schema([(name, pa.int64() if name == "words" else pa.string()) for name in SYNTH_COLUMNS])
"""SYNTH's: 14 nullable columns."""


def file_name(number: int) -> str:
    """Return the name of the `number`-th file, from 1 on, in SYNTH's manner."""
    return f"synth_{number:03d}.parquet"


def write_file(path: Path, number: int, *, seed: int = 0, n_rows: int = 10_000) -> Path:
    """Write the `number`-th file, from 1 on, to `path`, and return it; its content depends on the numbers alone."""
    rows = list(rows_of_file(number, seed=seed, n_rows=n_rows))
    table = pa.Table.from_pydict({name: [row[name] for row in rows] for name in SYNTH_COLUMNS}, schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=len(rows), compression="zstd")
    return path

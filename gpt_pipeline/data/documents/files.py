"""The documents' parquet: what is known of each document, by the same names for every format.

All have `id`, `group` (documents of one are never split between training and validation) and `text`; those of which it
is known have a `kind` too. SYNTH's files, which are older than these names, call the other three otherwise on the disk;
readers get them under the general names, and null for a column that a file does not have. Documents that are questions
have more: `constraints` (of SYNTH) or `expected` (of others), by which answers are judged, and where their parts begin
and end in the text, `query_start`, `query_end`, `reasoning_start`, `reasoning_end`, `answer_start` in characters (null
where absent) and `answer_bytes`, the bytes of the answer, which is the text's end.
A conversation's question is all that was said before its last answer, and `spans` lists start and end of each answer,
in bytes of the text, one after the other. Without `answer_bytes`, no part of the text is an answer, and every token of
it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.errors import DamagedFileError

_OLD_NAMES = {"id": "synth_id", "group": "article", "kind": "exercise"}


def names_in(schema: pa.Schema) -> Mapping[str, str]:
    """Return the columns of a documents file: what it calls them, by their general names."""
    own = {old: name for name, old in _OLD_NAMES.items()}
    return {own.get(name, name): name for name in schema.names}


def with_columns(documents: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return `columns` of documents by their general names, null where the documents do not have one."""
    names, count = names_in(documents.schema), documents.num_rows
    found = [documents[names[name]] if name in names else pa.nulls(count, pa.string()) for name in columns]
    return pa.record_batch(found, names=list(columns))


def read_documents(files: Iterable[Path], columns: Sequence[str], *, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield `columns` of all documents of the files in order, at most `batch_rows` at a time.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    for path in files:
        try:
            yield from _read_file(path, columns, batch_rows)
        except FileNotFoundError as error:
            raise DamagedFileError(f"{path} is missing; run again: it is made again") from error
        except (pa.ArrowException, OSError) as error:
            raise DamagedFileError(
                f"{path}: damaged ({error}); delete the folder and run again, or see what else is by "
                "`gpt-pipeline verify`"
            ) from error


def _read_file(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        names = names_in(file.schema_arrow)
        there = [names[name] for name in columns if name in names]
        for batch in file.iter_batches(batch_size=batch_rows, columns=there):
            yield with_columns(batch, columns)

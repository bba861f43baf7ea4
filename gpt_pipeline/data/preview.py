"""Some documents on their way from the raw row to the tokens that a model trains on, each step as it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.files import names_in
from gpt_pipeline.data.documents.raw import RawStage
from gpt_pipeline.data.documents.split import hold_out
from gpt_pipeline.data.file_kinds import TEXT_LIST, kind_of
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.forms import FORMS, Form
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.readers.rows import read_rows_of
from gpt_pipeline.data.tokens.token_bytes import TokenBytes
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.shown import Say

_BATCH_ROWS = 100  # few, since a file may be read remotely


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One row of a raw file, and what becomes of it."""

    file: str
    row: int
    """From 0."""

    values: Mapping[str, str | None]
    """The columns that are read; of one of many texts, its file too."""

    dropped: str | None
    """Why it becomes no document; null if it does, unless another document has the same text."""

    text: str
    """The document; empty without one."""

    held_out: bool
    """Whether it is for validation."""

    tokens: tuple[int, ...] | None
    """Behind the `<|endoftext|>` with which it begins; null while there is no tokenizer yet."""

    spans: tuple[tuple[int, int], ...]
    """First and last of the tokens, the last excluded, that an answer-only loss trains on; none where all are alike."""


def previews(
    config: DataConfig, data_folder: Path, tokenizer: Tokenizer | None, *, start: int, count: int, say: Say
) -> Iterator[Preview]:
    """Yield `count` rows from row `start` on of the source's first file that has rows.

    Raises:
        ConfigError: there are no such files.
        DataError: the file cannot be read, or the hub not be reached.
    """
    format = format_of(config)
    for name, file in RawStage(config=config, data_folder=data_folder).opened_files(say=say):
        wanted = format.columns
        if kind_of(name) == TEXT_LIST:  # of which nobody but the pipeline knows
            wanted = dataclasses.replace(wanted, values=(*wanted.values, "file"))
        seen = 0
        where = str(file) if isinstance(file, Path) else name
        for batch in read_rows_of(file, wanted, name=where, batch_rows=_BATCH_ROWS):
            for row in range(max(0, start - seen), min(batch.num_rows, start + count - seen)):
                yield _preview((name, seen + row), batch.slice(row, 1), format, config, tokenizer)
            seen += batch.num_rows
            if seen >= start + count:
                return
        if seen:
            return


def _preview(
    place: tuple[str, int], row: pa.RecordBatch, format: Format, config: DataConfig, tokenizer: Tokenizer | None
) -> Preview:
    file, number = place
    selection = format.select(row)
    # Text that is no UTF-8 is why the row is dropped, and is shown all the same.
    values = {name: row[name].cast(pa.binary())[0].as_py() for name in row.schema.names}
    shown = {name: None if value is None else value.decode(errors="replace") for name, value in values.items()}
    if not len(selection.kept):
        return Preview(
            file=file,
            row=number,
            values=shown,
            dropped=next(iter(selection.dropped)),
            text="",
            held_out=False,
            tokens=(),
            spans=(),
        )
    document = format.documents_of(selection).to_pylist()[0]
    text: str = document["text"]
    group = document[names_in(format.document_schema)["group"]] or ""
    tokens = None if tokenizer is None else tuple(tokenizer.encode(text))
    return Preview(
        file=file,
        row=number,
        values=shown,
        dropped=None,
        text=text,
        held_out=hold_out(seed=config.seed, fraction=config.validation_fraction)(group),
        tokens=tokens,
        spans=()
        if tokens is None or tokenizer is None
        else tuple(_token_spans(tokens, _byte_bounds(document, FORMS[config.template]), tokenizer)),
    )


def _byte_bounds(document: Mapping[str, Any], form: Form) -> Sequence[int]:
    """Return start and end of each span, one after the other, in bytes of the text."""
    if "spans" in document:
        bounds: Sequence[int] = document["spans"]
        return bounds
    begin, text = document.get("reasoning_start") or document.get("answer_start"), document["text"]
    return () if begin is None else (len(text[:begin].encode()), len(text.encode()) - form.unlearnt_bytes)


def _token_spans(tokens: Sequence[int], bounds: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    text = TokenBytes(np.array(tokens, np.uint16), tokenizer)
    firsts, lasts = (
        text.token_at(np.array(places, np.int64)) for places in (bounds[::2], np.subtract(bounds[1::2], 1))
    )
    yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)

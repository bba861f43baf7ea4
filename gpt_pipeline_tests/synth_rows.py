"""Rows and files with SYNTH's columns for the tests, and the texts of their documents, row by row in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import files_of, raw_places
from gpt_pipeline.data.formats.synth_text import ANSWER_MARK, QUERY_MARK, REASONING_MARK, SYNTH_COLUMNS, is_blank
from gpt_pipeline.data.sources.hub import Hub
from gpt_pipeline.storage.manifest import StageResult

SCHEMA = pa.schema([(name, pa.int64() if name == "words" else pa.string()) for name in SYNTH_COLUMNS])


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A row that becomes a document, unless `changed` says otherwise; seven rows share a seed article."""
    return {
        "synth_id": f"id_{number}",
        "language": "en",
        "exercise": "memorization",
        "model": "none",
        "query": f"What is number {number}?",
        "query_seed_url": f"https://en.wikipedia.org/wiki/Article_{number // 7}",
        "query_seed_text": "not read " * 5,
        "additional_seed_url": None,
        "seed_license": None,
        "constraints": None,
        "script": None,
        "synthetic_reasoning": f"Count to {number}.",
        "synthetic_answer": f"It is {number}.",
        "words": 12,
        **changed,
    }


def rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """`count` rows of which every fifth, beginning with the first, is German."""
    return [row(i, language="de" if i % 5 == 0 else "en") for i in range(first, first + count)]


def write_synth(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    """Write `values` as one file of SYNTH: one row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(values), schema=SCHEMA), path, row_group_size=1_000_000)
    return path


def write_folder(folder: Path, *counts: int) -> Path:
    """Write files synth_001.parquet ... of so many `rows` each, numbered through."""
    first = 0
    for number, count in enumerate(counts, start=1):
        write_synth(folder / f"synth_{number:03d}.parquet", rows(count, first=first))
        first += count
    return folder


def raw_paths(config: DataConfig, raw: StageResult, *, hub: Hub | None = None) -> dict[str, Path]:
    """Return the paths of the raw stage's files by name, in order."""
    places = raw_places(config, raw, hub=hub)
    return {file.name: places.path(file) for file in files_of(raw)}


def document_text(query: str, reasoning: str | None, answer: str) -> str:
    """Return the text of a row; a blank reasoning is left out together with its heading."""
    if reasoning is None or is_blank(reasoning):
        return f"{QUERY_MARK}{query}{ANSWER_MARK}{answer}"
    return f"{QUERY_MARK}{query}{REASONING_MARK}{reasoning}{ANSWER_MARK}{answer}"


def prompt_text(query: str) -> str:
    """Return the beginning of a document, up to where the model has to go on with its reasoning."""
    return f"{QUERY_MARK}{query}{REASONING_MARK}"


def answer_prompt_text(query: str) -> str:
    """Return the beginning of a document without reasoning, up to where the model has to answer."""
    return f"{QUERY_MARK}{query}{ANSWER_MARK.rstrip(' ')}"  # the blank belongs to the answer's first token


def article_key(query_seed_url: str | None, synth_id: str | None) -> str:
    """Return the name of the article a row grew from; a row without one is an article of its own."""
    if query_seed_url is not None and not is_blank(query_seed_url):
        return query_seed_url
    return synth_id or ""

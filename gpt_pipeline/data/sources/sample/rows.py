"""The sample's rows, with SYNTH's columns in SYNTH's proportions as far as known, and the parquet files of them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.formats.synth_text import FAILED_CONSTRAINT, SYNTH_COLUMNS
from gpt_pipeline.data.sources.sample.arithmetic import EXERCISE as MATH
from gpt_pipeline.data.sources.sample.arithmetic import math_exercise
from gpt_pipeline.data.sources.sample.articles import URL_ROOT, Article, articles
from gpt_pipeline.data.sources.sample.draft import Draft
from gpt_pipeline.data.sources.sample.knowledge import memorization
from gpt_pipeline.data.sources.sample.languages import LANGUAGES, foreign_draft
from gpt_pipeline.data.sources.sample.reading import mcq, rag
from gpt_pipeline.data.sources.sample.writing import constrained_writing, creative_writing, editing
from gpt_pipeline.storage.atomic import atomic_path

SAMPLE_VERSION: Final = "2"
"""Raise it whenever the same seed gives other documents."""

Row = dict[str, Any]

_SHARES: Final = {
    "en": 0.808, "de": 0.033, "es": 0.032, "fr": 0.032, "pl": 0.031, "it": 0.031, "nl": 0.0155,
    "la": 0.0145, "pt": 0.00165, None: 0.00135,
}  # fmt: skip
"""SYNTH's shares of languages; its 17 rarest ones are left out. They add up to 1."""

_MAKERS: Final = (memorization, rag, mcq, editing, constrained_writing, creative_writing)
_MAKER_BOUNDS: Final = tuple(accumulate((0.27, 0.27, 0.22, 0.1, 0.07, 0.07)))
_MATH_SHARE: Final = 0.22  # of the English rows
_FAILED_SHARE: Final = 0.01  # of the math rows
_LACKING_SHARE: Final = 0.025  # rows that have no query, no reasoning or no answer
_BLANKS: Final = (None, "", " \n")

_LANGUAGES: Final = tuple(_SHARES)
_LANGUAGE_BOUNDS: Final = tuple(accumulate(_SHARES.values()))

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


def rows_of_file(number: int, *, seed: int, n_rows: int) -> Iterator[Row]:
    """Yield the rows of the `number`-th file, from 1 on. They depend on the arguments alone.

    The very first row of all is German, as in SYNTH.
    """
    rng = Random(f"sample file {seed} {number}")
    for place in range(n_rows):
        language = "de" if (number, place) == (1, 0) else _pick_language(rng)
        row = _english_row(rng, seed) if language in ("en", None) else _foreign_row(rng, language)
        row["synth_id"] = f"sample_{number:03d}_{place:06d}"
        row["language"] = language
        _spoil(rng, row)
        yield row


def _pick_language(rng: Random) -> str | None:
    return _LANGUAGES[min(bisect(_LANGUAGE_BOUNDS, rng.random()), len(_LANGUAGES) - 1)]


def _english_row(rng: Random, seed: int) -> Row:
    if rng.random() < _MATH_SHARE:
        return _row(math_exercise(rng), url=None, text=None)
    article: Article = rng.choice(articles(seed))
    maker = _MAKERS[min(bisect(_MAKER_BOUNDS, rng.random()), len(_MAKERS) - 1)]
    return _row(maker(rng, article), url=article.url, text=article.text)


def _foreign_row(rng: Random, code: str) -> Row:
    language = LANGUAGES[code]
    person, place = (rng.randrange(len(language.names)), rng.randrange(len(language.towns)))
    name, town = language.names[person], language.towns[place]
    draft = foreign_draft(rng, language, name=name, town=town)
    if draft.exercise == MATH:
        return _row(draft, url=None, text=None)
    return _row(
        draft, url=f"{URL_ROOT}/{code}/person-{person}-{place}", text=language.fact.format(name=name, town=town)
    )


def _row(draft: Draft, *, url: str | None, text: str | None) -> Row:
    return {
        "exercise": draft.exercise,
        "model": f"gpt-pipeline templates {SAMPLE_VERSION}",
        "query": draft.query,
        "query_seed_url": url,
        "query_seed_text": text,
        "additional_seed_url": None,
        "seed_license": None if url is None else "CC0-1.0",
        "constraints": draft.constraints,
        "script": draft.script,
        "synthetic_reasoning": draft.reasoning,
        "synthetic_answer": draft.answer,
        "words": len(draft.query.split()) + len(draft.reasoning.split()) + len(draft.answer.split()),
    }


def _spoil(rng: Random, row: Row) -> None:
    """Take something from a few rows, as in the real data: those that the pipeline has to leave out."""
    chance = rng.random()
    if chance < _LACKING_SHARE:
        row[rng.choice(("query", "synthetic_reasoning", "synthetic_answer"))] = rng.choice(_BLANKS)
    elif row["exercise"] == MATH and chance < _LACKING_SHARE + _FAILED_SHARE:
        row["constraints"] = FAILED_CONSTRAINT

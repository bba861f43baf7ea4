"""A generated set with SYNTH's columns, text sizes and row groups: `python -m benchmarks.synth_set FOLDER`.

The text is words of GPT-2's vocabulary at Zipf's frequencies, so that its compression and its tokens per byte are near
those of English; it means nothing. Languages, exercises, empty parts, given-up rows, repeated rows and articles come at
about SYNTH's shares.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2

ROWS_PER_FILE = 100_000
_BATCH_ROWS = 5_000
_ROWS_PER_ARTICLE = 1_300
_REPEATED = 0.002  # of all rows
_LANGUAGES = {"en": 0.808, "de": 0.032, "es": 0.032, "fr": 0.032, "pl": 0.032, "it": 0.032, "nl": 0.016, "la": 0.016}
_EXERCISES = ("memorization", "mcq", "creative writing", "math exercise", "rag", "cooking", "editing")
_MEAN_WORDS = {"query": 30, "query_seed_text": 330, "synthetic_reasoning": 330, "synthetic_answer": 270}
_MARKS = (",", ".", ".", ":", "\n\n", " -", " 1", " 2", " 10", "?")
_SYMBOLS = (" →", " ≈", "’s", " –", " ✓", " ●", " ∴", " “", "”", " é")  # SYNTH's reasonings are full of them
_COMMON = 30  # words are more frequent than a symbol: each is about one word in 400


@cache
def _words() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    """Return all words' bytes one after the other, where each begins (and the end), and their summed frequencies."""
    encoding = gpt2()
    tokens = [encoding.bytes_of(token) for token in range(EOT_TOKEN)]
    words = [token for token in tokens if token[:1] == b" " and token[1:].isalpha() and token[1:].islower()]
    words[_COMMON:_COMMON] = [symbol.encode() for symbol in _SYMBOLS]
    words[5:5] = [mark.encode() for mark in _MARKS]
    starts = np.cumsum([0, *map(len, words)])
    weights = 1 / np.arange(3, len(words) + 3)
    return np.frombuffer(b"".join(words), np.uint8), starts, np.cumsum(weights / weights.sum())


def _texts(rng: np.random.Generator, rows: int, mean_words: int) -> pa.Array:
    """Return texts whose numbers of words are log-normal around `mean_words`."""
    letters, starts, cumulated = _words()
    counts = np.clip(rng.lognormal(np.log(mean_words) - 0.125, 0.5, rows), 3, 20 * mean_words).astype(np.int64)
    words = np.searchsorted(cumulated, rng.random(counts.sum()) * cumulated[-1])
    lengths = starts[words + 1] - starts[words]
    ends = np.cumsum(lengths)
    source = np.arange(ends[-1]) + np.repeat(starts[words] - (ends - lengths), lengths)
    offsets = np.concatenate([[0], ends[np.cumsum(counts) - 1]]).astype(np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters[source]))


def _choice(
    rng: np.random.Generator, names: list[str | None], rows: int, shares: list[float] | None = None
) -> pa.Array:
    kinds = pa.array(names, pa.string())
    shares = None if shares is None else [share / sum(shares) for share in shares]
    return kinds.take(pa.array(rng.choice(len(names), rows, p=shares)))


def _emptied(rng: np.random.Generator, column: pa.Array, share: float) -> pa.Array:
    return pa.compute.if_else(pa.array(rng.random(len(column)) < share), pa.scalar(""), column)


def _batch(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
    articles = [
        f"https://en.wikipedia.org/wiki/Article_{number}" for number in range((first + rows) // _ROWS_PER_ARTICLE + 1)
    ]
    text = {name: _texts(rng, rows, words) for name, words in _MEAN_WORDS.items()}
    columns = {
        "synth_id": pa.array([f"synth_{first + row:09d}" for row in range(rows)]),
        "language": _choice(rng, [*_LANGUAGES, None], rows, [*_LANGUAGES.values(), 0.00135]),
        "exercise": _choice(rng, list(_EXERCISES), rows),
        "model": _choice(rng, ["model-a", "model-b"], rows),
        "query": _emptied(rng, text["query"], 0.005),
        "query_seed_url": _choice(rng, [*articles, None], rows),
        "query_seed_text": text["query_seed_text"],
        "additional_seed_url": _choice(rng, [None, "https://example.org"], rows),
        "seed_license": _choice(rng, ["CC-By-SA (4.0)"], rows),
        "constraints": _choice(
            rng, [None, "result:42", "result:Failed after maximum attempts"], rows, [0.9, 0.09, 0.01]
        ),
        "script": _choice(rng, [None], rows),
        "synthetic_reasoning": _emptied(rng, text["synthetic_reasoning"], 0.1),
        "synthetic_answer": _emptied(rng, text["synthetic_answer"], 0.01),
        "words": pa.array(rng.integers(100, 900, rows)),
    }
    table = pa.table(columns)
    # Some rows stand twice, a few rows apart.
    return table.take(pa.array(np.where(rng.random(rows) < _REPEATED, rng.integers(0, rows, rows), np.arange(rows))))


def write_set(folder: Path, rows: int, seed: int = 0, *, rows_per_file: int = ROWS_PER_FILE) -> list[Path]:
    """Write `rows` rows as `synth_001.parquet`, ... into `folder`, one row group a file, and return the paths.

    A file that is there already is kept: the same arguments write the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, first in enumerate(range(0, rows, rows_per_file), start=1):
        path = folder / f"synth_{number:03d}.parquet"
        if not path.is_file():
            _write_file(path, np.random.default_rng([seed, number]), first, min(rows_per_file, rows - first))
        paths.append(path)
    return paths


def _write_file(path: Path, rng: np.random.Generator, first: int, rows: int) -> None:
    temporary = path.with_suffix(".tmp")
    parts = [_batch(rng, first + at, min(_BATCH_ROWS, rows - at)) for at in range(0, rows, _BATCH_ROWS)]
    pq.write_table(pa.concat_tables(parts), temporary, row_group_size=rows, compression="snappy")
    temporary.replace(path)


def with_typos(rng: np.random.Generator, texts: pa.StringArray, every: int) -> pa.StringArray:
    """Return `texts` with a small letter in every `every`-th byte exchanged for another."""
    if every == 0:
        return texts
    _, offsets, content = texts.buffers()
    letters = np.frombuffer(content, np.uint8).copy()
    chosen = rng.integers(0, len(letters), len(letters) // every)
    chosen = chosen[(letters[chosen] >= ord("a")) & (letters[chosen] <= ord("z"))]
    letters[chosen] = rng.integers(ord("a"), ord("z") + 1, len(chosen))
    return pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(letters), offset=texts.offset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=400_000, help="some 1.5 GB")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in write_set(arguments.folder, arguments.rows, arguments.seed):
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

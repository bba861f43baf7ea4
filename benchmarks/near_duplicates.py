"""How well and how fast near duplicates are found: `python -m benchmarks.near_duplicates`.

Generated texts, and each of them again with some words exchanged. Their likeness is computed exactly, as the share of
the runs of five words that both have, and compared with what is found.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.english import silent
from benchmarks.synth_set import write_set
from gpt_pipeline.data.documents.near import NearDuplicates
from gpt_pipeline.data.documents.shingles import WORDS
from gpt_pipeline.data.formats.synth import SYNTH, documents_of, select
from gpt_pipeline.data.formats.text import TextFormat
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.storage.atomic import sha256_of

_SHARES = (0.003, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1)  # of the words of a text that are exchanged
_EDGES = (0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.01)


def main() -> None:
    options = _options()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = _texts(folder / "raw", options.rows)
        behind = [_changed(rng, text, rng.choice(_SHARES)) for text in before]
        alike = np.array([_likeness(*pair) for pair in zip(before, behind, strict=True)])
        near = NearDuplicates(threshold=options.threshold, format=TextFormat(column="text"), data_folder=folder)
        paths = [_written(folder / f"{number}.parquet", texts) for number, texts in enumerate((before, behind))]
        started = time.process_time()
        signed = [near.prepare(path, sha256_of(path), seen=path.stat(), say=silent) for path in paths]
        seconds = time.process_time() - started
        started = time.process_time()
        _, found = near.find(signed)
        compared = time.process_time() - started
    megabytes = sum(len(text.encode()) for text in before + behind) / 1e6
    print(
        f"{2 * len(before):,} documents, {megabytes:.0f} MB: signatures {megabytes / seconds:.0f} MB/s of CPU time, ",
        end="",
    )
    print(f"compared in {compared:.2f} s\nlikeness       pairs   found")
    is_found = np.isin(np.arange(len(before)), found)
    for low, high in itertools.pairwise(_EDGES):
        own = is_found[(alike >= low) & (alike < high)]
        print(f"{low:.2f} to {min(high, 1):.2f}   {len(own):>6,}   {own.mean():>5.1%}")
    is_wanted = alike >= options.threshold
    print(f"RATIO of those at {options.threshold} or above that are found: {is_found[is_wanted].mean():.3f}")
    print(f"RATIO of those found that are at {options.threshold} or above: {is_wanted[is_found].mean():.3f}")


def _texts(folder: Path, rows: int) -> list[str]:
    batches = [
        documents_of(select(batch)) for path in write_set(folder, rows) for batch in read_rows(path, SYNTH.columns)
    ]
    return [text for batch in batches for text in dict.fromkeys(batch["text"].to_pylist())]


def _changed(rng: random.Random, text: str, share: float) -> str:
    return " ".join(f"new{rng.random()}" if rng.random() < share else word for word in text.split(" "))


def _likeness(left: str, right: str) -> float:
    one, other = (
        {*_runs(re.findall(r"[a-z0-9\x80-\u07ff]+|[\u0800-\U0010ffff]", text.lower()))} for text in (left, right)
    )
    return len(one & other) / len(one | other)


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))]


def _written(path: Path, texts: list[str]) -> Path:
    pq.write_table(pa.table({"text": texts}), path)
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8_000, help="of SYNTH's shape")
    parser.add_argument("--threshold", type=float, default=0.8)
    return parser.parse_args()


if __name__ == "__main__":
    main()

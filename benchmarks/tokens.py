"""From an English parquet file to verified shards, against the tokenizers alone: `python -m benchmarks.tokens`.

Contestants, in processes that take turns: our part (read, encode, compare a sample with tiktoken, split, write, make
durable, hash), the tokenizer that it uses with the same texts in memory already, tiktoken's `encode_ordinary_batch`
with the same threads and texts, and reading the file alone. The texts come from a generated set, or from `--raw`, and
in every 600th byte a letter is exchanged: words that occur once, which real text has and which a tokenizer that
remembers words cannot look up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.contest import Contestant, Step, Times, compete, describe_machine
from benchmarks.synth_set import with_typos, write_set
from gpt_pipeline.data.formats.synth import DOCUMENT_SCHEMA, SYNTH, documents_of, select
from gpt_pipeline.data.readers.rows import read_rows
from gpt_pipeline.data.tokens.encoder import new_encoder
from gpt_pipeline.data.tokens.part import write_token_part
from gpt_pipeline.data.tokens.tokenizer import gpt2, gpt2_encoding

_OURS = "gpt_pipeline: parquet to verified shards"
_ALONE = "its tokenizer alone, an instance a thread"
_OWN_THREADS = "gigatoken's encode_batch of all texts"
_TIKTOKEN = "tiktoken's encode_ordinary_batch"
_READING = "reading the file alone"
_BATCH_ROWS = 2_000


@dataclass(frozen=True, kw_only=True)
class _Settings:
    english: Path
    shards: Path
    threads: int


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        raw = sorted(options.raw.glob("*.parquet")) if options.raw else write_set(folder / "raw", options.rows)
        settings = _Settings(english=folder / "english.parquet", shards=folder / "shards", threads=options.threads)
        rows, text_bytes = _write_english(raw, settings.english, repeat=options.repeat, typos=options.typos)
        print(f"{describe_machine()}; {options.threads} threads; {rows:,} documents, {text_bytes / 1e6:.0f} MB of text")
        makes = {_OURS: _ours, _ALONE: _alone, _OWN_THREADS: _own_threads, _TIKTOKEN: _tiktoken, _READING: _reading}
        contestants = [Contestant(name=name, make=make, settings=settings) for name, make in makes.items()]
        _print_table(compete(contestants, turns=options.turns, steps=1), text_bytes)


def _print_table(times: dict[str, Times], text_bytes: int) -> None:
    width = max(len(name) for name in times)
    ours = times[_OURS].median
    print(f"\n{'':{width}}      MB/s   (least to most)   CPU s   peak MB   ratio: seconds to gpt_pipeline's")
    for name, one in times.items():
        slowest, fastest = text_bytes / 1e6 / max(one.seconds), text_bytes / 1e6 / min(one.seconds)
        print(
            f"{name:{width}}  {text_bytes / 1e6 / one.median:>8.0f}   {f'({slowest:.0f} to {fastest:.0f})':>15}"
            f"   {statistics.median(one.cpu_seconds):>5.2f}   {one.memory_bytes / 1e6:>7.0f}   {one.median / ours:.2f}"
        )
    alone = min(times[_ALONE].median, times[_OWN_THREADS].median)
    print(
        f"\nour time is {ours / alone:.2f} of the tokenizer's best, and {times[_TIKTOKEN].median / ours:.1f} times as ",
        end="",
    )
    print("fast as tiktoken's")


def _ours(settings: _Settings) -> Step:
    def step() -> float:
        write_token_part(
            settings.english, settings.shards, seed=0, fraction=0.005, threads=settings.threads, say=_silent
        )
        return 0.0

    return step


def _alone(settings: _Settings) -> Step:
    texts = list(_texts(settings.english))

    def step() -> float:
        def share(number: int) -> None:
            encoder = new_encoder(print, gpt2())
            for some in texts[number :: settings.threads]:
                encoder.encode(some)

        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(share, range(settings.threads)))
        return 0.0

    return step


def _own_threads(settings: _Settings) -> Step:
    os.environ["RAYON_NUM_THREADS"] = str(settings.threads)
    from gigatoken import Tokenizer

    vocabulary = settings.english.with_name("gpt2.tiktoken")
    _write_vocabulary(vocabulary)
    texts = [text for some in _texts(settings.english) for text in some.to_pylist()]

    def step() -> float:
        Tokenizer.from_tiktoken(vocabulary, "gpt2", {}).encode_batch(texts, parallel=True)
        return 0.0

    return step


def _write_vocabulary(path: Path) -> None:
    from gpt_pipeline.data.tokens import encoder

    path.write_bytes(encoder._tiktoken_file())


def _tiktoken(settings: _Settings) -> Step:
    texts = [text for some in _texts(settings.english) for text in some.to_pylist()]

    def step() -> float:
        for first in range(0, len(texts), _BATCH_ROWS):
            gpt2_encoding().encode_ordinary_batch(texts[first : first + _BATCH_ROWS], num_threads=settings.threads)
        return 0.0

    return step


def _reading(settings: _Settings) -> Step:
    def step() -> float:
        return float(sum(len(some) for some in _texts(settings.english)))

    return step


def _texts(path: Path) -> Iterator[pa.StringArray]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS // 2, columns=["text"], use_threads=False):
            yield batch["text"]


def _silent(line: str) -> None:
    pass


def _write_english(raw: list[Path], path: Path, *, repeat: int, typos: int) -> tuple[int, int]:
    """Write the documents of `raw` as the English stage does; returns how many, and the bytes of their texts."""
    rng = np.random.default_rng(0)
    rows = text_bytes = 0
    settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["exercise", "article"]}
    with pq.ParquetWriter(path, DOCUMENT_SCHEMA, **settings) as writer:
        for source in raw * repeat:
            for batch in read_rows(source, SYNTH.columns):
                documents = documents_of(select(batch))
                text = with_typos(rng, documents["text"], typos)
                writer.write_batch(documents.set_column(DOCUMENT_SCHEMA.get_field_index("text"), "text", text))
                rows += len(text)
                text_bytes += pc.sum(pc.binary_length(text)).as_py() or 0
    return rows, text_bytes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=155_000, help="of the generated set; a file of SYNTH has as many")
    parser.add_argument("--raw", type=Path, help="a folder of SYNTH's files to take instead of the generated set")
    parser.add_argument("--repeat", type=int, default=1, help="how many times to take the files")
    parser.add_argument("--typos", type=int, default=600, help="exchange a letter in every so many bytes; 0 for none")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the files; the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()

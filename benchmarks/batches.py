"""How fast batches come from shards in the page cache, and how soon the first one: `python -m benchmarks.batches`.

Counted are the B x T tokens of a batch at their 2 bytes each, in one thread, as the training's reading thread takes
them (`BatchSampler.rows_at`: uint16, gathered from the memory map into memory of its own). Beside it: the same batches
widened to int64 inputs and targets, and the customary loop, which cuts B random windows out of a memory map, widens and
stacks them. The first batch is that of a resume in the middle of 1.6 billion tokens in sparse files, opening included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.contest import describe_machine
from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.stream import (
    HEADER_BYTES,
    MAGIC,
    TOKEN_DTYPE,
    VERSION,
    TokenStream,
    new_shard,
    shard_name,
)
from gpt_pipeline.data.tokens.tokenizer import VOCAB_SIZE

_SIZES = ((8, 512), (16, 512), (32, 512), (64, 512), (8, 1024), (16, 1024), (32, 1024), (64, 1024))
_LARGE_TOKENS = 1_600_000_000
_LARGE_SHARDS = 4

Read = Callable[[int], object]
"""Reads the batch of a step."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"{describe_machine()}; {options.tokens / 1e6:.0f} M tokens in the page cache; GB/s of uint16 tokens\n")
        stream = _random_stream(folder / "random", options.tokens)
        print(f"{'B x T':>9}   {'rows_at':>8}   {'batch_at':>8}   {'customary loop':>14}   ratio: rows_at to the loop")
        for batch_size, length in _SIZES:
            _print_size(stream, batch_size, length, turns=options.turns, read_bytes=options.read_bytes)
        _print_first_batch(folder / "large", turns=options.turns)


def _print_size(stream: TokenStream, batch_size: int, length: int, *, turns: int, read_bytes: float) -> None:
    sampler = BatchSampler(stream=stream, sequence_length=length, batch_size=batch_size, seed=0)
    reads: dict[str, Read] = {
        "rows_at": sampler.rows_at,
        "batch_at": sampler.batch_at,
        "loop": _customary(stream, batch_size, length),
    }
    steps = max(1, int(read_bytes / (batch_size * length * TOKEN_DTYPE.itemsize)))
    seconds: dict[str, list[float]] = {name: [] for name in reads}
    for turn in range(turns):
        for name, read in reads.items():
            started = time.perf_counter()
            for step in range(turn * steps, (turn + 1) * steps):
                read(step)
            seconds[name].append(time.perf_counter() - started)
    total = steps * batch_size * length * TOKEN_DTYPE.itemsize / 1e9
    rates = {name: total / statistics.median(own) for name, own in seconds.items()}
    columns = f"{rates['rows_at']:>8.2f}   {rates['batch_at']:>8.2f}   {rates['loop']:>14.2f}"
    ratio = rates["rows_at"] / rates["loop"]
    print(f"{f'{batch_size} x {length}':>9}   {columns}   {ratio:.1f}", flush=True)


def _customary(stream: TokenStream, batch_size: int, length: int) -> Read:
    tokens = stream.read(0, stream.n_tokens)
    rng = np.random.default_rng(0)

    def read(step: int) -> object:
        starts = rng.integers(0, len(tokens) - length, batch_size).tolist()
        inputs = np.stack([tokens[start : start + length].astype(np.int64) for start in starts])
        targets = np.stack([tokens[start + 1 : start + 1 + length].astype(np.int64) for start in starts])
        return inputs, targets

    return read


def _print_first_batch(folder: Path, *, turns: int) -> None:
    names = _sparse_shards(folder)
    seconds = []
    for turn in range(turns):
        started = time.perf_counter()
        sampler = BatchSampler(stream=TokenStream(folder, names), sequence_length=1024, batch_size=32, seed=turn)
        sampler.batch_at(sampler.steps_per_epoch // 2 + turn)
        seconds.append(time.perf_counter() - started)
    print(
        f"\nfirst batch of a resume, {_LARGE_TOKENS / 1e9:.1f} billion tokens in {_LARGE_SHARDS} files, 32 x 1024: "
        f"{1e3 * statistics.median(seconds):.1f} ms (at most {1e3 * max(seconds):.1f})"
    )


def _random_stream(folder: Path, n_tokens: int) -> TokenStream:
    rng = np.random.default_rng(0)
    name = shard_name("train", 1)
    with new_shard(folder / name) as shard:
        for _ in range(0, n_tokens, 1 << 20):
            shard.append(rng.integers(0, VOCAB_SIZE, 1 << 20, dtype=np.uint16))
    stream = TokenStream(folder, (name,))
    stream.read(0, stream.n_tokens).sum()  # touches each page
    return stream


def _sparse_shards(folder: Path) -> tuple[str, ...]:
    """Write shards whose tokens are holes in the file, so that they take no space and read as 0."""
    folder.mkdir()
    names = tuple(shard_name("train", number) for number in range(1, _LARGE_SHARDS + 1))
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, _LARGE_TOKENS // _LARGE_SHARDS
    for name in names:
        with (folder / name).open("wb") as file:
            file.write(header.tobytes())
            file.truncate(HEADER_BYTES + int(header[2]) * TOKEN_DTYPE.itemsize)
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000_000, help="in the shard, 400 MB")
    parser.add_argument("--read-bytes", type=float, default=200e6, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the files; the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Shards of bytes of the text that lies on any machine with Python: no tokenizer, no download."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from gpt_pipeline.data.tokens.stream import Tokens, new_shard, shard_name, starts_name
from gpt_pipeline.storage.manifest import MANIFEST_NAME, Manifest, record_file
from gpt_pipeline_tests.gpu_checks import ROOT

VOCABULARY = 257
"""A token for each byte, and one before each document."""

FINGERPRINT = "b" * 64
_EOT = 256
_ENDINGS = (".py", ".md", ".rst", ".txt")
_LEAST_BYTES, _MOST_BYTES = 200, 1_000_000  # of a file
_HELD_OUT = 50  # one file in so many


SOURCE = f"bytes of this repository, of Python's library and of installed packages ({', '.join(_ENDINGS)})"


def make_shards(folder: Path, *, most_bytes: int) -> None:
    """Write a finished token_shards stage of about `most_bytes` at the most, if it is not there."""
    if (folder / MANIFEST_NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    starts: dict[str, list[int]] = {"train": [], "validation": []}
    counts = dict.fromkeys(starts, 0)
    with ExitStack() as stack:
        shards = {split: stack.enter_context(new_shard(folder / shard_name(split, 1))) for split in starts}
        for split, tokens in _documents():
            starts[split].append(counts[split])
            shards[split].append(tokens)
            counts[split] += len(tokens)
            if sum(counts.values()) > most_bytes:
                break
    files = {}
    for split, own in starts.items():
        name = shard_name(split, 1)
        np.save(folder / starts_name(name), np.array(own, dtype=np.int64))
        files |= {file: record_file(folder / file) for file in (name, starts_name(name))}
    facts = {**{f"{split}_tokens": count for split, count in counts.items()}, "eot_token": _EOT}
    Manifest(stage="token_shards", fingerprint=FINGERPRINT, config={}, files=files, facts=facts).write(folder)


def _documents() -> Iterator[tuple[str, Tokens]]:
    """Yield each text once, with its split, which depends on nothing but the text."""
    seen = set()
    for path in _files():
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in seen or not _LEAST_BYTES <= len(content) <= _MOST_BYTES:
            continue
        seen.add(digest)
        split = "validation" if int.from_bytes(digest[:4], "little") % _HELD_OUT == 0 else "train"
        yield split, np.concatenate([[_EOT], np.frombuffer(content, np.uint8)]).astype(np.uint16)


def _files() -> Iterator[Path]:
    """Yield the repository's own files first, then those of Python and of its packages."""
    folders = [ROOT / name for name in ("gpt_pipeline", "gpt_pipeline_tests", "benchmarks", "docs")]
    folders += [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")]
    for folder in dict.fromkeys(folders):
        yield from sorted(path for path in folder.rglob("*") if path.suffix in _ENDINGS and path.is_file())

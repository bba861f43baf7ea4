"""Which held-out documents are measured or continued one by one: a fixed choice, spread over kinds."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.split import read_side
from gpt_pipeline.data.documents.stage import document_files
from gpt_pipeline.storage.atomic import known_fields, read_kept, write_json
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import StageResult

CHOICE_VERSION = "1"
"""Raise it when the same data, count and seed choose other documents."""

_COLUMNS = ("group", "kind", "id")
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class HeldOutDocument:
    """One document of the validation split."""

    number: int
    """Its place in the split, from 0: the documents and the shards have them in the same order."""

    exercise: str


@dataclass(frozen=True, kw_only=True)
class HeldOutChoice:
    """The documents that were chosen, and among how many."""

    documents: tuple[HeldOutDocument, ...]
    available: int
    """Held-out documents in all."""


NO_DOCUMENTS = HeldOutChoice(documents=(), available=0)
"""Where none is looked at."""


def cached_choice(folder: Path, documents: StageResult, data: DataConfig, *, count: int, seed: int) -> HeldOutChoice:
    """Return `choose_documents`, kept in `folder` so that only the first checkpoint reads the columns."""
    identity = fingerprint(
        "held_out_documents",
        config={"count": count, "seed": seed, "data_seed": data.seed, "validation_fraction": data.validation_fraction},
        upstream=[documents.fingerprint],
        code_version=CHOICE_VERSION,
    )
    path = folder / f"{identity[:SHORT]}.json"
    kept = _read_choice(path, identity)
    if kept is not None:
        return kept
    choice = choose_documents(documents, data, count=count, seed=seed)
    write_json(path, {"fingerprint": identity, **dataclasses.asdict(choice)})
    return choice


def choose_documents(
    documents: StageResult, data: DataConfig, *, count: int, seed: int, batch_rows: int = _BATCH_ROWS
) -> HeldOutChoice:
    """Return up to `count` held-out documents, taken in turn from each kind of exercise, in the order of the split.

    Within a kind the seed decides by the documents' ids, so that more data changes the choice little. Three columns
    are read, no text; memory is bounded by `count`.
    """
    available = 0
    kept: dict[str, list[tuple[int, int]]] = defaultdict(list)  # heaps of (-rank, number), the last rank on top
    for exercise, synth_id in _held_out_rows(document_files(documents), data, batch_rows=batch_rows):
        entry = (-_rank(seed, synth_id or str(available)), available)
        if len(kept[exercise]) < count:
            heapq.heappush(kept[exercise], entry)
        elif count:
            heapq.heappushpop(kept[exercise], entry)
        available += 1
    by_rank = {name: [number for _, number in sorted(heap, reverse=True)] for name, heap in kept.items()}
    return HeldOutChoice(documents=_in_turn(by_rank, count=count), available=available)


def _held_out_rows(files: Sequence[Path], data: DataConfig, *, batch_rows: int) -> Iterator[tuple[str, str | None]]:
    """Yield exercise and id of each held-out document, in order."""
    for batch in read_side(files, _COLUMNS, data, held_out=True, batch_rows=batch_rows):
        kinds = [kind or "unknown" for kind in batch["kind"].to_pylist()]
        yield from zip(kinds, batch["id"].to_pylist(), strict=True)


def _rank(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\n{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _in_turn(by_rank: Mapping[str, Sequence[int]], *, count: int) -> tuple[HeldOutDocument, ...]:
    """Take the first of each exercise, then the second of each, ..., until there are `count`."""
    names = sorted(by_rank)
    taken = [
        HeldOutDocument(number=number, exercise=name)
        for place in zip_longest(*(by_rank[name] for name in names))
        for name, number in zip(names, place, strict=True)
        if number is not None
    ]
    return tuple(sorted(taken[:count], key=lambda document: document.number))


def _read_choice(path: Path, identity: str) -> HeldOutChoice | None:
    """Return the choice kept at `path`, or None if there is none with `identity` that can be read."""

    def parse(value: Mapping[str, Any]) -> HeldOutChoice | None:
        if value["fingerprint"] != identity:
            return None
        documents = tuple(HeldOutDocument(**known_fields(HeldOutDocument, each)) for each in value["documents"])
        return HeldOutChoice(documents=documents, available=value["available"])

    return read_kept(path, parse, otherwise="the documents are chosen again")

"""Token shards as files, and a split of them as one array. Needs numpy only: the trainer reads its data through this.

A shard is what llm.c and modded-nanogpt read: 256 little-endian int32 (magic, version, number of tokens, zeros), then
the tokens as little-endian uint16. Beside each lie, as int64, the positions of its documents' first tokens, those of
the tokens with which their answers begin, and the spans of tokens that an answer-only loss trains on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.storage.atomic import atomic_path
from gpt_pipeline.storage.manifest import FileRecord, Manifest, read_manifest, record_and_sync
from gpt_pipeline.storage.open_files import allow_open_files

MAGIC = 20240520  # llm.c, dev/data/data_common.py: GPT-2 tokens
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_DTYPE = np.dtype("<u2")
TRAIN, VALIDATION = "train", "validation"
EOT_TOKEN = 50256
"""GPT-2's `<|endoftext|>`, which stands before each document; other tokenizers have one of their own."""

TOKENIZER_NAME = "tokenizer.json"
"""Beside the shards, where they were made with another tokenizer than GPT-2's."""

Tokens = NDArray[np.uint16]
Positions = NDArray[np.int64]


def shard_name(split: str, number: int) -> str:
    """Return the file name of the `number`-th shard of a split, from 1."""
    return f"{split}_{number:06d}.bin"


def starts_name(shard: str) -> str:
    """Return the file name of a shard's document starts."""
    return f"{shard.removesuffix('.bin')}.starts.npy"


def answers_name(shard: str) -> str:
    """Return the file name of a shard's answer starts."""
    return f"{shard.removesuffix('.bin')}.answers.npy"


def spans_name(shard: str) -> str:
    """Return the file name of a shard's spans."""
    return f"{shard.removesuffix('.bin')}.spans.npy"


@dataclass(kw_only=True)
class ShardFile:
    """A shard that is being written."""

    file: BinaryIO
    record: FileRecord | None = None
    """Known once it is written."""

    def append(self, tokens: Tokens) -> None:
        self.file.write(np.ascontiguousarray(tokens, dtype=TOKEN_DTYPE).data)


@contextmanager
def new_shard(path: Path) -> Iterator[ShardFile]:
    """Yield a shard to append tokens to; it becomes `path`, with its header, when the block ends well."""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            shard = ShardFile(file=file)
            file.write(bytes(HEADER_BYTES))
            yield shard
            n_tokens = (file.tell() - HEADER_BYTES) // TOKEN_DTYPE.itemsize
            file.seek(0)
            file.write(_header(n_tokens))
        shard.record = record_and_sync(temporary)


def _header(n_tokens: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, n_tokens
    return header.tobytes()


def map_shard(path: Path) -> Tokens:
    """Return the tokens of a shard as a read-only memory map.

    Raises:
        DamagedFileError: the file is missing, has another header, or has not the size that its header says.
        UserError: the system allows the process no further map.
    """
    try:
        header = np.fromfile(path, dtype="<i4", count=256)
        size = path.stat().st_size
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; materialize token_shards again") from None
    if len(header) < 256 or (header[0], header[1]) != (MAGIC, VERSION):
        raise DamagedFileError(
            f"{path}: found header {header[:2].tolist()}, need {[MAGIC, VERSION]}; delete its folder and run again"
        )
    needed = HEADER_BYTES + int(header[2]) * TOKEN_DTYPE.itemsize
    if size != needed:
        raise DamagedFileError(f"{path}: found {size} bytes, need {needed}; delete its folder and run again")
    try:
        mapped = np.memmap(path, dtype=TOKEN_DTYPE, mode="r", offset=HEADER_BYTES)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise UserError(
            f"{path}: found no room to map it, need one map for each file of tokens; raise the limits (Linux: sysctl "
            "vm.max_map_count, 65530 unless set, and ulimit -v), or make the documents of fewer, larger source files"
        ) from error
    # A plain array over the map: numpy's memmap class makes each slice several times slower.
    return np.asarray(mapped)


def _load_positions(path: Path, *, n_tokens: int) -> Positions:
    try:
        positions: Positions = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; materialize token_shards again") from None
    except (ValueError, EOFError, OSError) as error:
        raise DamagedFileError(f"{path}: not readable ({error}); delete its folder and run again") from error
    if positions.dtype != np.int64 or positions.ndim != 1:
        found = f"{positions.dtype} {list(positions.shape)}"
        raise DamagedFileError(f"{path}: found {found}, need int64 [documents]; delete its folder and run again")
    if len(positions) and not (positions[0] >= 0 and positions[-1] < n_tokens and (np.diff(positions) > 0).all()):
        raise DamagedFileError(
            f"{path}: found positions from {positions[0]} to {positions[-1]}, need ascending ones below the shard's "
            f"{n_tokens} tokens; delete its folder and run again"
        )
    return positions


def _load_spans(path: Path, *, n_tokens: int) -> Positions:
    try:
        spans: Positions = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DamagedFileError(f"{path}: not readable ({error}); delete its folder and run again") from error
    if spans.dtype != np.int64 or spans.ndim != 2 or spans.shape[1] != 2:
        found = f"{spans.dtype} {list(spans.shape)}"
        raise DamagedFileError(f"{path}: found {found}, need int64 [spans, 2]; delete its folder and run again")
    if len(spans) and not (spans[0, 0] >= 0 and spans[-1, 1] <= n_tokens):
        raise DamagedFileError(
            f"{path}: found spans from {spans[0, 0]} to {spans[-1, 1]}, need them within the shard's {n_tokens} "
            "tokens; delete its folder and run again"
        )
    return spans


class TokenStream:
    """The shards of one split as one array of token ids; nothing is read before it is asked for."""

    def __init__(self, folder: Path, shards: tuple[str, ...], *, eot_token: int = EOT_TOKEN) -> None:
        """Map `shards`, file names in `folder`, in order; `eot_token` stands before each document.

        Raises:
            DamagedFileError: a shard is missing or is not what its header says.
            UserError: the system does not let the process open or map so many files.
        """
        allow_open_files(len(shards))  # each map keeps its file open, and all of SYNTH are a thousand
        self.folder = folder
        self.names = shards
        self.eot_token = eot_token
        self._shards = [map_shard(folder / name) for name in shards]
        self._spans: dict[int, Positions] = {}
        self._bounds: Positions = np.cumsum([0, *(len(shard) for shard in self._shards)], dtype=np.int64)

    @property
    def n_tokens(self) -> int:
        return int(self._bounds[-1])

    @cached_property
    def document_starts(self) -> Positions:
        """Position of each document's `<|endoftext|>` in the stream, ascending: int64 [documents]."""
        return self._positions([starts_name(name) for name in self.names])

    @property
    def document_bounds(self) -> Positions:
        """Where each document begins in the stream, and where the last one ends: int64 [documents + 1]."""
        return np.append(self.document_starts, self.n_tokens)

    def shard(self, name: str) -> TokenStream:
        """Return one of the stream's shards by itself; what is read of it is let go of with it."""
        return TokenStream(self.folder, (name,), eot_token=self.eot_token)

    def documents_by_shard(self) -> Iterator[Positions]:
        """Yield, for one shard after the other, where its documents begin in the stream, and where the last one ends.

        int64 [documents + 1]; for whole training splits, whose `document_starts` are gigabytes.

        Raises:
            DamagedFileError: as `_positions`.
        """
        for name, first, last in zip(self.names, *self._bounds_of_shards(), strict=True):
            starts = _load_positions(self.folder / starts_name(name), n_tokens=last - first)
            yield np.append(starts, last - first) + first

    @cached_property
    def answer_starts(self) -> Positions:
        """Position of the token that holds the first byte of each document's answer: int64 [documents]."""
        return self._positions([answers_name(name) for name in self.names])

    @property
    def has_spans(self) -> bool:
        """Whether it is known which tokens an answer-only loss trains on; earlier versions did not keep it."""
        return all((self.folder / spans_name(name)).is_file() for name in self.names)

    def in_spans(self, positions: Positions) -> NDArray[np.bool_]:
        """Return which of the tokens at `positions`, of any shape, an answer-only loss trains on.

        They are those in a document's spans, and the `<|endoftext|>` that follows a span which reaches the document's
        end: a model has to learn where an answer ends. Behind the last token, at position `n_tokens`, one is imagined.

        Raises:
            UserError: the shards were made by a version that wrote no spans.
            DamagedFileError: a file of spans is not what numpy writes, or leaves its shard.
        """
        flat = np.ascontiguousarray(positions).ravel()
        found = np.zeros(len(flat), dtype=np.bool_)
        shards = np.searchsorted(self._bounds, flat, side="right") - 1
        for shard in np.unique(shards).tolist():
            if shard == len(self._shards):
                found[shards == shard] = self._ends_in_span(shard - 1)
                continue
            chosen = np.flatnonzero(shards == shard)
            found[chosen] = self._in_spans_of(shard, flat[chosen] - self._bounds[shard])
        return found.reshape(positions.shape)

    def _in_spans_of(self, shard: int, inside: Positions) -> NDArray[np.bool_]:
        """Return the same for positions in one shard."""
        starts, ends = self._spans_of(shard).T
        found = np.zeros(len(inside), dtype=np.bool_)
        if len(starts):
            before = np.searchsorted(starts, inside, side="right") - 1
            closes = (inside == ends[before]) & (self._shards[shard][inside] == self.eot_token)
            found = (before >= 0) & ((inside < ends[before]) | closes)
        if shard > 0 and (inside == 0).any():  # the first <|endoftext|> ends what the shard before it holds last
            found[inside == 0] = self._ends_in_span(shard - 1)
        return found

    def _ends_in_span(self, shard: int) -> bool:
        """Whether the last span of a shard reaches its end."""
        spans = self._spans_of(shard)
        return len(spans) > 0 and bool(spans[-1, 1] == len(self._shards[shard]))

    def spans_between(self, begin: int, end: int) -> Positions:
        """Return the spans that begin in tokens `begin` to `end` of the stream: int64 [spans, 2], ascending.

        Raises:
            UserError: the shards were made by a version that wrote no spans.
            DamagedFileError: a file of spans is not what numpy writes, or leaves its shard.
        """
        found = [np.empty((0, 2), np.int64)]
        first = int(np.searchsorted(self._bounds, begin, side="right")) - 1
        last = int(np.searchsorted(self._bounds, end, side="left"))
        for shard, base in zip(range(first, last), self._bounds[first:last].tolist(), strict=True):
            spans = self._spans_of(shard)
            chosen = slice(*np.searchsorted(spans[:, 0], [begin - base, end - base]).tolist())
            found.append(spans[chosen] + base)
        return np.concatenate(found)

    def _spans_of(self, shard: int) -> Positions:
        """Return the spans of a shard, first token and the one behind the last: int64 [spans, 2], ascending; mapped."""
        if shard not in self._spans:
            path = self.folder / spans_name(self.names[shard])
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: these shards were made by a version that kept no spans; make them again, with "
                    "the same tokens, by materializing token_shards with `force`"
                )
            self._spans[shard] = _load_spans(path, n_tokens=len(self._shards[shard]))
        return self._spans[shard]

    def _positions(self, names: list[str]) -> Positions:
        """Return the positions that the sidecars `names` hold, counted from the stream's beginning.

        Raises:
            DamagedFileError: a sidecar is missing, is not what numpy writes, or leaves its shard.
        """
        pieces = [np.empty(0, np.int64)]
        for name, first, last in zip(names, *self._bounds_of_shards(), strict=True):
            pieces.append(_load_positions(self.folder / name, n_tokens=last - first) + first)
        return np.concatenate(pieces)

    def _bounds_of_shards(self) -> tuple[list[int], list[int]]:
        """Return where each shard begins in the stream, and where it ends."""
        return self._bounds[:-1].tolist(), self._bounds[1:].tolist()

    def read(self, start: int, length: int) -> Tokens:
        """Return `length` tokens from `start` on: uint16 [length], a view into the file where it can be one.

        Raises:
            IndexError: the range leaves the stream.
        """
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} leave the stream of {self.n_tokens}")
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, start + length, side="left"))
        pieces = [
            shard[max(start - base, 0) : start + length - base]
            for shard, base in zip(self._shards[first:last], self._bounds[first:last].tolist(), strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint16), *pieces])

    def gather(self, starts: Positions, length: int) -> Tokens:
        """Return one row of `length` tokens from each of `starts`: uint16 [len(starts), length].

        Raises:
            IndexError: a row leaves the stream.
        """
        starts = np.asarray(starts, dtype=np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + length > self.n_tokens):
            raise IndexError(f"rows of {length} tokens leave the stream of {self.n_tokens}")
        first = np.searchsorted(self._bounds, starts, side="right") - 1
        inside = starts + length <= self._bounds[first + 1]
        shards = np.unique(first)
        if len(shards) == 1 and inside.all():
            return _rows(self._shards[shards[0]], starts - self._bounds[shards[0]], length)
        rows = np.empty((len(starts), length), dtype=np.uint16)
        for shard in shards:
            chosen = np.flatnonzero(inside & (first == shard))
            rows[chosen] = _rows(self._shards[shard], starts[chosen] - self._bounds[shard], length)
        for row in np.flatnonzero(~inside):
            rows[row] = self.read(int(starts[row]), length)
        return rows


def _rows(shard: Tokens, starts: Positions, length: int) -> Tokens:
    """Return one row of `length` tokens from each of `starts`: uint16 [len(starts), length]."""
    if len(starts) == 0:
        return np.empty((0, length), np.uint16)
    # Each window as one item, which numpy copies in one go.
    windows = sliding_window_view(shard, length).view(np.dtype((np.void, length * shard.itemsize)))[:, 0]
    rows: Tokens = windows[starts].view(shard.dtype).reshape(-1, length)
    return rows


@cache
def tokenizer_file(folder: str) -> str:
    """Return the text of the tokenizer.json beside the shards in `folder`.

    Raises:
        DamagedFileError: it is missing.
    """
    path = Path(folder, TOKENIZER_NAME)
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing; materialize token_shards again") from None


@dataclass(frozen=True, kw_only=True)
class TokenShards:
    """The two splits of a finished token_shards stage."""

    train: TokenStream
    validation: TokenStream
    manifest: Manifest


def open_shards(folder: Path) -> TokenShards:
    """Return the splits in `folder`; checks headers, sizes and token counts, not every byte.

    Raises:
        DamagedFileError: there is no finished stage in `folder`, or a file is not what the manifest says.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DamagedFileError(f"{folder} holds no finished token shards; materialize token_shards again")
    train, validation = (_open_split(folder, manifest, split) for split in (TRAIN, VALIDATION))
    return TokenShards(train=train, validation=validation, manifest=manifest)


def _open_split(folder: Path, manifest: Manifest, split: str) -> TokenStream:
    names = tuple(sorted(name for name in manifest.files if name.startswith(f"{split}_") and name.endswith(".bin")))
    stream = TokenStream(folder, names, eot_token=manifest.facts.get("eot_token", EOT_TOKEN))
    needed = manifest.facts[f"{split}_tokens"]
    if stream.n_tokens != needed:
        raise DamagedFileError(f"{folder}: found {stream.n_tokens} {split} tokens, need {needed}; delete it, run again")
    return stream

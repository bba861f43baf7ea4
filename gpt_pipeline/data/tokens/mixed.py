"""The shards of a mix: those of its parts, so many of each that their tokens stand in the shares of the experiment.

Whole shards are links to the parts' own, as often as an epoch repeats them; only the last of each part is cut, at the
end of a document. The order does not matter for training, which draws its sequences from all shards alike. In the
validation split the documents of the parts take turns, so that however much of it is looked at has the shares too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.data.arrays import save_array
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import MIXED_SHARDS
from gpt_pipeline.data.stage import PlacedStage, finish_stage, needs_nothing
from gpt_pipeline.data.tokens.lengths import LENGTH_EDGES
from gpt_pipeline.data.tokens.shards import ShardsStage, has_turns, require_a_sequence, tokenizer_facts
from gpt_pipeline.data.tokens.stream import (
    TOKENIZER_NAME,
    TRAIN,
    VALIDATION,
    Positions,
    TokenStream,
    answers_name,
    new_shard,
    open_shards,
    shard_name,
    spans_name,
    starts_name,
)
from gpt_pipeline.data.tokens.writer import MAX_SHARD_TOKENS
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import link_or_copy
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult, not_finished, stage_folder, verify

CODE_VERSION = "1"
_MOST_REPEATS = 100  # each is a file of its own; beyond 4 of them little is learned
_HELD_OUT_REPEATS = 16
_LOOKED_AT = 8  # tokens of a document, before all of them are
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: Knuth, The Art of Computer Programming, 6.4


@dataclass(frozen=True, kw_only=True)
class MixedPart:
    """A part of a mix with its finished shards."""

    name: str
    share: float
    """Of the training tokens, in (0, 1)."""

    stage: StageResult

    @cached_property
    def train(self) -> TokenStream:
        return open_shards(self.stage.folder).train

    @cached_property
    def validation(self) -> TokenStream:
        return open_shards(self.stage.folder).validation


@dataclass(frozen=True, kw_only=True)
class MixedShardsStage(PlacedStage):
    """The stage of the shards of a mix, made in one go: its parts are the stages of shards that it mixes."""

    config: DataConfig
    data_folder: Path
    name = MIXED_SHARDS

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while the shards of a part are not known."""
        places = {name: stage.place() for name, stage in self._stages.items()}
        known = {name: place[1] for name, place in places.items() if place is not None}
        if len(known) < len(places):
            return None
        wanted = self._fingerprint(known)
        return stage_folder(self.data_folder, self.name, wanted), wanted

    def plan(self, *, force: bool, say: Say) -> list[list[str]]:
        """Return no files: there are none to be made by themselves; see `PartedStage`."""
        stage = self.find()
        if force:
            self.parts()  # raises if one is not finished, before anything is begun
        elif needs_nothing(stage, say=say):
            require_a_sequence(self.config, stage.manifest.facts)
        return []

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> dict[str, Any]:
        """Do nothing, for `plan` names no files; see `PartedStage`."""
        return {"megabytes": 0.0}

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Mix the shards of the parts; see `PartedStage`.

        Raises:
            DataError: the shards of a part are not finished.
            DamagedFileError: one of their files is not what its manifest says.
        """
        parts = self.parts()
        wanted = self._fingerprint({part.name: part.stage.fingerprint for part in parts})
        folder = stage_folder(self.data_folder, self.name, wanted)
        stage = finish_stage(folder, wanted, force=force, say=say, make=lambda: self._mixed(parts, folder, wanted, say))
        require_a_sequence(self.config, stage.manifest.facts)
        return stage

    def parts(self) -> list[MixedPart]:
        """Return the parts in the order in which the mix has them, which does not depend on their names.

        Raises:
            DataError: the shards of one are not finished.
        """
        found = []
        for name, stage in self._stages.items():
            shards = stage.find()
            if shards is None:
                raise not_finished(stage.name, self.data_folder, of=f"the part `{name}`")
            found.append(MixedPart(name=name, share=self.config.shares[name], stage=shards))
        return sorted(found, key=lambda part: (part.stage.fingerprint, part.share))

    @cached_property
    def _stages(self) -> Mapping[str, ShardsStage]:
        parts = self.config.parts.items()
        return {name: ShardsStage(config=part, data_folder=self.data_folder) for name, part in parts}

    def _fingerprint(self, parts: Mapping[str, str]) -> str:
        """Return the stage's fingerprint, by those of the shards of its parts."""
        upstream = sorted(parts.values())
        return fingerprint(self.name, config=self._identity(parts), upstream=upstream, code_version=CODE_VERSION)

    def _identity(self, parts: Mapping[str, str]) -> dict[str, Any]:
        shares = sorted([shards, self.config.shares[name]] for name, shards in parts.items())
        return {"shares": shares, "until": self.config.mix_until}

    def _mixed(self, parts: Sequence[MixedPart], folder: Path, wanted: str, say: Say) -> Manifest:
        for part in parts:
            verify(part.stage)
        shards = {part.name: kept for part, kept in zip(parts, without_held_out(parts), strict=True)}
        sizes = {name: sum(each.n_tokens for each in kept) for name, kept in shards.items()}
        _require_tokens(sizes)
        amounts = epoch_of([*sizes.values()], [part.share for part in parts], until=self.config.mix_until)
        _require_few_repeats(sizes, amounts, self.config)
        train = _Split(folder=folder, split=TRAIN)
        taken = {}
        for part, amount in zip(parts, amounts, strict=True):
            taken[part.name] = train.add_tokens(part, shards[part.name], amount)
            say(_said(part, shards[part.name], taken[part.name]))
        validation = _Split(folder=folder, split=VALIDATION)
        validation.add_documents([part.validation for part in parts], taking_turns(parts))
        return Manifest(
            stage=self.name,
            fingerprint=wanted,
            config=self._identity({part.name: part.stage.fingerprint for part in parts}),
            upstream=tuple(sorted(part.stage.fingerprint for part in parts)),
            files={**train.records, **validation.records, **_tokenizer(parts[0].stage, folder)},
            facts={
                **_facts(folder, train, validation),
                "train_tokens_by_part": taken,
                "epochs_by_part": {name: round(taken[name] / size, 4) for name, size in sizes.items()},
                "left_out_by_part": {name: sum(len(each.left_out) for each in own) for name, own in shards.items()},
                **tokenizer_facts(max((part.stage for part in parts), key=has_turns)),
                "held_out": _held_out(parts),
            },
        )


def _tokenizer(shards: StageResult, folder: Path) -> dict[str, FileRecord]:
    """Link the tokenizer of the parts, which is one for all of them, into `folder`, and return its file."""
    files = {name: record for name, record in shards.manifest.files.items() if name == TOKENIZER_NAME}
    for name in files:
        link_or_copy(shards.folder / name, folder / name)
    return files


def _held_out(parts: Sequence[MixedPart]) -> dict[str, Any]:
    """Return what decides which tokens are held out: the settings of the parts' split, and their documents."""
    documents = sorted([part.stage.manifest.upstream[0], part.share] for part in parts)
    return {**parts[0].stage.manifest.config, "documents": documents}


def epoch_of(sizes: Sequence[int], shares: Sequence[float], *, until: str) -> list[int]:
    """Return how many tokens an epoch takes of each part, that has `sizes` tokens; more than these where it repeats."""
    # The part that decides has exactly its own tokens, whatever the rounding of the shares.
    lengths = [size / share for size, share in zip(sizes, shares, strict=True)]
    decides = lengths.index(min(lengths) if until == "first_exhausted" else max(lengths))
    amounts = [max(1, round(share * lengths[decides])) for share in shares]
    amounts[decides] = sizes[decides]
    return amounts if until == "all_exhausted" else [min(pair) for pair in zip(amounts, sizes, strict=True)]


def _require_tokens(sizes: Mapping[str, int]) -> None:
    """Raise `ConfigError` where another part holds out all that one would be trained on."""
    if empty := [name for name, size in sizes.items() if not size]:
        raise ConfigError(
            f"data.mix.{empty[0]}",
            found="no training tokens",
            need="documents that no other part of the mix holds out",
            remedy="leave the part out, or give it more documents",
        )


def _require_few_repeats(sizes: Mapping[str, int], amounts: Sequence[int], config: DataConfig) -> None:
    """Raise `ConfigError` where an epoch would have a part so often that the mix would be of links."""
    for (name, size), amount in zip(sizes.items(), amounts, strict=True):
        if amount > _MOST_REPEATS * size:
            raise ConfigError(
                f"data.mix.{name}.share",
                found=config.shares[name],
                need=f"a share for which an epoch has the part's {size:,} tokens at most {_MOST_REPEATS} times "
                f"(found {amount / size:,.0f} times)",
                remedy="lower it, give the part more documents, or set data.mix_until: first_exhausted",
            )


def taking_turns(parts: Sequence[MixedPart]) -> Iterator[tuple[int, int]]:
    """Yield the held-out documents of the parts by part and number, next from the part furthest behind its share.

    A part that has no more begins again: what the smallest part holds out would be too little to estimate a loss on.
    It does so a few times, and then it ends.
    """
    lengths = [part.validation.n_tokens / part.share for part in parts]
    end = min(max(lengths), _HELD_OUT_REPEATS * min(lengths))
    begins, whose, numbers = [], [], []
    for place, part in enumerate(parts):
        starts = part.validation.document_starts
        rounds = np.arange(math.ceil(end / lengths[place]))[:, None]
        begins.append(((rounds * part.validation.n_tokens + starts) / part.share).ravel())
        whose.append(np.full(len(begins[-1]), place))
        numbers.append(np.tile(np.arange(len(starts)), len(rounds)))
    at, of_part, of_document = (np.concatenate(each) for each in (begins, whose, numbers))
    order = np.lexsort((of_part, at))
    order = order[at[order] < end]
    yield from zip(of_part[order].tolist(), of_document[order].tolist(), strict=True)


@dataclass(frozen=True, kw_only=True)
class KeptShard:
    """A shard of a part without the documents that another part holds out of training. Opened when it is read."""

    part: TokenStream
    name: str
    n_tokens: int
    """Of the documents that are kept."""

    left_out: Positions
    """Numbers of the other documents in the shard: int64, ascending."""

    @property
    def stream(self) -> TokenStream:
        return self.part.shard(self.name)

    def kept(self, stream: TokenStream) -> tuple[Positions, Positions]:
        """Return the numbers of the kept documents, and the tokens up to the end of each: int64 [documents]."""
        lengths = np.diff(stream.document_bounds)
        documents = np.setdiff1d(np.arange(len(lengths)), self.left_out, assume_unique=True)
        return documents, np.cumsum(lengths[documents])


def without_held_out(parts: Sequence[MixedPart]) -> list[list[KeptShard]]:
    """Return the training shards of each part without documents that another part holds out.

    Within a part, documents of one group are on one side; two parts may have the same text in different groups.
    """
    keys, digests = [np.empty(0, np.uint64)], set()
    for stream in (part.validation for part in parts):
        bounds = stream.document_bounds
        keys.append(_keys(stream, bounds))
        digests |= {_digest(stream, bounds, number) for number in range(len(bounds) - 1)}
    held_out = np.unique(np.concatenate(keys))
    return [[_kept(part.train, name, held_out, digests) for name in part.train.names] for part in parts]


def _kept(part: TokenStream, name: str, keys: NDArray[np.uint64], digests: Set[bytes]) -> KeptShard:
    stream = part.shard(name)
    bounds = stream.document_bounds
    alike = np.flatnonzero(np.isin(_keys(stream, bounds), keys))
    found = [_digest(stream, bounds, number) in digests for number in alike.tolist()]
    left_out = alike[np.array(found, np.bool_)]
    n_tokens = stream.n_tokens - int(np.diff(bounds)[left_out].sum())
    return KeptShard(part=part, name=name, n_tokens=n_tokens, left_out=left_out)


def _keys(stream: TokenStream, bounds: Positions) -> NDArray[np.uint64]:
    """Return a number for each document that is the same for the same tokens: of its length and some of the tokens."""
    lengths = np.diff(bounds)
    keys = lengths.astype(np.uint64) * _ODD
    for place in range(_LOOKED_AT):
        some = stream.gather(bounds[:-1] + lengths * place // _LOOKED_AT, 1)[:, 0]
        keys = (keys ^ some.astype(np.uint64)) * _ODD
    return keys


def _digest(stream: TokenStream, bounds: Positions, number: int) -> bytes:
    """Return the hash of a document's tokens."""
    begin, end = int(bounds[number]), int(bounds[number + 1])
    return hashlib.blake2b(stream.read(begin, end - begin).tobytes(), digest_size=16).digest()


@dataclass(kw_only=True)
class _Split:
    """The shards of one split, numbered through."""

    folder: Path
    split: str
    records: dict[str, FileRecord] = field(default_factory=dict)
    shards: int = 0

    def add_tokens(self, part: MixedPart, shards: Sequence[KeptShard], amount: int) -> int:
        """Add the first `amount` tokens of a part, from the beginning again behind its end; return how many they are.

        They are fewer than `amount` where it ends within a document.
        """
        left = amount
        whole = sum(shard.n_tokens for shard in shards)
        for shard in itertools.chain.from_iterable(itertools.repeat(shards, math.ceil(amount / whole))):
            if shard.n_tokens <= left:
                self._add(part, shard)
                left -= shard.n_tokens
                continue
            stream = shard.stream
            documents, ends = shard.kept(stream)
            count = int(np.searchsorted(ends, left, side="right"))
            if count == 0 and left == amount:
                count = 1  # else the part would not be in the mix at all
            self.add_documents([stream], ((0, number) for number in documents[:count].tolist()))
            left -= int(ends[count - 1]) if count else 0
            break
        return amount - left

    def _add(self, part: MixedPart, shard: KeptShard) -> None:
        """Add a shard, as a link where all of it is kept."""
        if len(shard.left_out):
            stream = shard.stream
            self.add_documents([stream], ((0, number) for number in shard.kept(stream)[0].tolist()))
        else:
            self._link(part.train.folder, shard.name, part.stage.manifest.files)

    def add_documents(self, streams: Sequence[TokenStream], chosen: Iterable[tuple[int, int]]) -> None:
        """Add documents, each named by its stream and its number in it."""
        bounds = [stream.document_bounds for stream in streams]
        shard: list[tuple[int, int]] = []
        tokens = 0
        for place, number in chosen:
            length = int(bounds[place][number + 1] - bounds[place][number])
            if shard and tokens + length > MAX_SHARD_TOKENS:
                self._write(streams, bounds, shard)
                shard, tokens = [], 0
            shard.append((place, number))
            tokens += length
        if shard:
            self._write(streams, bounds, shard)

    def _link(self, folder: Path, shard: str, files: Mapping[str, FileRecord]) -> None:
        self.shards += 1
        stem, own = shard_name(self.split, self.shards).removesuffix(".bin"), shard.removesuffix(".bin")
        for name in files:
            if name.startswith(f"{own}."):
                new = stem + name.removeprefix(own)
                link_or_copy(folder / name, self.folder / new)
                self.records[new] = files[name]

    def _write(
        self, streams: Sequence[TokenStream], bounds: Sequence[Positions], chosen: Sequence[tuple[int, int]]
    ) -> None:
        """Write the documents as one shard; runs of one part's are copied together."""
        self.shards += 1
        path = self.folder / shard_name(self.split, self.shards)
        starts, answers, spans = [], [], []
        at = 0
        with new_shard(path) as shard:
            for place, first, last in _runs(chosen):
                stream = streams[place]
                begin, end = int(bounds[place][first]), int(bounds[place][last])
                shard.append(stream.read(begin, end - begin))
                starts.append(bounds[place][first:last] - begin + at)
                answers.append(stream.answer_starts[first:last] - begin + at)
                spans.append(stream.spans_between(begin, end) - begin + at)
                at += end - begin
        assert shard.record is not None  # it is closed
        self.records[path.name] = shard.record
        for name, pieces in ((starts_name, starts), (answers_name, answers), (spans_name, spans)):
            own = path.with_name(name(path.name))
            self.records[own.name] = save_array(own, np.concatenate(pieces).astype("<i8", copy=False))


def _runs(chosen: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield neighbouring documents of one stream together: the stream, the first, and the one behind the last."""
    place, first = chosen[0]
    last = first + 1
    for each in chosen[1:]:
        if each == (place, last):
            last += 1
            continue
        yield place, first, last
        place, first = each
        last = first + 1
    yield place, first, last


def _said(part: MixedPart, shards: Sequence[KeptShard], amount: int) -> str:
    held, left_out = sum(each.n_tokens for each in shards), sum(len(each.left_out) for each in shards)
    times = amount / held
    if amount == held:
        how = "each once"
    elif times > 1:
        how = f"{times:.2f} times each"
    else:
        how = f"{times:.1%} of them; the others are left out"
    also = f"; {left_out:,} documents are left out, since another part holds them out of training" if left_out else ""
    return f"{part.name}: {part.share:.1%} of an epoch, {amount:,} tokens from {held:,}, {how}{also}"


def _facts(folder: Path, train: _Split, validation: _Split) -> dict[str, Any]:
    """Return what there is to say of the mix, under the names that the shards of one source have."""
    facts: dict[str, Any] = {}
    lengths = np.zeros(len(LENGTH_EDGES) - 1, np.int64)
    for written in (train, validation):
        names = tuple(sorted(name for name in written.records if name.endswith(".bin")))
        stream = TokenStream(folder, names)
        documents = 0
        for bounds in stream.documents_by_shard():
            documents += len(bounds) - 1
            lengths += np.histogram(np.diff(bounds), LENGTH_EDGES)[0]
        facts |= {
            f"{written.split}_tokens": stream.n_tokens,
            f"{written.split}_documents": documents,
            f"{written.split}_shards": written.shards,
        }
    tokens, documents = (
        sum(facts[f"{split}_{what}"] for split in (TRAIN, VALIDATION)) for what in ("tokens", "documents")
    )
    return {**facts, "document_lengths": lengths.tolist(), "tokens_per_document": tokens / documents}

"""The shards of a mix: those of its parts, so many of each that their tokens stand in the shares of the experiment.

Whole shards are links to the parts' own, as often as an epoch repeats them; only the last of each part is cut, at the
end of a document. The order does not matter for training, which draws its sequences from all shards alike. In the
validation split the documents of the parts take turns, so that however much of it is looked at has the shares too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pipeline.data.arrays import save_array
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import MIXED_SHARDS
from gpt_pipeline.data.stage import Say, ask_again, finish_stage
from gpt_pipeline.data.tokens.lengths import LENGTH_EDGES
from gpt_pipeline.data.tokens.shards import ShardsStage, require_a_sequence, tokenizer_facts
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
from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.atomic import link_or_copy
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.manifest import (
    FileRecord,
    Manifest,
    StageResult,
    if_whole,
    recorded,
    stage_folder,
    verify,
)

CODE_VERSION = "1"


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
class MixedShardsStage:
    """The stage of the shards of a mix, made in one go: its parts are the stages of shards that it mixes."""

    config: DataConfig
    data_folder: Path
    name = MIXED_SHARDS

    def find(self) -> StageResult | None:
        """Return the finished stage, or None; does no work."""
        return if_whole(self.known())

    def known(self) -> StageResult | None:
        """Return the stage if it was finished once, whatever has become of its files since."""
        place = self.place()
        return None if place is None else recorded(*place)

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
        if stage is not None and force:
            ask_again(stage.folder)
        elif stage is not None:
            require_a_sequence(self.config, stage.manifest.facts)
            say(f"{stage.folder} is finished already; nothing to do")
        return []

    def make(self, names: Iterable[str], *, say: Say) -> dict[str, Any]:
        """Do nothing, for `plan` names no files; see `PartedStage`."""
        return {"megabytes": 0.0}

    def finish(self, *, say: Say) -> StageResult:
        """Mix the shards of the parts; see `PartedStage`.

        Raises:
            DataError: the shards of a part are not finished.
            DamagedFileError: one of their files is not what its manifest says.
        """
        parts = self.parts()
        wanted = self._fingerprint({part.name: part.stage.fingerprint for part in parts})
        folder = stage_folder(self.data_folder, self.name, wanted)
        stage = finish_stage(folder, wanted, say=say, make=lambda: self._mixed(parts, folder, wanted, say))
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
                raise DataError(
                    f"{stage.name} of the part `{name}` is not finished in {self.data_folder}; "
                    f"materialize {stage.name} of it first"
                )
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
        amounts = epoch_of(
            [part.train.n_tokens for part in parts], [part.share for part in parts], until=self.config.mix_until
        )
        train = _Split(folder=folder, split=TRAIN)
        taken = {}
        for part, amount in zip(parts, amounts, strict=True):
            taken[part.name] = train.add_tokens(part.train, part.stage.manifest.files, amount)
            say(_said(part, taken[part.name]))
        validation = _Split(folder=folder, split=VALIDATION)
        validation.add_documents([part.validation for part in parts], taking_turns(parts))
        return Manifest(
            stage=self.name,
            fingerprint=wanted,
            config=self._identity({part.name: part.stage.fingerprint for part in parts}),
            upstream=tuple(sorted(part.stage.fingerprint for part in parts)),
            files={**train.records, **validation.records, **_tokenizer(parts[0].stage, folder)},
            facts={**_facts(folder, parts, taken, train, validation), **tokenizer_facts(parts[0].stage)},
        )


def _tokenizer(shards: StageResult, folder: Path) -> dict[str, FileRecord]:
    """Link the tokenizer of the parts, which is one for all of them, into `folder`, and return its file."""
    files = {name: record for name, record in shards.manifest.files.items() if name == TOKENIZER_NAME}
    for name in files:
        link_or_copy(shards.folder / name, folder / name)
    return files


def epoch_of(sizes: Sequence[int], shares: Sequence[float], *, until: str) -> list[int]:
    """Return how many tokens an epoch takes of each part, that has `sizes` tokens; more than these where it repeats.

    Raises:
        DataError: a part has no tokens.
    """
    if not all(sizes):
        raise DataError(f"a part of the mix has no training tokens (the parts have {list(sizes)}); leave it out")
    # The part that decides has exactly its own tokens, whatever the rounding of the shares.
    lengths = [size / share for size, share in zip(sizes, shares, strict=True)]
    decides = lengths.index(min(lengths) if until == "first_exhausted" else max(lengths))
    amounts = [max(1, round(share * lengths[decides])) for share in shares]
    amounts[decides] = sizes[decides]
    return amounts if until == "all_exhausted" else [min(pair) for pair in zip(amounts, sizes, strict=True)]


def taking_turns(parts: Sequence[MixedPart]) -> Iterator[tuple[int, int]]:
    """Yield the held-out documents of the parts by part and number, next from the part furthest behind its share.

    It ends when a part has no more: those that are left would not have the shares.
    """
    begins, whose, numbers = [], [], []
    for place, part in enumerate(parts):
        starts = part.validation.document_starts
        begins.append(starts / part.share)
        whose.append(np.full(len(starts), place))
        numbers.append(np.arange(len(starts)))
    end = min(part.validation.n_tokens / part.share for part in parts)
    at, of_part, of_document = (np.concatenate(each) for each in (begins, whose, numbers))
    order = np.lexsort((of_part, at))
    order = order[at[order] < end]
    yield from zip(of_part[order].tolist(), of_document[order].tolist(), strict=True)


@dataclass(kw_only=True)
class _Split:
    """The shards of one split, numbered through."""

    folder: Path
    split: str
    records: dict[str, FileRecord] = field(default_factory=dict)
    shards: int = 0

    def add_tokens(self, stream: TokenStream, files: Mapping[str, FileRecord], amount: int) -> int:
        """Add the first `amount` tokens of a part, from the beginning again behind its end; return how many they are.

        They are fewer than `amount` where it ends within a document.
        """
        left = amount
        while left >= stream.n_tokens:
            for name in stream.names:
                self._link(stream.folder, name, files)
            left -= stream.n_tokens
        for name in stream.names:
            shard = TokenStream(stream.folder, (name,), eot_token=stream.eot_token)
            if shard.n_tokens <= left:
                self._link(stream.folder, name, files)
                left -= shard.n_tokens
                continue
            count = int(np.searchsorted(shard.document_starts, left, side="right")) - 1
            if count == 0 and left == amount:
                count = 1  # else the part would not be in the mix at all
            if count:
                self.add_documents([shard], ((0, number) for number in range(count)))
                left -= int(np.append(shard.document_starts, shard.n_tokens)[count])
            break
        return amount - left

    def add_documents(self, streams: Sequence[TokenStream], chosen: Iterable[tuple[int, int]]) -> None:
        """Add documents, each named by its stream and its number in it."""
        bounds = [np.append(stream.document_starts, stream.n_tokens) for stream in streams]
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


def _said(part: MixedPart, amount: int) -> str:
    held = part.train.n_tokens
    times = amount / held
    if amount == held:
        how = "each once: this part decides how long an epoch is"
    elif times > 1:
        how = f"{times:.2f} times each"
    else:
        how = f"{times:.1%} of them; the others are left out"
    return f"{part.name}: {part.share:.1%} of an epoch, {amount:,} tokens from {held:,}, {how}"


def _facts(
    folder: Path, parts: Sequence[MixedPart], taken: Mapping[str, int], train: _Split, validation: _Split
) -> dict[str, Any]:
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
    return {
        **facts,
        "document_lengths": lengths.tolist(),
        "tokens_per_document": tokens / documents,
        "train_tokens_by_part": taken,
        "epochs_by_part": {part.name: round(taken[part.name] / part.train.n_tokens, 4) for part in parts},
    }

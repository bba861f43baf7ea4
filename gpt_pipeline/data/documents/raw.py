"""The raw files: from the hub, from a folder, or the sample that the project writes itself."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_pipeline.data.arrays import save_array
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.check import FileCheck
from gpt_pipeline.data.documents.choice import NEAR_DUPLICATE, REPEATED, ChosenFile, FileChoice, code_version
from gpt_pipeline.data.documents.index import Rows
from gpt_pipeline.data.documents.near import NearDuplicates
from gpt_pipeline.data.file_kinds import TEXT_LIST, kind_of
from gpt_pipeline.data.formats import format_of, stage_names
from gpt_pipeline.data.formats.protocol import Format
from gpt_pipeline.data.sources.folder import LocalFiles, LocalFolder, local_files
from gpt_pipeline.data.sources.protocol import Source
from gpt_pipeline.data.sources.record import SourceRecord, read_record
from gpt_pipeline.data.sources.sample.source import SampleFolder
from gpt_pipeline.data.sources.text_lists import TextLists, are_listed, text_lists
from gpt_pipeline.data.stage import exclusive, finish_stage, grouped, is_begun_again, needs_nothing, prepare
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint, identity_of
from gpt_pipeline.storage.manifest import Manifest, StageResult, if_whole, recorded, stage_folder
from gpt_pipeline.storage.names import slug

if TYPE_CHECKING:
    # Imported where a hub is asked: it takes a third of a worker's start.
    from gpt_pipeline.data.sources.hub import Hub, HubDataset

_SOURCES = "sources"  # folder of the records, one folder a source
_TEXT_LISTS = "texts"  # folder in a record
_logger = logging.getLogger(__name__)


def prepare_raw(
    config: DataConfig, data_folder: Path, *, force: bool = False, say: Say = _logger.info, hub: Hub | None = None
) -> StageResult:
    """Return the finished stage: the source's first files that hold `num_samples` different documents, checked.

    Files of the hub lie in its cache, those of a folder stay where they are. `force` checks the files anew (and writes
    the sample anew); it does not move to a newer revision.

    Raises:
        ConfigError: the source does not hold `num_samples` documents, or is no dataset.
        UserError: a file is damaged, or the hub cannot be reached or refuses.
    """
    return prepare(RawStage(config=config, data_folder=data_folder, hub=hub), force=force, say=say)


def find_raw(config: DataConfig, data_folder: Path, *, hub: Hub | None = None) -> StageResult | None:
    """Return the finished stage, or None; reads no file's content and asks no network."""
    return RawStage(config=config, data_folder=data_folder, hub=hub).find()


def known_raw(config: DataConfig, data_folder: Path, *, hub: Hub | None = None) -> StageResult | None:
    """Return the stage if it was finished once, also when its files have been deleted or unplugged since."""
    return RawStage(config=config, data_folder=data_folder, hub=hub).known()


def raw_places(config: DataConfig, raw: StageResult, *, hub: Hub | None = None) -> RawPlaces:
    """Return where the stage's files are; the record of all of them is read once, by this call."""
    return RawStage(config=config, data_folder=raw.folder.parent, hub=hub).recorded_places()


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file of the finished stage."""

    name: str
    sha256: str

    size: int
    """Bytes."""

    documents: int
    """Those that repeat none before them."""

    left_out: Mapping[str, str]
    """Names of files in the stage's folder that say which of its documents are not new, by the reason; int64 .npy."""


@dataclass(frozen=True, kw_only=True)
class RawPlaces:
    """Where the files of a source are, that was recorded once; each file is looked at when it is asked for."""

    check: FileCheck | None
    """None: nothing is known of the source."""

    config: DataConfig

    def path(self, file: RawFile) -> Path:
        """Return the path of one of the stage's files; the others are not looked at.

        Raises:
            DataError: it is no longer there, or has become another one.
        """
        path = None if self.check is None else self.check.source.find(file.name)
        facts = None if self.check is None else self.check.recorded(file.name)
        if path is None or facts is None or facts.sha256 != file.sha256:
            raise DataError(
                f"files of {self.config.origin} are missing or have changed: {file.name}; "
                f"materialize {stage_names(self.config).raw} again"
            )
        return path


def files_of(raw: StageResult) -> list[RawFile]:
    """Return the files of a finished stage, in order."""
    checksums = dict(raw.manifest.config["files"])
    return [
        RawFile(
            name=entry["name"],
            sha256=checksums[entry["name"]],
            size=entry["size"],
            documents=entry["documents"],
            left_out={reason: name(number) for reason, name in _LEFT_OUT.items() if entry.get(reason)},
        )
        for number, entry in enumerate(raw.manifest.facts["files"], start=1)
    ]


def left_out_of(raw: StageResult, file: RawFile) -> dict[str, Rows]:
    """Return which documents of the file, counted from 0, are not new, by the reason: int64, ascending."""
    return {reason: np.load(raw.folder / name) for reason, name in file.left_out.items()}


_LEFT_OUT = {REPEATED: "repeats_{:06d}.npy".format, NEAR_DUPLICATE: "near_duplicates_{:06d}.npy".format}
"""Names of the files that say which documents are not new, by the reason, of the number of the raw file."""


def _always() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class RawStage:
    """The stage of raw files, for SYNTH raw_synth; a part is one file, checked, and its documents' hashes."""

    config: DataConfig
    data_folder: Path
    hub: Hub | None = None
    """Null: as huggingface_hub's own settings say."""

    is_needed: Callable[[], bool] = _always
    """Whether somebody still has to read the files: what was finished stands where all that was made of it does."""

    @property
    def name(self) -> str:
        return stage_names(self.config).raw

    @cached_property
    def _format(self) -> Format:
        return format_of(self.config)

    @property
    def _near(self) -> NearDuplicates | None:
        threshold = self.config.near_duplicates
        if threshold is None:
            return None
        return NearDuplicates(threshold=threshold, format=self._format, data_folder=self.data_folder)

    def find(self) -> StageResult | None:
        """Return the finished stage, or None; reads no file's content and asks no network."""
        stage = if_whole(self.known())
        return stage if stage is not None and self._is_here(stage) else None

    def known(self) -> StageResult | None:
        """Return the stage if it was finished once, also when its files have been deleted or unplugged since."""
        record = read_record(self.record_folder)
        source = self._recorded_source(record)
        chosen = None if source is None else self._choice(source, record).recorded()
        return None if chosen is None else recorded(*self._place_of(chosen))

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while its files are not known."""
        return self.last_place()

    def last_place(self) -> tuple[Path, str] | None:
        """Return folder and fingerprint of the stage as it was last made, also if its files have changed since."""
        record = read_record(self.record_folder)
        now, before = self._recorded_source(record), self._last_source(record)
        chosen = None if now is None else self._choice(now, record).recorded()
        if chosen is None and before is not None:
            chosen = self._choice(before, record).examined()
        return None if chosen is None else self._place_of(chosen)

    def own_paths(self) -> Iterator[Path]:
        """Yield where the stage's things lie: parts, then its folder, then the record that they are found by."""
        record = read_record(self.record_folder)
        if (source := self._recorded_source(record)) is not None:
            yield from (part.folder for part in self._check(source, record).examined_parts())
        yield from (stage.folder for stage in self.made())
        yield self.record_folder

    def made(self) -> list[StageResult]:
        """Return the stage as its files are now and as it was last made, which is mostly the same."""
        last = self.last_place()
        found = [self.known(), None if last is None else recorded(*last)]
        return [*{stage.fingerprint: stage for stage in found if stage is not None}.values()]

    def places(self, raw: StageResult) -> dict[str, Path | None]:
        """Return where each of the stage's files lies, whole or not; None for one that is gone."""
        source = self._last_source(read_record(self.record_folder))
        return {name: source.place(name) if source else None for name, _ in raw.manifest.config["files"]}

    def recorded_places(self) -> RawPlaces:
        """Return where the stage's files are, as the source is recorded now."""
        record = read_record(self.record_folder)
        source = self._recorded_source(record)
        return RawPlaces(config=self.config, check=None if source is None else self._check(source, record))

    def ready(self) -> list[str]:
        """Return the source's files that are here and looked at, be they needed or not; asks no network."""
        record = read_record(self.record_folder)
        source = self._recorded_source(record)
        return [] if source is None else [name for name in source.names if self._check(source, record).is_ready(name)]

    def opened_files(self, *, say: Say) -> Iterator[tuple[str, Path | io.IOBase]]:
        """Yield name and path of each of the source's files; one that is not here is opened on the hub instead.

        Only the sample or a list is written.

        Raises:
            UserError: there are no such files, or the hub cannot be reached.
        """
        record = read_record(self.record_folder)
        if self.config.is_sample or self._local_files is not None:
            source = self._open_source(record, say)
            yield from ((name, source.fetch(name, say=say)) for name in source.names)
            return
        dataset = self.dataset(say=say)
        yield from ((name, dataset.find(name) or dataset.open(name, say=say)) for name in dataset.names)

    def dataset(self, *, say: Say) -> HubDataset:
        """Return the hub's dataset as it is recorded, or else as it is now; nothing is recorded.

        Raises:
            UserError: the hub cannot be reached, refuses, or has no such files.
        """
        from gpt_pipeline.data.sources.hub import Hub, asked_dataset

        config = self.config
        return self._recorded_dataset(read_record(self.record_folder)) or asked_dataset(
            self.hub or Hub(), config.source, config.revision, subset=config.subset, split=config.split, say=say
        )

    def plan(self, *, force: bool, say: Say) -> list[list[str]]:
        """Return the files that are not here or not looked at yet, in groups; see `PartedStage`."""
        stage = self._standing(say)
        if not force and needs_nothing(stage, say=say):
            return []
        with self._recording(say) as record:
            source = self._open_source(record, say)
            names = self._choice(source, record).enough(say=say)
            if stage is not None:  # which may have files that were added for repeated documents
                before = [name for name, _ in stage.manifest.config["files"]]
                there, wanted = set(source.names), set(names)
                names += [name for name in before if name in there and name not in wanted]
            if force:
                self._forget(source, names, record, say)
        check = self._check(source, record)
        missing = [name for name in names if not check.is_ready(name)]
        source.require_room(missing)
        return grouped({name: source.size(name) for name in missing})

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> dict[str, Any]:
        """Bring the files here and look at them; see `PartedStage`. What `force` makes anew, `plan` has forgotten.

        Raises:
            UserError: a file is damaged, or the hub cannot be reached or refuses.
        """
        names = list(names)
        record = read_record(self.record_folder)
        source = self._open_source(record, say)
        source.fetch_all(names, say=say)
        check = self._check(source, record)
        looked = {name: check.look_at(name, say=say) for name in names}
        return {
            "rows": sum(facts.rows for facts in looked.values()),
            "documents": sum(facts.documents for facts in looked.values()),
            "megabytes": sum(facts.size for facts in looked.values()) / 1e6,
            "files": list(looked),
        }

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Choose the files and write down which documents repeat others; see `PartedStage`."""
        stage = self._standing(say)
        if stage is not None and not force and not is_begun_again(stage.folder):
            return stage
        with self._recording(say) as record:
            source = self._open_source(record, say)
            chosen = self._choice(source, record).choose(say=say)
        folder, wanted = self._place_of(chosen)
        return finish_stage(
            folder, wanted, force=force, say=say, make=lambda: self._manifest(source, chosen, folder, wanted)
        )

    def _check(self, source: Source, record: SourceRecord) -> FileCheck:
        return FileCheck(
            source=source, record=record, data_folder=self.data_folder, format=self._format, near=self._near
        )

    def _choice(self, source: Source, record: SourceRecord) -> FileChoice:
        return FileChoice(check=self._check(source, record), limit=self.config.document_limit)

    def _forget(self, source: Source, names: Iterable[str], record: SourceRecord, say: Say) -> None:
        """Have the files looked at again, and those of the sample written anew."""
        for name in names:
            self._check(source, record).forget(name)
            if self.config.is_sample:
                source.fetch(name, again=True, say=say)

    def _standing(self, say: Say) -> StageResult | None:
        """Return the finished stage, also if its files are away and nobody needs them."""
        stage = self.find()
        if stage is None and (known := self.known()) and not self.is_needed():
            say(f"files of {self.config.origin} are away; what was made of them is finished, so they are not needed")
            return known
        return stage

    @property
    def _local_files(self) -> LocalFiles | None:
        local = self.config.local
        return None if local is None else local_files(local, key=f"data.{self.config.local_key}")

    @property
    def record_folder(self) -> Path:
        """Folder of what is known of the source: its files, their checksums, what was found in them."""
        origin = self.config.origin
        if (files := self._local_files) is not None:
            origin = files.path.as_posix()
        if asked := identity_of(self.config, "subset", "split"):
            origin = self.config.source + json.dumps(asked, sort_keys=True)
        if self._format.identity:  # what is recorded of a file is what one format makes of it
            origin += json.dumps(self._format.identity, sort_keys=True)
        kind = "sample" if self.config.is_sample else "hub" if files is None else "folder"
        digest = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:SHORT]
        return self.data_folder / _SOURCES / f"{kind}-{slug(origin)[-40:]}-{digest}"

    @contextmanager
    def _recording(self, say: Say) -> Iterator[SourceRecord]:
        with exclusive(self.record_folder, purpose=f"choosing files of {self.config.origin}", say=say):
            yield read_record(self.record_folder)

    def _open_source(self, record: SourceRecord, say: Say) -> Source:
        if self.config.is_sample:
            return self._sample
        if (files := self._local_files) is not None:
            folder = self._as_read(files, files.opened().names)
            record.folder_names = list(folder.names)  # saved by those who hold the record
            return folder
        from gpt_pipeline.data.sources.hub import Hub, open_dataset

        config = self.config
        return open_dataset(
            self.hub or Hub(),
            config.source,
            config.revision,
            record,
            subset=config.subset,
            split=config.split,
            say=say,
        )

    @property
    def _sample(self) -> SampleFolder:
        return SampleFolder(folder=self.record_folder / "rows")

    def _recorded_source(self, record: SourceRecord) -> Source | None:
        if self.config.is_sample:
            return self._sample
        if (files := self._local_files) is None:
            return self._recorded_dataset(record)
        # A folder that is away, such as on a disk not plugged in, cannot have changed: what was made of it stands.
        names = files.names
        return self._as_read(files, names) if names else self._last_source(record)

    def _recorded_dataset(self, record: SourceRecord) -> HubDataset | None:
        from gpt_pipeline.data.sources.hub import Hub, recorded_dataset

        config, hub = self.config, self.hub or Hub()
        return recorded_dataset(hub, config.source, config.revision, record, subset=config.subset, split=config.split)

    def _last_source(self, record: SourceRecord) -> Source | None:
        """Return the source with the files that it had when the stage was last made."""
        if (files := self._local_files) is None:
            return self._recorded_source(record)
        names = tuple(record.folder_names)
        if names and kind_of(names[0]) == TEXT_LIST:
            return TextLists(folder=self.record_folder / _TEXT_LISTS, names=names, texts=files.folder)
        return LocalFolder(folder=files.folder, names=names)

    def _as_read(self, files: LocalFiles, names: tuple[str, ...]) -> LocalFolder:
        """Return the files as they are read: each by itself, or many texts by lists."""
        if are_listed(names):
            return text_lists(self.record_folder / _TEXT_LISTS, files.folder, names)
        return LocalFolder(folder=files.folder, names=names)

    def _is_here(self, stage: StageResult) -> bool:
        source = self._recorded_source(read_record(self.record_folder))
        return source is not None and all(source.find(name) for name, _ in stage.manifest.config["files"])

    def _identity(self, chosen: Iterable[ChosenFile]) -> dict[str, Any]:
        near = {} if self._near is None else self._near.identity
        return {"files": [[each.name, each.facts.sha256] for each in chosen], **self._format.identity, **near}

    def _place_of(self, chosen: Iterable[ChosenFile]) -> tuple[Path, str]:
        wanted = self._fingerprint(chosen)
        return stage_folder(self.data_folder, self.name, wanted), wanted

    def _fingerprint(self, chosen: Iterable[ChosenFile]) -> str:
        return fingerprint(self.name, config=self._identity(chosen), code_version=code_version(self._format))

    def _manifest(self, source: Source, chosen: Sequence[ChosenFile], folder: Path, wanted: str) -> Manifest:
        """Return the stage's manifest, after writing which documents are not new into its folder."""
        written = {
            (name := _LEFT_OUT[reason](number)): save_array(folder / name, rows)
            for number, each in enumerate(chosen, start=1)
            for reason, rows in each.left_out.items()
            if len(rows)
        }
        return Manifest(
            stage=self.name,
            fingerprint=wanted,
            config=self._identity(chosen),
            files=written,
            facts={"source": source.description, "revision": source.revision, **_facts(chosen)},
        )


def _facts(chosen: Sequence[ChosenFile]) -> Mapping[str, Any]:
    return {
        "rows": sum(each.facts.rows for each in chosen),
        "documents": sum(each.new_documents for each in chosen),
        **{reason: sum(len(each.left_out[reason]) for each in chosen) for reason in chosen[0].left_out},
        "bytes": sum(each.facts.size for each in chosen),
        "files": [
            {
                "name": each.name,
                "size": each.facts.size,
                "rows": each.facts.rows,
                "documents": each.new_documents,
                **{reason: len(rows) for reason, rows in each.left_out.items()},
            }
            for each in chosen
        ],
    }

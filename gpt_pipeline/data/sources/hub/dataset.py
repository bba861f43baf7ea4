"""Raw files of a dataset on the hub, at one commit, in the hub's own cache."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, try_to_load_from_cache

from gpt_pipeline.data.config import on_hub
from gpt_pipeline.data.file_kinds import PARQUET, kind_of
from gpt_pipeline.data.sources.folder import numbered_names
from gpt_pipeline.data.sources.hub.at_once import Stop, all_of, in_order
from gpt_pipeline.data.sources.hub.download import CacheEntry, download, etag_of
from gpt_pipeline.data.sources.hub.explain import NO_HUB, Question, explained
from gpt_pipeline.data.sources.hub.layout import CARD, chosen_files, front_matter
from gpt_pipeline.data.sources.hub.patience import persist
from gpt_pipeline.data.sources.hub.progress import Observer, amounts, shown
from gpt_pipeline.data.sources.hub.remote import Hub, RangeReader, RemoteFile
from gpt_pipeline.data.sources.record import HubFile, SourceRecord, is_size
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.room import free_bytes

_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ_THREADS = 8
_LISTING_ATTEMPTS = 3
_LISTING_SECONDS = 60.0  # for the list of all files, which takes the hub longer than the first byte of one
_PIECE_BYTES = 1 << 18
SPARE_BYTES = 10**9  # to leave free on the disk of the cache
_GB = 10**9
_logger = logging.getLogger(__name__)

T = TypeVar("T")
_Identity = tuple[int, int, int]  # a file's inode, size and time


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset of the hub at one commit, or what a subset and a split have of it."""

    hub: Hub
    repository: str
    subset: str | None = None
    split: str | None = None
    revision: str
    """Commit, 40 hex digits."""

    files: dict[str, HubFile]
    """By name, in order."""

    _downloaded: dict[str, tuple[str, _Identity]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The sha256 of each file that this object downloaded, and which file that was."""

    @property
    def description(self) -> str:
        return f"{on_hub(self.repository, self.subset, self.split)} at {self.revision[:12]}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def record_key(self, name: str) -> str:
        return f"{self.revision}/{name}"

    def size(self, name: str) -> int:
        """Return the file's size in bytes."""
        return self.files[name].size

    def sha256(self, name: str) -> str | None:
        """Return the checksum that the hub gives, if it gives one."""
        return self.files[name].sha256

    def find(self, name: str) -> Path | None:
        """Return the file's path in the cache if it is there in its full size; no network."""
        path = self.place(name)
        return path if path is not None and path.stat().st_size == self.size(name) else None

    def is_away(self, name: str) -> bool:
        """Return true: at a commit nothing changes."""
        return True

    def place(self, name: str) -> Path | None:
        """Return the file's path in the cache if it is there, in full or not; no network."""
        path = try_to_load_from_cache(
            self.repository, name, cache_dir=self.hub.cache_folder, revision=self.revision, repo_type="dataset"
        )
        return Path(path) if isinstance(path, str) and Path(path).is_file() else None

    def open(self, name: str, *, say: Say = _logger.info) -> io.IOBase:
        """Open the file in the cache, or else on the hub: of that one only the ranges that are read are transferred.

        Reading it from beginning to end by this would transfer all of it without keeping it; see `fetch`.

        Raises:
            UserError: the hub cannot be reached or refuses; also while reading.
        """
        return self._open(name, say, still_wanted=lambda: None)

    def read_each(
        self, names: Iterable[str], read: Callable[[io.IOBase, str], T], *, say: Say = _logger.info
    ) -> Iterator[tuple[str, T]]:
        """Yield each name with what `read` returns for it, in order, while the caller asks for more.

        Files of parquet are read remotely, several at a time; others, of which all has to be read, are downloaded, one
        when it is asked for.
        """
        names = list(names)
        if any(kind_of(name) != PARQUET for name in names):
            return self._fetched_each(names, read, say)
        stop = Stop()

        def read_one(name: str) -> T:
            with self._open(name, say, still_wanted=stop.check) as file:
                return read(file, name)

        return in_order(read_one, names, threads=_READ_THREADS, stop=stop)

    def _fetched_each(
        self, names: Iterable[str], read: Callable[[io.IOBase, str], T], say: Say
    ) -> Iterator[tuple[str, T]]:
        for name in names:
            self.require_room([name])
            with self.fetch(name, say=say).open("rb") as file:
                yield name, read(file, name)

    def require_room(self, names: Iterable[str]) -> None:
        """Refuse files that do not fit on the disk of the cache, before the first of them is downloaded.

        Raises:
            DataError: names the space needed and found, in GB.
        """
        needed = sum(self._missing_bytes(name) for name in names)
        free = free_bytes(self.hub.cache)
        if needed and needed + SPARE_BYTES > free:
            raise DataError(
                f"{self.description}: found {free / _GB:.1f} GB free on the disk of {self.hub.cache}, need "
                f"{(needed + SPARE_BYTES) / _GB:.1f} GB ({needed / _GB:.1f} to download, {SPARE_BYTES / _GB:.0f} to "
                f"spare); free space there, move the hub's cache to another disk by HF_HOME, {NO_HUB}"
            )

    def fetch(
        self, name: str, *, again: bool = False, say: Say = _logger.info, observer: Observer | None = None
    ) -> Path:
        """Return the file's path in the cache, downloading it if it is not there; `again` downloads it anyway.

        What is downloaded has the hub's checksum; what was in the cache is not read. Without `observer` the progress
        is shown on the terminal, or else by `say`.

        Raises:
            UserError: the hub cannot be reached or refuses, the disk is full, or what came is damaged.
        """
        if not again and (path := self.find(name)) is not None:
            return path
        with ExitStack() as stack:
            stack.enter_context(explained(self._question(name)))
            observer = observer or stack.enter_context(shown({name: self.size(name)}, say=say))
            return self._download(name, again, say, observer)

    def proven_sha256(self, name: str) -> str | None:
        """Return the checksum that the file had when this object downloaded it, if it is still that file."""
        sha256, downloaded = self._downloaded.get(name, (None, None))
        path = self.find(name)
        return sha256 if path is not None and _identity(path) == downloaded else None

    def fetch_all(self, names: Sequence[str], *, say: Say = _logger.info, workers: int = 4) -> list[Path]:
        """Return the files' paths in the cache, in order, downloading several at a time in this process.

        Raises:
            UserError: as `fetch`, after the others were finished; names what failed.
        """
        missing = [name for name in names if self.find(name) is None]
        if missing:
            self.require_room(missing)
            stop = Stop()
            with shown({name: self.size(name) for name in missing}, say=say) as show:

                def observe(name: str, here: int) -> None:
                    stop.check()
                    show(name, here)

                all_of(lambda name: self.fetch(name, say=say, observer=observe), missing, threads=workers, stop=stop)
        return [self.fetch(name, say=say) for name in names]

    def _open(self, name: str, say: Say, still_wanted: Callable[[], None]) -> io.IOBase:
        if (path := self.find(name)) is not None:
            return path.open("rb")
        reader = RangeReader(self._remote(name), question=self._question(name), say=say, still_wanted=still_wanted)
        # Parquet says which ranges it needs; what is read from the beginning on is read by small pieces.
        return reader if kind_of(name) == PARQUET else io.BufferedReader(reader, _PIECE_BYTES)

    def _download(self, name: str, again: bool, say: Say, observer: Observer) -> Path:
        file, sha256 = self._remote(name), self.sha256(name)
        etag = sha256 or etag_of(file, say=say)
        path, downloaded = download(file, etag, sha256=sha256, again=again, say=say, observer=observer)
        if downloaded is not None:
            self._downloaded[name] = (downloaded, _identity(path))
        return path

    def _remote(self, name: str) -> RemoteFile:
        return RemoteFile(
            hub=self.hub, repository=self.repository, revision=self.revision, name=name, size=self.size(name)
        )

    def _question(self, name: str) -> Question:
        return Question(
            repository=self.repository,
            address=self.hub.address,
            revision=self.revision,
            name=name,
            kept=lambda: f"finished files are kept, and {amounts(self._kept_bytes(name), self.size(name))} of this one",
        )

    def _kept_bytes(self, name: str) -> int:
        """Return how many of a file's first bytes an earlier attempt left."""
        sha256 = self.sha256(name)
        path = None if sha256 is None else CacheEntry(file=self._remote(name), etag=sha256).partial
        return path.stat().st_size if path is not None and path.is_file() else 0

    def _missing_bytes(self, name: str) -> int:
        return 0 if self.find(name) is not None else max(self.size(name) - self._kept_bytes(name), 0)


def _identity(path: Path) -> _Identity:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def open_dataset(
    hub: Hub,
    repository: str,
    revision: str | None,
    record: SourceRecord,
    *,
    subset: str | None = None,
    split: str | None = None,
    say: Say,
) -> HubDataset:
    """Return the dataset at `revision`, asking the hub only for what `record` does not know, which it then learns.

    With `revision` null, the newest commit is asked for once and pinned in the record. A record is of one subset and
    split: what it knows was chosen for them.

    Raises:
        UserError: the hub cannot be reached, refuses, or has no such dataset, revision, subset, split or files.
    """
    if (known := recorded_dataset(hub, repository, revision, record, subset=subset, split=split)) is not None:
        return known
    pinned = record.commits.get(revision or "") or revision
    dataset = asked_dataset(hub, repository, pinned, subset=subset, split=split, say=say)
    record.commits[revision or ""] = dataset.revision
    record.listings[dataset.revision] = list(dataset.files.values())
    record.save()
    say(f"{repository}: using commit {dataset.revision} from now on ({counted(len(dataset.names), 'file')})")
    return dataset


def asked_dataset(
    hub: Hub, repository: str, revision: str | None, *, subset: str | None, split: str | None, say: Say
) -> HubDataset:
    """Return the dataset at `revision`, null: the newest, as the hub has it now.

    Raises:
        UserError: as `open_dataset`.
    """
    with explained(Question(repository=repository, address=hub.address, revision=revision)):
        commit, files = _listing(hub, repository, revision, say)
    whole = HubDataset(hub=hub, repository=repository, revision=commit, subset=subset, split=split, files={})
    names = numbered_names(files)
    if not names or subset is not None or split is not None:
        where = f"{repository} at {commit[:12]}"
        card = _card(whole, files, say)
        values = front_matter(card, where=where)
        chosen = chosen_files(files, values, subset=subset, split=split, where=where)
        names = chosen.names
        if chosen.text:
            say(f"{repository}: reading {chosen.text}")
    return dataclasses.replace(whole, files={name: _hub_file(files[name], repository, hub) for name in names})


def _card(dataset: HubDataset, files: Mapping[str, Any], say: Say) -> str:
    """Return the text of the dataset's card; empty if it has none."""
    if CARD not in files:
        return ""
    listed = {CARD: _hub_file(files[CARD], dataset.repository, dataset.hub)}
    with dataclasses.replace(dataset, files=listed).open(CARD, say=say) as file:
        content: bytes = file.read()
    return content.decode(errors="replace")


def _listing(hub: Hub, repository: str, revision: str | None, say: Say) -> tuple[str, dict[str, Any]]:
    """Return the commit at `revision` and the hub's entries of its files by name, in one answer of the hub."""
    api = HfApi(endpoint=hub.endpoint)

    def ask() -> Any:
        return api.dataset_info(repository, revision=revision, files_metadata=True, timeout=_LISTING_SECONDS)

    # Nothing has started, so fail fast without a network.
    patience = dataclasses.replace(hub.patience, attempts=min(hub.patience.attempts, _LISTING_ATTEMPTS))
    info = persist(ask, what=repository, patience=patience, say=say)
    return info.sha, {entry.rfilename: entry for entry in info.siblings or ()}


def recorded_dataset(
    hub: Hub,
    repository: str,
    revision: str | None,
    record: SourceRecord,
    *,
    subset: str | None = None,
    split: str | None = None,
) -> HubDataset | None:
    """Return the dataset at `revision` as the record knows it, or None; no network."""
    is_commit = revision is not None and _COMMIT.fullmatch(revision)
    commit = revision if is_commit else record.commits.get(revision or "")
    if commit is None or commit not in record.listings:
        return None
    files = {file.name: file for file in record.listings[commit]}
    return HubDataset(hub=hub, repository=repository, subset=subset, split=split, revision=commit, files=files)


def _hub_file(entry: Any, repository: str, hub: Hub) -> HubFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    if not is_size(entry.size):
        raise DataError(
            f"{hub.address} lists {entry.rfilename} of {repository} with the size {entry.size!r}, need bytes as a "
            f"whole number; is HF_ENDPOINT a mirror that lacks sizes? Use one that has them, {NO_HUB}"
        )
    return HubFile(name=entry.rfilename, size=entry.size, sha256=sha256)

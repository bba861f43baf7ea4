"""Raw files of a dataset on the hub, at one commit, in the hub's own cache."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from gpt_pipeline.data.sources.folder import parquet_names
from gpt_pipeline.data.sources.hub.at_once import Stop, all_of, in_order
from gpt_pipeline.data.sources.hub.download import CacheEntry, download, etag_of
from gpt_pipeline.data.sources.hub.explain import NO_HUB, Question, explained
from gpt_pipeline.data.sources.hub.patience import Patience, persist
from gpt_pipeline.data.sources.hub.progress import Observer, amounts, shown
from gpt_pipeline.data.sources.hub.remote import RangeReader, RemoteFile
from gpt_pipeline.data.sources.record import HubFile, SourceRecord, is_size
from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.room import free_bytes

if TYPE_CHECKING:
    from gpt_pipeline.data.stage import Say

_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ_THREADS = 8
_LISTING_ATTEMPTS = 3
_LISTING_SECONDS = 60.0  # for the list of all files, which takes the hub longer than the first byte of one
_SPARE = 10**9  # bytes to leave free on the disk of the cache
_GB = 10**9
_logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """How to reach the hub; huggingface_hub's own settings (HF_ENDPOINT, HF_HOME, HF_TOKEN) where null."""

    endpoint: str | None = None
    cache_folder: Path | None = None
    patience: Patience = field(default_factory=Patience)

    @property
    def address(self) -> str:
        return self.endpoint or str(constants.ENDPOINT)

    @property
    def cache(self) -> Path:
        return self.cache_folder or Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True, kw_only=True)
class _Proof:
    """That a file with this number, size and time has this checksum."""

    inode: int
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str) -> _Proof:
        stat = path.stat()
        return cls(inode=stat.st_ino, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset of the hub at one commit."""

    hub: Hub
    repository: str
    revision: str
    """Commit, 40 hex digits."""

    files: dict[str, HubFile]
    """By name, in order."""

    _proofs: dict[str, _Proof] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the files that this object downloaded."""

    @property
    def description(self) -> str:
        return f"{self.repository} at {self.revision[:12]}"

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
        path = try_to_load_from_cache(
            self.repository, name, cache_dir=self.hub.cache_folder, revision=self.revision, repo_type="dataset"
        )
        if not isinstance(path, str) or not Path(path).is_file():
            return None
        return Path(path) if Path(path).stat().st_size == self.size(name) else None

    def open(self, name: str, *, say: Say = _logger.info) -> io.IOBase:
        """Open the file in the cache, or else on the hub: of that one only the ranges that are read are transferred.

        Raises:
            UserError: the hub cannot be reached or refuses; also while reading.
        """
        return self._open(name, say, still_wanted=lambda: None)

    def read_each(
        self, names: Iterable[str], read: Callable[[io.IOBase, str], T], *, say: Say = _logger.info
    ) -> Iterator[tuple[str, T]]:
        """Yield each name with what `read` returns for it, in order, reading several files at a time.

        Stops asking when the caller stops taking.
        """
        stop = Stop()

        def read_one(name: str) -> T:
            with self._open(name, say, still_wanted=stop.check) as file:
                return read(file, name)

        return in_order(read_one, names, threads=_READ_THREADS, stop=stop)

    def require_room(self, names: Iterable[str]) -> None:
        """Refuse files that do not fit on the disk of the cache, before the first of them is downloaded.

        Raises:
            DataError: names the space needed and found, in GB.
        """
        needed = sum(self._missing_bytes(name) for name in names)
        free = free_bytes(self.hub.cache)
        if needed and needed + _SPARE > free:
            raise DataError(
                f"{self.description}: found {free / _GB:.1f} GB free on the disk of {self.hub.cache}, need "
                f"{(needed + _SPARE) / _GB:.1f} GB ({needed / _GB:.1f} to download, {_SPARE / _GB:.0f} to spare); free "
                f"space there, move the hub's cache to another disk by HF_HOME, {NO_HUB}"
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
        proof, path = self._proofs.get(name), self.find(name)
        if proof is None or path is None or _Proof.of(path, proof.sha256) != proof:
            return None
        return proof.sha256

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
        return RangeReader(
            self._remote(name),
            question=self._question(name),
            patience=self.hub.patience,
            say=say,
            still_wanted=still_wanted,
        )

    def _download(self, name: str, again: bool, say: Say, observer: Observer) -> Path:
        remote, patience = self._remote(name), self.hub.patience
        entry = self._entry(name, self.sha256(name) or etag_of(remote, patience=patience, say=say))
        downloaded = download(
            remote, entry, sha256=self.sha256(name), again=again, patience=patience, say=say, observer=observer
        )
        if downloaded.sha256 is not None:
            self._proofs[name] = _Proof.of(downloaded.path, downloaded.sha256)
        return downloaded.path

    def _remote(self, name: str) -> RemoteFile:
        return RemoteFile(
            endpoint=self.hub.endpoint,
            repository=self.repository,
            revision=self.revision,
            name=name,
            size=self.size(name),
        )

    def _entry(self, name: str, etag: str) -> CacheEntry:
        return CacheEntry(
            cache_folder=self.hub.cache, repository=self.repository, revision=self.revision, name=name, etag=etag
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
        path = None if sha256 is None else self._entry(name, sha256).partial
        return path.stat().st_size if path is not None and path.is_file() else 0

    def _missing_bytes(self, name: str) -> int:
        return 0 if self.find(name) is not None else max(self.size(name) - self._kept_bytes(name), 0)


def open_dataset(
    hub: Hub, repository: str, revision: str | None, record: SourceRecord, *, say: Callable[[str], None]
) -> HubDataset:
    """Return the dataset at `revision`, asking the hub only for what `record` does not know, which it then learns.

    With `revision` null, the newest commit is asked for once and pinned in the record.

    Raises:
        UserError: the hub cannot be reached, refuses, or has no such dataset, revision or parquet file.
    """
    if (known := recorded_dataset(hub, repository, revision, record)) is not None:
        return known
    with explained(Question(repository=repository, address=hub.address, revision=revision)):
        commit, files = _listing(hub, repository, record.commits.get(revision or "") or revision, say)
    names = parquet_names(files)
    if not names:
        raise DataError(f"{repository} at {commit} has no parquet file; correct data.source, {NO_HUB}")
    listing = {name: _hub_file(files[name], repository, hub) for name in names}
    record.commits[revision or ""] = commit
    record.listings[commit] = list(listing.values())
    record.save()
    say(f"{repository}: using commit {commit} from now on ({len(names)} files)")
    return HubDataset(hub=hub, repository=repository, revision=commit, files=listing)


def _listing(hub: Hub, repository: str, revision: str | None, say: Say) -> tuple[str, dict[str, Any]]:
    """Return the commit at `revision` and the hub's entries of its files by name, in one answer of the hub."""
    api = HfApi(endpoint=hub.endpoint)

    def ask() -> Any:
        return api.dataset_info(repository, revision=revision, files_metadata=True, timeout=_LISTING_SECONDS)

    # Nothing has started, so fail fast without a network.
    patience = dataclasses.replace(hub.patience, attempts=min(hub.patience.attempts, _LISTING_ATTEMPTS))
    info = persist(ask, what=repository, patience=patience, say=say)
    return info.sha, {entry.rfilename: entry for entry in info.siblings or ()}


def recorded_dataset(hub: Hub, repository: str, revision: str | None, record: SourceRecord) -> HubDataset | None:
    """Return the dataset at `revision` as the record knows it, or None; no network."""
    is_commit = revision is not None and _COMMIT.fullmatch(revision)
    commit = revision if is_commit else record.commits.get(revision or "")
    if commit is None or commit not in record.listings:
        return None
    if not all(is_size(file.size) for file in record.listings[commit]):
        return None  # kept by a version that did not check the hub's answer: ask again
    files = {file.name: file for file in record.listings[commit]}
    return HubDataset(hub=hub, repository=repository, revision=commit, files=files)


def _hub_file(entry: Any, repository: str, hub: Hub) -> HubFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    if not is_size(entry.size):
        raise DataError(
            f"{hub.address} lists {entry.rfilename} of {repository} with the size {entry.size!r}, need bytes as a "
            f"whole number; is HF_ENDPOINT a mirror that lacks sizes? Use one that has them, {NO_HUB}"
        )
    return HubFile(name=entry.rfilename, size=entry.size, sha256=sha256)

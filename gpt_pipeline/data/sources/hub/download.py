"""Downloads into the hub's own cache that resume where the last attempt, or the last process, was cut off.

huggingface_hub (2.4.0) resumes within one call, but starts from the first byte after a kill or after a 5xx in the
middle, and does not compare checksums. So the bytes are fetched here, in the library's layout: `blobs/<etag>`, to which
`snapshots/<commit>/<name>` links, and a lock that both take.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from huggingface_hub import get_hf_file_metadata
from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name
from huggingface_hub.utils import WeakFileLock

from gpt_pipeline.data.sources.hub.patience import CutShortError, persist
from gpt_pipeline.data.sources.hub.progress import Observer
from gpt_pipeline.data.sources.hub.remote import RemoteFile
from gpt_pipeline.errors import DamagedFileError, DataError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import fsync_file, fsync_folder

_READ_BYTES = 1 << 20
_GIT_HASH = re.compile(r"[0-9a-f]{40}")
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")
_LOCK_SECONDS = 0.2  # wait so long for another process before saying so


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """Where a file lies in the hub's cache.

    Raises:
        DataError: the hub names its commit or its content by what would lead out of the cache.
    """

    file: RemoteFile

    etag: str
    """The name of its content: sha256 of a large file, git's hash of a small one."""

    def __post_init__(self) -> None:
        for what, name in (("commit", self.file.revision), ("content", self.etag)):
            if not _PLAIN_NAME.fullmatch(name):
                raise DataError(
                    f"{self.file.repository}, {self.file.name}: found {name!r:.80} as the hub's name of its {what}, "
                    f"need one without slashes; is {self.file.hub.address} a hub?"
                )

    @property
    def _folder(self) -> Path:
        return self.file.hub.cache / str(repo_folder_name(repo_id=self.file.repository, repo_type="dataset"))

    @property
    def blob(self) -> Path:
        return self._folder / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """The file's first bytes, while it is not complete. The name is that of huggingface_hub before 1.0."""
        return self.blob.with_name(f"{self.etag}.incomplete")

    @property
    def snapshot(self) -> Path:
        return self._folder.joinpath("snapshots", self.file.revision, *self.file.name.split("/"))

    @property
    def lock(self) -> Path:
        return self.file.hub.cache / ".locks" / self._folder.name / f"{self.etag}.lock"


def etag_of(file: RemoteFile, *, say: Say) -> str:
    """Ask the hub for its name of the file's content.

    Raises:
        HfHubHTTPError: the hub refuses.
        TransportError: the hub cannot be reached.
    """
    patience = file.hub.patience

    def ask() -> str:
        return str(get_hf_file_metadata(file.url, timeout=patience.silence).etag)

    return persist(ask, what=file.name, patience=patience, say=say)


def download(
    file: RemoteFile, etag: str, *, sha256: str | None, again: bool, say: Say, observer: Observer
) -> tuple[Path, str | None]:
    """Return the complete file's path in the cache, and the sha256 of what was downloaded now; null if nothing was.

    What an earlier attempt left is used, unless `again`, which also replaces a complete file. What is downloaded is
    compared with `sha256`, if the hub gives one, or else with git's hash, which the name of a small file is.

    Raises:
        DamagedFileError: the hub sent a file with another checksum, twice.
        HfHubHTTPError: the hub refuses.
        TransportError: the hub cannot be reached, or the connection broke off too often.
        OSError: the disk is full, or not writable.
    """
    entry = CacheEntry(file=file, etag=etag)
    with _held(entry, say):
        if again:
            entry.partial.unlink(missing_ok=True)
        elif _is_complete(entry.blob, file.size):
            entry.partial.unlink(missing_ok=True)  # another program was faster
            return _link(entry), None
        elif _is_complete(entry.snapshot, file.size):  # on a disk without symbolic links the file itself is there
            return entry.snapshot, None
        partial = _Partial(entry.partial)
        _complete(partial, file, say=say, observer=observer)
        if damage := partial.damage(file.size, etag, sha256):
            say(f"{file.name}: {damage}; downloading all of it again")
            partial.discard()
            _complete(partial, file, say=say, observer=observer)
        if damage := partial.damage(file.size, etag, sha256):
            partial.discard()
            raise DamagedFileError(
                f"{file.name}: {damage}; it was removed. Run again; if it happens again, something between here and "
                "the hub changes files, such as a proxy"
            )
        fsync_file(entry.partial)
        os.replace(entry.partial, entry.blob)
        return _link(entry), partial.sha256


class _Partial:
    """The first bytes of a file, and their checksum.

    Bytes are written at their place in the file, never appended: where a shared disk ignores locks, two processes then
    write the same bytes to the same places.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = 0
        self._digest = hashlib.sha256()
        path.touch()  # of an empty file nothing more comes
        if path.is_file():
            self._read()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                self._digest.update(piece)
                self.size += len(piece)

    def write(self, first: int, pieces: Iterable[bytes], moved: Callable[[int], None]) -> None:
        """Write the pieces, which begin at byte `first` of the file: its beginning, or where this one ends."""
        if first not in (0, self.size):
            raise CutShortError(f"asked for bytes from {self.size}, found bytes from {first}")
        if first == 0:
            self._digest, self.size = hashlib.sha256(), 0
        self._path.touch()
        with self._path.open("rb+") as file:
            file.seek(self.size)
            for piece in pieces:
                file.write(piece)
                self._digest.update(piece)
                self.size += len(piece)
                moved(self.size)

    @property
    def sha256(self) -> str:
        """Of what is here, hex."""
        return self._digest.hexdigest()

    def damage(self, size: int, etag: str, sha256: str | None) -> str:
        """Return what is wrong with the complete file; nothing if it is right."""
        if self.size != size:
            return f"found {self.size} bytes, need {size}"
        if sha256 is None and _GIT_HASH.fullmatch(etag):
            found = hashlib.sha1(b"blob %d\0" % size + self._path.read_bytes()).hexdigest()
            return "" if found == etag else f"found git's hash {found}, need {etag}"
        is_wrong = sha256 is not None and self.sha256 != sha256
        return f"found sha256 {self.sha256}, need {sha256}" if is_wrong else ""

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
        self._digest, self.size = hashlib.sha256(), 0


def _complete(partial: _Partial, file: RemoteFile, *, say: Say, observer: Observer) -> None:
    """Download the bytes that are missing."""

    def moved(size: int) -> None:
        observer(file.name, size)

    def attempt() -> None:
        if partial.size >= file.size:
            return
        with file.stream(partial.size) as (first, pieces):
            partial.write(first, pieces, moved)
        if partial.size < file.size:
            raise CutShortError(f"{partial.size} of {file.size} bytes")

    moved(partial.size)
    persist(
        attempt,
        what=file.name,
        patience=file.hub.patience,
        say=say,
        gained=lambda: partial.size,
        still_wanted=lambda: moved(partial.size),
    )


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _link(entry: CacheEntry) -> Path:
    """Make the snapshot's file from the blob: a relative link, or the blob itself where there are no links."""
    blob, snapshot = entry.blob, entry.snapshot
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    if snapshot.exists() and blob.exists() and snapshot.samefile(blob):
        return snapshot
    if are_symlinks_supported(entry.file.hub.cache):
        temporary = snapshot.with_name(f".{snapshot.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(blob, snapshot.parent))
        os.replace(temporary, snapshot)
    else:
        os.replace(blob, snapshot)
    fsync_folder(snapshot.parent)
    return snapshot


@contextmanager
def _held(entry: CacheEntry, say: Say) -> Iterator[None]:
    """Hold the lock of the file's content, which huggingface_hub takes too."""
    entry.lock.parent.mkdir(parents=True, exist_ok=True)
    entry.blob.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(entry.lock, timeout=_LOCK_SECONDS))
        except Timeout:
            say(f"{entry.file.name} is being downloaded by another process; waiting for it to finish")
            stack.enter_context(WeakFileLock(entry.lock))
        yield

"""A store of objects: a folder, or a bucket behind fsspec. Names are relative to the mirror's address, with `/`."""

from __future__ import annotations

import errno
import hashlib
import importlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from gpt_pipeline.errors import UserError
from gpt_pipeline.mirror.address import EXTRAS, FILE, KEY, folder_of, require_mirror, scheme_of
from gpt_pipeline.mirror.parts import UPLOAD_SECONDS, forget_parts, open_parts
from gpt_pipeline.shown import without_password
from gpt_pipeline.storage.atomic import TEMPORARY_SUFFIX, HashedFile, atomic_path, fsync_file, fsync_folder, parse_json
from gpt_pipeline.storage.lock import remove_abandoned
from gpt_pipeline.storage.manifest import FileRecord

_logger = logging.getLogger(__name__)
_PIECE_BYTES = 8 << 20  # at once in memory, and read from a bucket by one request
_PART_BYTES = 16 << 20  # of an upload in parts, and in memory meanwhile; 10,000 of them at most: 160 GB an object
_S3_SETTINGS = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2, "mode": "standard"}}
_GOOGLE_SECONDS = {"sock_connect": 5, "sock_read": 60}  # its library has no limit of its own; Azure's: 20 and 60
_S3_TRIES = 2  # of each such request, by s3fs: six in all, which take 4 s where they are refused, 6 min in silence

Progress = Callable[[int], None]
"""Told of each piece's bytes; may raise to stop."""


class MirrorError(UserError):
    """The mirror cannot be reached, or refuses."""


class Store(Protocol):
    """The objects of a mirror. Every method raises `MirrorError` if the store fails."""

    @property
    def url(self) -> str: ...

    def put(self, name: str, source: Path, *, each: Progress = lambda _: None) -> FileRecord:
        """Send the file `source`; return size and sha256 of what is there.

        Where the store can, a call after one that was cut off sends what is missing; `each` is told of that alone.
        """
        ...

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a small object, in place of one that is there."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object only if there is none of its name; return whether this call wrote it."""
        ...

    def read(self, name: str, start: int = 0) -> Iterator[bytes] | None:
        """Return the object's content from byte `start` on piece by piece, or None if there is no such object."""
        ...

    def get_bytes(self, name: str) -> bytes | None:
        """Return a small object's content, or None if there is no such object."""
        ...

    def copy(self, name: str, target: str) -> None:
        """Give an object a second name, without its bytes passing through this machine."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each object whose name begins with `prefix/`, by name."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, in this order; those that are not there are no failure."""
        ...

    def forget_parts(self, prefix: str) -> None:
        """Remove what uploads that nobody goes on with have left below `prefix/`."""
        ...


def open_store(url: str) -> Store:
    """Return the store at `url`; nothing is asked of it yet.

    Raises:
        ConfigError: the address cannot be a mirror.
        MirrorError: what speaks to the store is not installed, or cannot be set up.
    """
    require_mirror(url, key=KEY)
    return FolderStore(url) if scheme_of(url) == FILE else BucketStore(url)


def fetch(store: Store, name: str, target: Path, *, goes_on: bool = False) -> FileRecord | None:
    """Write an object's content to `target`; return its size and sha256, or None if there is no such object.

    If it `goes_on`, what `target` holds is taken for the object's beginning, and the rest is read.

    Raises:
        MirrorError: the store fails.
        OSError: this machine's disk does.
    """
    with HashedFile(target, goes_on=goes_on) as file:
        pieces = store.read(name, file.size)
        if pieces is None:
            return None
        for piece in pieces:
            file.write(piece)
    return FileRecord(size=file.size, sha256=file.sha256)


def parsed(content: bytes | None) -> dict[str, Any] | None:
    """Return what a small object of JSON holds; None if there is none, or it is damaged."""
    try:
        value = parse_json(content or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class FolderStore:
    """A folder, such as a network disk."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = folder_of(url)

    def put(self, name: str, source: Path, *, each: Progress = lambda _: None) -> FileRecord:
        with source.open("rb") as file, self._explained(name), atomic_path(self._path(name)) as temporary:
            return _copied(file, temporary, each)

    def put_bytes(self, name: str, content: bytes) -> None:
        with self._explained(name), atomic_path(self._path(name)) as temporary:
            temporary.write_bytes(content)

    def create(self, name: str, content: bytes) -> bool:
        path = self._path(name)
        temporary = _temporary_for(path)
        with self._explained(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                fsync_file(temporary)
                _give_name(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            fsync_folder(path.parent)
        return True

    def read(self, name: str, start: int = 0) -> Iterator[bytes] | None:
        with self._explained(name):
            return self._pieces(name, start) if self._path(name).is_file() else None

    def _pieces(self, name: str, start: int) -> Iterator[bytes]:
        with self._explained(name):
            file = self._path(name).open("rb")
            file.seek(start)
        with file:
            while True:
                with self._explained(name):
                    piece = file.read(_PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def get_bytes(self, name: str) -> bytes | None:
        with self._explained(name):
            try:
                return self._path(name).read_bytes()
            except FileNotFoundError:
                return None

    def copy(self, name: str, target: str) -> None:
        with self._explained(target), atomic_path(self._path(target)) as temporary:
            shutil.copyfile(self._path(name), temporary)

    def sizes(self, prefix: str) -> dict[str, int]:
        with self._explained(prefix):
            found = (path for path in self._path(prefix).rglob("*") if path.is_file() and path.name[0] != ".")
            return {path.relative_to(self._root).as_posix(): path.stat().st_size for path in found}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with self._explained(name):
                self._path(name).unlink(missing_ok=True)

    def forget_parts(self, prefix: str) -> None:
        with self._explained(prefix):
            for folder in {path.parent for path in self._path(prefix).rglob(f".*{TEMPORARY_SUFFIX}")}:
                remove_abandoned(folder)

    def _path(self, name: str) -> Path:
        return self._root / name

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Tell what fails; what a disk that is not there seems to lack is not known to be absent."""
        try:
            if not self._root.is_dir():  # of a disk that is not mounted, the mount point is there, and empty
                text = f"there is no folder {self._root}; mount its disk, or, for a new mirror, make it: mkdir"
                raise FileNotFoundError(errno.ENOENT, f"{text} '{self._root}'")
            yield
        except MirrorError:
            raise
        except OSError as error:
            raise MirrorError(f"the mirror {self.url} fails at {name}: {error.strerror or error}") from error


def _temporary_for(path: Path) -> Path:
    """Return a name for a temporary file that no other process has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def _give_name(source: Path, target: Path) -> None:
    """Give `source` the second name `target`; raises FileExistsError if there is a file of that name."""
    try:
        os.link(source, target)  # never shows half of it
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links: exFAT, many network shares
        with target.open("xb") as file:
            file.write(source.read_bytes())
        fsync_file(target)


def _copied(source: IO[bytes], target: Path, each: Progress) -> FileRecord:
    with HashedFile(target) as file:
        while piece := source.read(_PIECE_BYTES):
            file.write(piece)
            each(len(piece))
    return FileRecord(size=file.size, sha256=file.sha256)


def require_library(url: str) -> None:
    """Raise MirrorError unless what speaks to the store at `url` is installed."""
    module, extra = EXTRAS[scheme_of(url)]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MirrorError(
            f"{KEY}: found {url}, need the Python package {module} to reach it; "
            f"pip install -c constraints.txt 'gpt-pipeline[{extra}]'"
        ) from error


class BucketStore:
    """A bucket behind fsspec: S3 and what speaks its language, Google Cloud Storage, Azure."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._module, _ = EXTRAS[scheme_of(url)]
        self._files, root = self._opened()
        self._root = root.rstrip("/")

    def _opened(self) -> tuple[Any, str]:
        module, scheme = self._module, scheme_of(self.url)
        url = f"{scheme}{self.url[len(scheme) :]}"  # S3:// is s3://, which fsspec does not know
        require_library(self.url)
        from fsspec.core import url_to_fs

        # Of no use to others: a listing or a session that is shared may be older than what another machine wrote.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if module == "s3fs":
            options["config_kwargs"] = _S3_SETTINGS
        with self._explained("its configuration"):
            if module == "gcsfs":
                # The class that fsspec takes asks for the bucket's kind first, at each start, by gRPC.
                from aiohttp import ClientTimeout
                from gcsfs.core import GCSFileSystem

                logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what is said in a line here
                files = GCSFileSystem(requests_timeout=ClientTimeout(**_GOOGLE_SECONDS), **options)
                return files, str(files._strip_protocol(url))
            files, root = url_to_fs(url, **options)
        if module == "s3fs":
            files.retries = _S3_TRIES
        return files, str(root)

    def put(self, name: str, source: Path, *, each: Progress = lambda _: None) -> FileRecord:
        with source.open("rb") as file:
            content = file.read(_PART_BYTES)
            if len(content) == _PART_BYTES:
                record = self._put_parts(name, content, file, each)
            else:
                self.put_bytes(name, content)
                each(len(content))
                record = FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        self._require_size(name, record.size)
        return record

    def _put_parts(self, name: str, content: bytes, rest: IO[bytes], each: Progress) -> FileRecord:
        """Send `content` and the `rest` in parts; no store shows the object before the last one is there."""
        digest, size = hashlib.sha256(), 0
        with self._explained(name):
            parts = open_parts(self._module, self._files, self._root, name)
        try:
            while content:
                with self._explained(name):
                    sent = parts.add(content)
                digest.update(content)
                size += len(content)
                each(len(content) if sent else 0)
                is_last = len(content) < _PART_BYTES  # the file may have grown since this was read
                content = b"" if is_last else rest.read(_PART_BYTES)
            with self._explained(name):
                parts.complete()
        except BaseException:
            try:
                parts.give_up()
            except Exception as error:  # what went wrong before is what counts
                _logger.warning("the mirror %s may keep parts of %s: %s", self.url, name, _reason(error))
            raise
        return FileRecord(size=size, sha256=digest.hexdigest())

    def put_bytes(self, name: str, content: bytes) -> None:
        with self._explained(name):
            self._files.pipe_file(self._path(name), content, timeout=UPLOAD_SECONDS)

    def create(self, name: str, content: bytes) -> bool:
        try:
            with self._explained(name, passing=(FileExistsError,)):
                self._files.pipe_file(self._path(name), content, mode="create", timeout=UPLOAD_SECONDS)
        except FileExistsError:
            # A request that was repeated because its answer was lost meets what it wrote itself.
            return self.get_bytes(name) == content
        return True

    def read(self, name: str, start: int = 0) -> Iterator[bytes] | None:
        try:
            with self._explained(name, passing=(FileNotFoundError,)):
                size = int(self._files.info(self._path(name))["size"])
        except FileNotFoundError:
            return None
        return self._pieces(name, start, size)

    def _pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        for first in range(start, size, _PIECE_BYTES):
            with self._explained(name):
                piece = bytes(self._files.cat_file(self._path(name), start=first, end=min(size, first + _PIECE_BYTES)))
            yield piece

    def get_bytes(self, name: str) -> bytes | None:
        try:
            with self._explained(name, passing=(FileNotFoundError,)):
                return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def copy(self, name: str, target: str) -> None:
        with self._explained(target):
            self._files.cp_file(self._path(name), self._path(target))

    def sizes(self, prefix: str) -> dict[str, int]:
        with self._explained(prefix):
            found = self._files.find(self._path(prefix), detail=True)
            start = len(self._root) + 1
            return {name[start:]: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                with self._explained(name, passing=(FileNotFoundError,)):
                    self._files.rm_file(self._path(name))
            except FileNotFoundError:
                continue

    def forget_parts(self, prefix: str) -> None:
        with self._explained(prefix):
            forget_parts(self._module, self._files, self._root, prefix)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _require_size(self, name: str, size: int) -> None:
        with self._explained(name):
            found = int(self._files.info(self._path(name))["size"])
        if found != size:
            raise MirrorError(f"the mirror {self.url} has {found:,} bytes of {name}, need {size:,}; it is sent again")

    @contextmanager
    def _explained(self, name: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the libraries of stores raise what they like, not all of it OSErrors
            if isinstance(error, (MirrorError, *passing)):
                raise
            raise MirrorError(f"the mirror {self.url} fails at {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what a store's library says, in one line without secrets."""
    text = str(error).strip()
    if isinstance(error, TimeoutError) and not text:  # fsspec's own, or one that it hides
        text = str(error.__cause__ or "") or f"what was sent is not taken within {UPLOAD_SECONDS:.0f} s"
    lines = text.splitlines()
    return without_password(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)

"""Files that exist only when they are complete: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

_Value = TypeVar("_Value")
_logger = logging.getLogger(__name__)

_TEMPORARY_SUFFIX = ".tmp"
_READ_BYTES = 1 << 20
_PATIENCE_SECONDS = 5


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there becomes `path` when the block ends well.

    The folder is made if it is missing. If the block raises, the temporary file is removed and `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{_TEMPORARY_SUFFIX}")
    try:
        yield temporary
        fsync_file(temporary)
        _replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class HashedFile(io.RawIOBase):
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._digest.update(piece)
        self._file.write(piece)
        count = memoryview(piece).nbytes
        self.size += count
        return count

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        """Of all that was written so far, hex."""
        return self._digest.hexdigest()


def _replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`. Windows refuses while somebody reads `target`, so there it is tried for a while."""
    until = time.monotonic() + (_PATIENCE_SECONDS if os.name == "nt" else 0)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


def link_or_copy(source: Path, target: Path) -> bool:
    """Give `source` the second name `target`, atomically; False if the disk knows no hard links and it was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return True
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # exFAT, some network disks, or two disks
            shutil.copyfile(source, temporary)
            return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_kept(path: Path, parse: Callable[[Any], _Value | None], *, otherwise: str) -> _Value | None:
    """Return what `parse` makes of the JSON in `path`; None if the file does not exist or cannot be parsed.

    A file that cannot be parsed is reported in the log, with what happens `otherwise`.
    """
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _logger.warning("%s cannot be read (%s); %s", path, error, otherwise)
        return None


def known_fields(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` in `value`; a newer version may have written others as well."""
    return {each.name: value[each.name] for each in dataclasses.fields(kind) if each.name in value}


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes, read in bounded pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files that killed processes left in `folder`; call it only while holding its lock."""
    leftovers = sorted(folder.glob(f".*{_TEMPORARY_SUFFIX}")) if folder.is_dir() else []
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers

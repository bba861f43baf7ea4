"""Files that exist only when they are complete: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from gpt_pipeline import __version__
from gpt_pipeline.errors import NewerFileError, UserError
from gpt_pipeline.storage.room import explained_full_disk
from gpt_pipeline.storage.shape import require_shape

_Value = TypeVar("_Value")
_logger = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".part"
"""Of a file that is still being brought; who brings it goes on with it after a cut."""

TEMPORARY_SUFFIX = ".tmp"
"""Of a file that is being written; one that a killed process left is of use to nobody."""

MOST = 2**127
"""Numbers are below, in files as in what people ask for: steps, sizes and seeds are by far, and what is made of such a
number still names a file."""

_READ_BYTES = 1 << 20
_PATIENCE_SECONDS = 5
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of a disk that cannot
_SCHEMA_KEY = "schema"
_SCHEMA = 1
_MOST_DEPTH = 100


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` when the block ends without an error.

    The folder is created if it is missing. If the block raises, the temporary file is removed and `path` is untouched.

    Raises:
        DiskFullError: there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        with explained_full_disk(path):
            yield temporary
            fsync_file(temporary)
            replace_file(temporary, path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class HashedFile(io.RawIOBase):
    """A file that is written from beginning to end and hashed as it is written.

    One that `goes_on` keeps what `path` holds, and counts and hashes that too.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self._file = path.open("ab" if goes_on else "wb")
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        if goes_on:
            with path.open("rb") as before:
                while piece := before.read(_READ_BYTES):
                    self._digest.update(piece)
                    self.size += len(piece)

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        try:
            self._file.write(piece)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(piece)
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
        """Of everything written so far, hex."""
        return self._digest.hexdigest()


def replace_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`. Windows refuses while `target` is being read, so there it is retried for a while."""
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
    """Give `source` the second name `target`, atomically; return False if hard links fail and it was copied."""
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


def rewrite_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` in place of what is in `path`, whose other keys, which a newer version wrote, are kept."""
    kept = read_kept(path, lambda before: {**before}, otherwise="it is written anew") or {}
    write_json(path, {**kept, **value})


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote; raises ValueError if `path` holds anything that `parse_json` refuses."""
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise ValueError("it is a folder") from None
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: it is another text, or its depth, numbers or characters are none that a program of ours could use.
    """
    try:
        value = _DECODER.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _require_usable(value, depth=0)
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"found {text}, need a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)  # NaN and infinity are not JSON


def _require_usable(value: Any, *, depth: int) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # raises ValueError for half of a surrogate pair, which no file can be named or hold
    elif isinstance(value, int | float):
        if not -MOST < value < MOST:
            raise ValueError("a number is too large")
    elif value is not None:
        if depth > _MOST_DEPTH:
            raise ValueError("nested too deeply")
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _require_usable(each, depth=depth + 1)


def read_state(path: Path, parse: Callable[[Any], _Value]) -> _Value:
    """Return what `parse` makes of the JSON in the state file `path`.

    A newer version may have written keys that this one does not know: `parse` leaves them out (`known_fields`), or
    refuses them where going on without them would lose something (`only_known_fields`). A newer version raises the
    file's `schema` (absent: 1) where this one must not go on at all.

    Raises:
        FileNotFoundError: there is no such file.
        NewerFileError: a newer version wrote it in a way that this one must not read.
        ValueError: it is damaged: no JSON, or not what `parse` needs.
    """
    value = read_json(path)
    try:
        schema = value.get(_SCHEMA_KEY, _SCHEMA)
        if type(schema) is int and schema > _SCHEMA:
            raise newer_file(path, f"{_SCHEMA_KEY} {schema}, and this version knows {_SCHEMA}", value)
        parsed = parse(value)
        for each in parsed if isinstance(parsed, list | tuple) else (parsed,):
            if dataclasses.is_dataclass(each):
                require_shape(each)
        return parsed
    except UnknownKeysError as error:
        raise newer_file(path, str(error), value) from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_kept(path: Path, parse: Callable[[Any], _Value | None], *, otherwise: str) -> _Value | None:
    """Return what `parse` makes of the state file `path`; None if it does not exist or is damaged.

    A damaged file is reported in the log, with what happens `otherwise`.

    Raises:
        NewerFileError: as `read_state`.
    """
    try:
        return read_state(path, parse)
    except FileNotFoundError:
        return None
    except ValueError as error:
        _logger.warning("%s cannot be read (%s); %s", path, error, otherwise)
        return None


def known_fields(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` in `value`; a newer version may have written others as well.

    Those are named in the log, once.
    """
    unknown = _unknown_keys(kind, value)
    if unknown:
        _say_once(
            f"{kind.__name__}: another version of gpt_pipeline wrote {_named(unknown)}{_writer(value)}, which is kept "
            "and not used here; if it is a newer one, update gpt_pipeline"
        )
    return {each.name: value[each.name] for each in dataclasses.fields(kind) if each.name in value}


def only_known_fields(kind: type[Any], value: Mapping[str, Any], *, section: str = "") -> dict[str, Any]:
    """Return `known_fields` of what must not be read in part; an unknown key makes `read_state` refuse the file.

    A field that is a config by default becomes one of its kind.
    """
    unknown = _unknown_keys(kind, value)
    if unknown:
        raise UnknownKeysError(_named([f"{section}.{key}" if section else key for key in unknown]))
    found = known_fields(kind, value)
    for each in dataclasses.fields(kind):
        inner, given = type(each.default), found.get(each.name)
        if dataclasses.is_dataclass(inner) and isinstance(given, Mapping):
            found[each.name] = inner(**only_known_fields(inner, given, section=f"{section}.{each.name}"))
    return found


class UnknownKeysError(ValueError):
    """Keys that this version does not know, in a value that must not be read in part."""


def newer_file(path: object, what: str, value: Mapping[str, Any]) -> NewerFileError:
    """Return the error of a file with the content `value` that a newer version wrote; `what` this one does not know."""
    return NewerFileError(
        f"{path} was written by a newer version of gpt_pipeline{_writer(value)}: found {what}; update gpt_pipeline, "
        "and run again. Nothing was touched"
    )


def _unknown_keys(kind: type[Any], value: Mapping[str, Any]) -> list[str]:
    known = {each.name for each in dataclasses.fields(kind)}
    return sorted(key for key in dict(value) if key not in known and key != _SCHEMA_KEY)


def _named(keys: Iterable[str]) -> str:
    return "unknown " + ", ".join(map(repr, keys))


def _writer(value: Mapping[str, Any]) -> str:
    """Return which version wrote `value`, as far as it says, and which this one is."""
    versions = value.get("versions")
    version = versions.get("gpt_pipeline") if isinstance(versions, Mapping) else value.get("version")
    return f" ({version}; this is {__version__})" if isinstance(version, str) else f" (this is {__version__})"


@cache
def _say_once(text: str) -> None:
    _logger.warning("%s", text)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable.

    Raises:
        UserError: its disk refuses that.
    """
    with path.open("rb+") as file:
        try:
            _flush_to_disk(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise
            raise UserError(
                f"{path}: its disk does not make files durable (fsync: {error.strerror}), so a power cut could lose "
                "finished work; need a disk that does: choose another storage.base_folder, or mount this one otherwise"
            ) from error


def _flush_to_disk(descriptor: int) -> None:
    """Have the disk itself keep what was written. On macOS fsync leaves it in the drive's cache (its man page)."""
    if platform.system() != "Darwin":
        os.fsync(descriptor)
        return
    import fcntl

    try:
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined, unused-ignore]  # macOS alone has it
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        os.fsync(descriptor)  # a disk without the stronger call, such as one on the network


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the disk can.

    Elsewhere a power cut may take back the newest renames: the files of before stand, and their work is done again.
    """
    if reason := why_renames_are_not_durable(folder):
        _say_once(
            f"{folder}: its disk does not make renames durable (fsync: {reason}); a power cut may take back the newest "
            "files there, and their work is then done again"
        )


def why_renames_are_not_durable(folder: Path) -> str:
    """Make a rename inside `folder` durable; return why the disk refuses. Windows has no such call and needs none."""
    if os.name == "nt":
        return ""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush_to_disk(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        return str(error.strerror)
    finally:
        os.close(descriptor)
    return ""


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove unfinished files that killed processes left in `folder`; call it only while holding its lock."""
    suffixes = (TEMPORARY_SUFFIX, PARTIAL_SUFFIX)
    leftovers = sorted(path for path in folder.glob(".*") if path.suffix in suffixes) if folder.is_dir() else []
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers

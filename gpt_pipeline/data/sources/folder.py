"""Files of one's own: a folder, one file, or those that a pattern names."""

from __future__ import annotations

import errno
import fnmatch
import glob
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt_pipeline.data.file_kinds import PARQUET, READABLE, TEXT, TEXT_LIST, ending_of, kind_of
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.names import resolve_folder

T = TypeVar("T")
_SYNTH_NAME = re.compile(r"synth_\d+\.parquet")
_SHOWN = 5  # names in an error
_OF_SYSTEM = ("lost+found", "system volume information", "$recycle.bin")  # at the top of a disk, closed to its users
_Told = Callable[[OSError], object]
"""Told of what cannot be read, and so would be left out."""


def numbered_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the files that are numbered as SYNTH's are, in order: `synth_<number>.parquet`."""
    return tuple(sorted(name for name in names if _SYNTH_NAME.fullmatch(name)))


def parquet_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a dataset in order: its `synth_<number>.parquet`, or else all its parquet files."""
    candidates = sorted(name for name in names if kind_of(name) == PARQUET and not name.startswith("."))
    return numbered_names(candidates) or tuple(candidates)


@dataclass(frozen=True, kw_only=True)
class LocalFolder:
    """A folder with raw files."""

    folder: Path
    names: tuple[str, ...]

    @property
    def description(self) -> str:
        return str(self.folder)

    @property
    def revision(self) -> None:
        """A folder has no revision: its files' checksums are its identity."""
        return None

    def record_key(self, name: str) -> str:
        return name

    def path(self, name: str) -> Path:
        """Return where the file is, or will be."""
        return self.folder / name

    def sha256(self, name: str) -> None:
        """Nothing says what a local file should be."""
        return None

    def find(self, name: str) -> Path | None:
        """Return the file's path if it exists."""
        path = self.path(name)
        return path if os.path.isfile(path) else None  # nor where a folder around it cannot be read

    def is_away(self, name: str) -> bool:
        """Return true: of a file that is not there, nothing says that it has changed."""
        return True

    def place(self, name: str) -> Path | None:
        """Return the file's path if it exists: nothing says how long it should be."""
        return self.find(name)

    def size(self, name: str) -> int:
        """Return the file's size in bytes; 0 if it does not exist."""
        path = self.find(name)
        return 0 if path is None else path.stat().st_size

    def open(self, name: str, *, say: Say) -> io.IOBase:
        return self.fetch(name, say=say).open("rb")

    def read_each(
        self, names: Iterable[str], read: Callable[[io.IOBase, str], T], *, say: Say
    ) -> Iterator[tuple[str, T]]:
        """Yield each name with what `read` returns for it, one file at a time, while the caller asks for more."""
        for name in names:
            with self.open(name, say=say) as file:
                yield name, read(file, name)

    def require_room(self, names: Iterable[str]) -> None:
        """Return: nothing is copied, and the sample's files are small."""

    def fetch(self, name: str, *, again: bool = False, say: Say) -> Path:
        """Return the file's path."""
        return self.path(name)

    def fetch_all(self, names: Iterable[str], *, say: Say) -> list[Path]:
        """Return the files' paths; see `fetch`."""
        return [self.fetch(name, say=say) for name in names]

    def proven_sha256(self, name: str) -> None:
        """Nothing is hashed before the stage reads it."""
        return None


@dataclass(frozen=True, kw_only=True)
class LocalFiles:
    """What `data.source` or `data.local_dataset_path` names, be it there or not."""

    path: Path
    """Absolute; the last parts may be a pattern."""

    key: str
    """The key that names it."""

    @property
    def folder(self) -> Path:
        """The folder in which all the files lie."""
        ways = [*reversed(self.path.parents), self.path]
        # A folder may be called `[old]`: what is there by that very name is no pattern.
        pattern = next((way for way in ways if glob.has_magic(way.name) and not os.path.exists(way)), None)
        if pattern is not None:
            return pattern.parent
        return self.path.parent if os.path.isfile(self.path) else self.path

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are there now, in order; none while the folder is away, as on a disk not plugged in.

        What cannot be read is passed over here: `opened` refuses it.
        """
        return self.read_and_passed_over()[0]

    def read_and_passed_over(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return `names`, and the files that could be read and are not, since those of another kind lie beside them."""
        listed = self._listed(told=lambda _: None)
        names = tuple(_chosen(listed))
        chosen = {*names}
        return names, tuple(name for name in listed if chosen and name not in chosen and kind_of(name))

    def opened(self) -> LocalFolder:
        """Return the files as a source.

        Raises:
            ConfigError: there are none that can be read, or of several kinds, or some would be left out.
        """
        if not os.path.isdir(self.folder):  # nor where a folder around it cannot be read
            need = "a folder, a file or a pattern that exists, in folders that this user can read"
            raise self._error(need, "correct or remove the key")
        listed = self._listed(told=self._refuse)
        names = _chosen(listed)
        if left_out := sorted({*_of_one_kind(listed)} - {*names}):
            raise ConfigError(
                self.key,
                found=f"{left_out[0]} beside {names[0]}",
                need="files of one kind, with endings of one case",
                remedy="rename them, or name those to be read by a pattern such as "
                f"{self.folder}/**/*{ending_of(names[0])} or {self.folder}/**/*{ending_of(left_out[0])}",
            )
        if unusable := [name for name in names if not _is_usable(self.folder, name)]:
            raise ConfigError(
                self.key,
                found=", ".join(ascii(name) for name in unusable[:_SHOWN]),
                need="files with UTF-8 names (these are folders, broken links, unreadable, or named otherwise)",
                remedy=f"rename, repair or remove them in {self.folder}",
            )
        if not names:
            kinds = sorted({kind for name in listed if (kind := kind_of(name))})
            if len(kinds) > 1:
                need = f"files of one kind (it holds {', '.join(kinds)})"
                raise self._error(need, f"name them by a pattern in {self.key}, such as {self.folder}/*.{kinds[0]}")
            seen = ", ".join(sorted(os.listdir(self.folder))[:_SHOWN])
            if (folder_is_meant := self.folder == self.path) and not seen:
                remedy = f"put files there, or correct {self.key}"
            elif folder_is_meant:
                remedy = f"unpack what it holds, or write it as one of these, or correct {self.key}"
            elif os.path.isfile(self.path):
                remedy = "unpack it, or write what it holds as one of these"
            else:
                remedy = "correct the pattern"
            where = "it" if folder_is_meant else self.folder
            raise self._error(f"files to read: {READABLE} ({where} holds {seen or 'nothing'})", remedy)
        return LocalFolder(folder=self.folder, names=tuple(names))

    def _listed(self, *, told: _Told) -> list[str]:
        """Return the files below the folder, or those that the pattern names, in order."""
        folder = self.folder
        if os.path.isfile(self.path):
            return [self.path.name]
        if not os.path.isdir(folder):
            return []
        if folder != self.path:
            found = _matching(folder, self.path.relative_to(folder).parts, told)
            return sorted(path.relative_to(folder).as_posix() for path in found if _is_file(path, told))
        top = sorted(_names_in(folder, told))
        if parquet_names(_known_before(top)):  # as before folders were looked into
            return top
        inner = sorted(
            (Path(root) / name).relative_to(folder).as_posix()
            for root, _, names in _walked(folder, told)
            for name in names
            if not name.startswith(".")
        )
        return top if parquet_names(top) and not _of_one_kind(_known_before(inner)) else inner

    def _refuse(self, error: OSError) -> None:
        path = Path(error.filename or self.folder)
        if not _is_of_system(path, self.folder):
            remedy = f"let this user read it (chmod), repair or remove it, or leave it out by a pattern in {self.key}"
            raise ConfigError(
                self.key, found=f"{path} ({error.strerror})", need="folders and files that can be read", remedy=remedy
            ) from error

    def _error(self, need: str, remedy: str) -> ConfigError:
        return ConfigError(self.key, found=str(self.path), need=need, remedy=remedy)


def _chosen(names: Sequence[str]) -> list[str]:
    """Return the files to read, of which those that end in `.PARQUET` or the like come after all others.

    They were passed over once, and what was made without them stays found; `LocalFiles.opened` refuses to go on so.
    """
    return _of_one_kind(_known_before(names)) or _of_one_kind(names)


def _known_before(names: Sequence[str]) -> list[str]:
    """Return the names but for parquet in capitals."""
    return [name for name in names if kind_of(name) != PARQUET or name.endswith(".parquet")]


def _of_one_kind(names: Sequence[str]) -> list[str]:
    """Return the files to read: those of parquet where there are some, else those of the one kind that there is.

    Texts count only where there is nothing else: a dataset often has a README or a licence beside it.
    """
    if found := parquet_names(names):
        return list(found)
    kinds = {kind for name in names if (kind := kind_of(name)) not in (None, PARQUET, TEXT_LIST)}
    if len(kinds) > 1:
        kinds.discard(TEXT)
    return [name for name in names if kind_of(name) in kinds] if len(kinds) == 1 else []


def _is_usable(folder: Path, name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return os.path.isfile(folder / name)


def _is_file(path: Path, told: _Told) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if kind_of(path.name) and (not isinstance(error, FileNotFoundError) or path.is_symlink()):
            told(error)  # also of a link to nowhere, but not of what a pattern names and is not there
        return False


def _is_folder(path: Path, told: _Told) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            told(error)
        return False


def _is_of_system(path: Path, folder: Path) -> bool:
    """Whether a path lies in something below `folder` that an operating system keeps to itself.

    On Windows these have an attribute of their own, as the links have that older programs find a user's folders by.
    """
    below = path.relative_to(folder).parts
    ways = [folder.joinpath(*below[:count]) for count in range(1, len(below) + 1)]
    return any(way.name.lower() in _OF_SYSTEM or _attributes(way) & stat.FILE_ATTRIBUTE_SYSTEM for way in ways)


def _attributes(path: Path) -> int:
    """Return the file attributes of Windows, 0 elsewhere."""
    try:
        return getattr(os.lstat(path), "st_file_attributes", 0)
    except OSError:  # of which it is told as it is
        return 0


def _matching(folder: Path, pattern: Sequence[str], told: _Told) -> Iterator[Path]:
    """Yield what lies in a folder under a pattern, given by its parts: as `glob` has it, and with an end."""
    part, *rest = pattern
    if part == "**":
        for each in _folders(folder, told):
            yield from _matching(each, rest or ["*"], told)
        return
    found = [part]
    if glob.has_magic(part):
        names = fnmatch.filter(_names_in(folder, told), part)
        found = [name for name in names if not name.startswith(".") or part.startswith(".")]
    for path in (folder / name for name in found):
        if not rest:
            yield path
        elif _is_folder(path, told):
            yield from _matching(path, rest, told)


def _folders(folder: Path, told: _Told, way: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield a folder and those below it, at any depth.

    Links are followed, but for those that lead back to a folder around them, also around a link that led to them. `way`
    has the folders in which the links lay that led here.
    """
    for root, names, _ in _walked(folder, told):
        yield Path(root)
        for link in (Path(root, name) for name in names if os.path.islink(os.path.join(root, name))):
            here, target = (*way, Path(root).resolve()), link.resolve()
            if not any(each.is_relative_to(target) for each in here):
                yield from _folders(link, told, here)


def _walked(folder: Path, told: _Told) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as `os.walk` does, which follows no links, without folders whose names begin with a dot."""
    for root, folders, names in os.walk(folder, onerror=told):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield root, folders, names


def _names_in(folder: Path, told: _Told) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        told(error)
        return []


def local_files(text: str, *, key: str) -> LocalFiles:
    """Return the files that `text`, the value of `key`, names.

    Raises:
        ConfigError: it is a Windows path and this is not Windows.
    """
    return LocalFiles(path=resolve_folder(text, relative_to=Path.cwd(), key=key), key=key)

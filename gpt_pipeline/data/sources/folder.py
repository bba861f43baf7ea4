"""Files of one's own: a folder, one file, or those that a pattern names."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpt_pipeline.data.file_kinds import PARQUET, READABLE, TEXT, TEXT_LIST, kind_of
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.storage.names import resolve_folder

if TYPE_CHECKING:
    from gpt_pipeline.data.stage import Say

T = TypeVar("T")
_SYNTH_NAME = re.compile(r"synth_\d+\.parquet")
_SHOWN = 5  # names in an error


def numbered_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the files that are numbered as SYNTH's are, in order: `synth_<number>.parquet`."""
    return tuple(sorted(name for name in names if _SYNTH_NAME.fullmatch(name)))


def parquet_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a dataset in order: its `synth_<number>.parquet`, or else all its parquet files."""
    candidates = sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))
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
        return path if path.is_file() else None

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
        parts = self.path.parts
        fixed = next((count for count, part in enumerate(parts) if glob.has_magic(part)), None)
        if fixed is not None and not self.path.exists():
            return Path(*parts[:fixed])
        return self.path.parent if self.path.is_file() else self.path

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are there now, in order; none while the folder is away, as on a disk not plugged in."""
        return tuple(_chosen(self._listed()))

    def opened(self) -> LocalFolder:
        """Return the files as a source.

        Raises:
            ConfigError: there are none that can be read, or of several kinds.
        """
        if not self.folder.is_dir():
            raise self._error("a folder, a file or a pattern that exists", "correct or remove the key")
        listed = self._listed()
        names = _chosen(listed)
        if unusable := [name for name in names if not _is_usable(self.folder / name)]:
            raise ConfigError(
                self.key,
                found=", ".join(ascii(name) for name in unusable[:_SHOWN]),
                need="files with UTF-8 names (these are folders, broken links, or named otherwise)",
                remedy=f"rename, repair or remove them in {self.folder}",
            )
        if not names:
            kinds = sorted({kind for name in listed if (kind := kind_of(name))})
            if len(kinds) > 1:
                need = f"files of one kind (it holds {', '.join(kinds)})"
                raise self._error(need, f"name them by a pattern in {self.key}, such as {self.folder}/*.{kinds[0]}")
            seen = ", ".join(sorted(os.listdir(self.folder))[:_SHOWN]) or "nothing"
            raise self._error(
                f"files to read: {READABLE} (it holds {seen})",
                "give the folder itself, not its parent, or remove the key to download the default dataset",
            )
        return LocalFolder(folder=self.folder, names=tuple(names))

    def _listed(self) -> list[str]:
        """Return the files below the folder, or those that the pattern names, in order."""
        folder = self.folder
        if self.path.is_file():
            return [self.path.name]
        if not folder.is_dir():
            return []
        if folder != self.path:
            found = glob.glob(str(self.path.relative_to(folder)), root_dir=folder, recursive=True)
            return sorted(Path(name).as_posix() for name in found if (folder / name).is_file())
        top = sorted(entry.name for entry in folder.iterdir())
        if parquet_names(top):  # as before folders were looked into
            return top
        inner = (
            (Path(root) / name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names
        )
        return sorted(name for name in inner if not any(part.startswith(".") for part in name.split("/")))

    def _error(self, need: str, remedy: str) -> ConfigError:
        return ConfigError(self.key, found=str(self.path), need=need, remedy=remedy)


def _chosen(names: Sequence[str]) -> list[str]:
    """Return the files to read: those of parquet where there are some, else those of the one kind that there is.

    Texts count only where there is nothing else: a dataset often has a README or a licence beside it.
    """
    if found := parquet_names(names):
        return list(found)
    kinds = {kind for name in names if (kind := kind_of(name)) not in (None, PARQUET, TEXT_LIST)}
    if len(kinds) > 1:
        kinds.discard(TEXT)
    return [name for name in names if kind_of(name) in kinds] if len(kinds) == 1 else []


def _is_usable(path: Path) -> bool:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return path.is_file()


def local_files(text: str, *, key: str) -> LocalFiles:
    """Return the files that `text`, the value of `key`, names.

    Raises:
        ConfigError: it is a Windows path and this is not Windows.
    """
    return LocalFiles(path=resolve_folder(text, relative_to=Path.cwd(), key=key), key=key)

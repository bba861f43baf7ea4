"""Raw files in a folder that the user already has."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.storage.names import resolve_folder

if TYPE_CHECKING:
    from gpt_pipeline.data.stage import Say

_KEY = "data.local_dataset_path"
T = TypeVar("T")
_SYNTH_NAME = re.compile(r"synth_\d+\.parquet")


def parquet_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a dataset in order: its `synth_<number>.parquet`, or else all its parquet files."""
    candidates = sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))
    numbered = tuple(name for name in candidates if _SYNTH_NAME.fullmatch(name))
    return numbered or tuple(candidates)


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


def local_path(text: str) -> Path:
    """Return the absolute folder that `data.local_dataset_path` names.

    Raises:
        ConfigError: it is a Windows path and this is not Windows.
    """
    return resolve_folder(text, relative_to=Path.cwd(), key=_KEY)


def _is_usable(path: Path) -> bool:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return path.is_file()


def open_folder(folder: Path) -> LocalFolder:
    """Return the dataset in `folder`.

    Raises:
        ConfigError: there is no such folder, or no parquet file in it.
    """
    if not folder.is_dir():
        raise ConfigError(_KEY, found=str(folder), need="a folder that exists", remedy="correct or remove the key")
    entries = sorted(entry.name for entry in folder.iterdir())
    names = parquet_names(entries)
    if unusable := [name for name in names if not _is_usable(folder / name)]:
        raise ConfigError(
            _KEY,
            found=", ".join(ascii(name) for name in unusable[:5]),
            need="files with UTF-8 names (these are folders, broken links, or named otherwise)",
            remedy=f"rename, repair or remove them in {folder}",
        )
    if not names:
        seen = ", ".join(entries[:5]) or "nothing"
        raise ConfigError(
            _KEY,
            found=str(folder),
            need=f"a folder with parquet files, such as synth_001.parquet (it holds {seen})",
            remedy="give the folder itself, not its parent, or remove the key to download them",
        )
    return LocalFolder(folder=folder, names=names)

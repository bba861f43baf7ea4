"""Raw files in a folder that the user already has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.data.eligibility import count_english_rows
from gpt_pipeline.errors import ConfigError
from gpt_pipeline.storage.names import resolve_folder

_KEY = "data.local_dataset_path"
_SYNTH_NAME = re.compile(r"synth_\d+\.parquet")


def parquet_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a dataset in order: its `synth_<number>.parquet`, or else all its parquet files."""
    candidates = sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))
    numbered = tuple(name for name in candidates if _SYNTH_NAME.fullmatch(name))
    return numbered or tuple(candidates)


@dataclass(frozen=True, kw_only=True)
class LocalFolder:
    """A folder with SYNTH's files."""

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

    def sha256(self, name: str) -> None:
        """Nobody says what a local file should be."""
        return None

    def find(self, name: str) -> Path | None:
        """Return the file's path if it is there."""
        path = self.folder / name
        return path if path.is_file() else None

    def size(self, name: str) -> int:
        """Return the file's size in bytes."""
        return (self.folder / name).stat().st_size

    def count_english(self, name: str) -> int:
        """Return how many rows of the file are in English: at least as many as become documents.

        Raises:
            DataError: the file is not one of SYNTH.
        """
        return count_english_rows(self.folder / name)

    def count_english_of(self, names: Iterable[str], *, say: Callable[[str], None]) -> Iterator[tuple[str, int]]:
        """Yield each file's name and count, one file at a time, as long as the caller asks for more."""
        for name in names:
            yield name, self.count_english(name)

    def require_room(self, names: Iterable[str]) -> None:
        """Return: nothing is copied from a folder."""

    def fetch(self, name: str, *, again: bool = False, say: Callable[[str], None]) -> Path:
        """Return the file's path."""
        return self.folder / name

    def fetch_all(self, names: Iterable[str], *, say: Callable[[str], None]) -> list[Path]:
        """Return the files' paths; see `fetch`."""
        return [self.fetch(name, say=say) for name in names]

    def proven_sha256(self, name: str) -> None:
        """A folder's files were not hashed on their way."""
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
            need="files with names in UTF-8 (these are folders, links that lead nowhere, or named otherwise)",
            remedy=f"mend or remove them in {folder}",
        )
    if not names:
        seen = ", ".join(entries[:5]) or "nothing"
        raise ConfigError(
            _KEY,
            found=str(folder),
            need=f"a folder with SYNTH's files synth_001.parquet, ... (it holds {seen})",
            remedy="name the folder itself, not one above it, or remove the key to download them",
        )
    return LocalFolder(folder=folder, names=names)

"""The sample as a source of raw files, each written when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline.data.eligibility import count_english_rows
from gpt_pipeline.data.sources.sample.rows import SAMPLE_VERSION
from gpt_pipeline.data.sources.sample.write import file_name, write_file

_MOST_FILES = 999


@dataclass(frozen=True, kw_only=True)
class SampleFolder:
    """A folder with the sample's files; what they hold depends on their number alone."""

    folder: Path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(file_name, range(1, _MOST_FILES + 1)))

    @property
    def description(self) -> str:
        return "the sample that the project writes itself"

    @property
    def revision(self) -> None:
        """The files' checksums are the sample's identity."""
        return None

    def record_key(self, name: str) -> str:
        return f"{SAMPLE_VERSION}/{name}"

    def size(self, name: str) -> int:
        """Return the file's size in bytes; 0 if it is not written yet."""
        path = self.find(name)
        return 0 if path is None else path.stat().st_size

    def sha256(self, name: str) -> None:
        """Nobody says what a file of the sample should be."""
        return None

    def find(self, name: str) -> Path | None:
        """Return the file's path if it is written."""
        path = self._path(name)
        return path if path.is_file() else None

    def count_english_of(self, names: Iterable[str], *, say: Callable[[str], None]) -> Iterator[tuple[str, int]]:
        """Yield each file's English rows; writes it if it is not written yet."""
        for name in names:
            yield name, count_english_rows(self.fetch(name, say=say))

    def require_room(self, names: Iterable[str]) -> None:
        """Return: the files are small."""

    def fetch(self, name: str, *, again: bool = False, say: Callable[[str], None]) -> Path:
        """Return the file's path, after writing it if it is not there, or in any case if `again`."""
        path = self.find(name)
        if path is None or again:
            path = write_file(self._path(name), self.names.index(name) + 1)
        return path

    def fetch_all(self, names: Iterable[str], *, say: Callable[[str], None]) -> list[Path]:
        """Return the files' paths; see `fetch`."""
        return [self.fetch(name, say=say) for name in names]

    def proven_sha256(self, name: str) -> None:
        """The sample's files are hashed once they are written."""
        return None

    def _path(self, name: str) -> Path:
        return self.folder / SAMPLE_VERSION / name

"""What the raw stage asks of a place where raw files come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpt_pipeline.data.stage import Say


class Source(Protocol):
    """Where raw files come from."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files, in order."""
        ...

    @property
    def description(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    def record_key(self, name: str) -> str: ...

    def size(self, name: str) -> int: ...

    def sha256(self, name: str) -> str | None:
        """Return the checksum that the source gives, if it gives one."""
        ...

    def find(self, name: str) -> Path | None:
        """Return the file's path if it is here; no network."""
        ...

    def count_english_of(self, names: Sequence[str], *, say: Say) -> Iterator[tuple[str, int]]:
        """Yield the English rows of each file, which need not be here, while the caller asks for more."""
        ...

    def require_room(self, names: Sequence[str]) -> None:
        """Raise `DataError` unless the disk has room for these files."""
        ...

    def fetch(self, name: str, *, again: bool = False, say: Say) -> Path:
        """Return the file's path, after bringing it here if it is not, or in any case if `again`."""
        ...

    def fetch_all(self, names: Sequence[str], *, say: Say) -> Sequence[Path]:
        """Return the files' paths, after bringing those here that are not, several at a time where that is faster."""
        ...

    def proven_sha256(self, name: str) -> str | None:
        """Return the checksum that the file had when this object brought it here, if it is still that file."""
        ...

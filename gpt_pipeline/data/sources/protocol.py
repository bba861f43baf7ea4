"""What the raw stage asks of a place where raw files come from."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from gpt_pipeline.shown import Say

T = TypeVar("T")


class Source(Protocol):
    """Where raw files come from: it knows their names, sizes and bytes, and nothing of what is in them."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files, in order."""
        ...

    @property
    def description(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    def record_key(self, name: str) -> str: ...

    def size(self, name: str) -> int:
        """Return the file's size in bytes; 0 for a local file that does not exist yet."""
        ...

    def sha256(self, name: str) -> str | None:
        """Return the checksum that the source gives, if it gives one."""
        ...

    def find(self, name: str) -> Path | None:
        """Return the file's path if it is here; no network."""
        ...

    def is_away(self, name: str) -> bool:
        """Whether a file that `find` does not find is away as it was, so that what is known of it stands."""
        ...

    def place(self, name: str) -> Path | None:
        """Return the file's path if something lies there, whole or not; no network."""
        ...

    def open(self, name: str, *, say: Say) -> io.IOBase:
        """Open the file for reading; one that is not here is not downloaded: only the ranges read are transferred."""
        ...

    def read_each(
        self, names: Sequence[str], read: Callable[[io.IOBase, str], T], *, say: Say
    ) -> Iterator[tuple[str, T]]:
        """Yield each name with what `read(file, name)` returns, in order, while the caller asks for more.

        Files are opened as by `open`, several remote ones at a time.
        """
        ...

    def require_room(self, names: Sequence[str]) -> None:
        """Raise `DataError` unless the disk has room for these files."""
        ...

    def fetch(self, name: str, *, again: bool = False, say: Say) -> Path:
        """Return the file's path, after bringing it here if it is missing, or in any case if `again`."""
        ...

    def fetch_all(self, names: Sequence[str], *, say: Say) -> Sequence[Path]:
        """Return the files' paths, after bringing the missing ones here, several at a time where that is faster."""
        ...

    def proven_sha256(self, name: str) -> str | None:
        """Return the checksum that the file had when this object brought it here, if it is still that file."""
        ...

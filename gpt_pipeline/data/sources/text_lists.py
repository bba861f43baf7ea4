"""Folders of many text files, of which each is a document: they are read by lists, some thousand files a list.

A part of its own for each would take more time than the text. A list names its files with their checksums, so its own
checksum stands for all that is in them. A second file records where the texts are, with size and time; it is not part
of the identity.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from gpt_pipeline.data.file_kinds import TEXT, kind_of
from gpt_pipeline.data.sources.folder import LocalFolder
from gpt_pipeline.errors import UnreadableFileError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import atomic_path, read_kept, sha256_of, write_json

_FILES = 2_000  # in a list
_logger = logging.getLogger(__name__)
_END = ".textlist"


def are_listed(names: Sequence[str]) -> bool:
    """Whether files of these names are read by lists."""
    return len(names) > 1 and all(kind_of(name) == TEXT for name in names)


@dataclass(frozen=True, kw_only=True)
class TextLists(LocalFolder):
    """A folder with lists of text files that lie elsewhere."""

    texts: Path
    """The folder of the text files."""

    members: tuple[str, ...] = ()
    """The text files, in order; none while their folder is away, and the lists stand as they are."""

    @property
    def description(self) -> str:
        return str(self.texts)

    def find(self, name: str) -> Path | None:
        """Return the list's path if it was written and its files are there; if these have changed, it is written anew.

        A link to nowhere stands among a folder's files, as where git-annex or DVC keep them: such a file is away.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        if self.members and not self._is_current[name]:
            if self._missing(name, self._stats(name)):
                return None
            try:
                self.fetch(name, say=_logger.info)
            except OSError as error:  # a folder that others may only read
                _logger.warning("%s: what has changed in %s cannot be noted (%s)", path, self.texts, error)
        return path

    def is_away(self, name: str) -> bool:
        """Whether the folder has the files that the list names, and those that are not away hold what it says."""
        path = self.path(name)
        if not self.members or not path.is_file():
            return True
        listed, beside = dict(_lines_of(path)), _read_beside(path)
        before = beside.get("stats", {}) if beside.get("list") == _sha256_of(path) else {}
        return [*listed] == [*self._members_of(name)] and all(
            before.get(member) == stat or _holds(self.texts / member, *stat, sha256=listed[member])
            for member, stat in self._stats(name).items()
        )

    def size(self, name: str) -> int:
        """Return the bytes of the list's files."""
        return sum(size for size, _ in self._stats(name).values())

    def fetch(self, name: str, *, again: bool = False, say: Say) -> Path:
        """Return the list's path, after writing it if its files are not what it says; unchanged ones are not read.

        Raises:
            UnreadableFileError: one of its files is not there.
        """
        path = self.path(name)
        if not self.members:
            return path
        beside, stats = _read_beside(path), self._stats(name)
        if missing := self._missing(name, stats):
            raise UnreadableFileError(f"{self.texts / missing[0]}: is gone since its folder was listed; run again")
        is_known = path.is_file() and not again and beside.get("list") == _sha256_of(path)
        known = dict(_lines_of(path)) if is_known else {}
        before = beside.get("stats", {})
        lines = [
            [
                member,
                known[member] if member in known and before.get(member) == stat else sha256_of(self.texts / member),
            ]
            for member, stat in stats.items()
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        write_json(_beside(path), self._said_of(path, stats))
        self._is_current[name] = True
        return path

    def _said_of(self, path: Path, stats: Mapping[str, list[int]]) -> dict[str, Any]:
        # The list's own checksum: of two processes that write at once, each may have written one of the two files.
        return {"folder": str(self.texts), "stats": stats, "list": _sha256_of(path)}

    def _stats(self, name: str) -> dict[str, list[int]]:
        """Return size in bytes and time of each file of the list that is there."""
        stats = {}
        for member in self._members_of(name):
            with suppress(OSError):
                stat = os.stat(self.texts / member)
                stats[member] = [stat.st_size, stat.st_mtime_ns]
        return stats

    def _members_of(self, name: str) -> Sequence[str]:
        first = self.names.index(name) * _FILES
        return self.members[first : first + _FILES]

    def _missing(self, name: str, stats: Mapping[str, list[int]]) -> list[str]:
        return [member for member in self._members_of(name) if member not in stats]

    @cached_property
    def _is_current(self) -> dict[str, bool]:
        """Whether each list was written of its files as they are now, and where they are now."""
        return {
            name: _read_beside(self.path(name)) == self._said_of(self.path(name), self._stats(name))
            for name in self.names
        }


def text_lists(folder: Path, texts: Path, members: Sequence[str]) -> TextLists:
    """Return the text files `members` in the folder `texts` as lists, which are written into `folder`."""
    count = (len(members) + _FILES - 1) // _FILES
    names = tuple(f"texts-{number:05}{_END}" for number in range(1, count + 1))
    return TextLists(folder=folder, names=names, texts=texts, members=tuple(members))


def listed_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each file of a list, which holds what it held when the list was written.

    Raises:
        UnreadableFileError: one is gone, or holds something else.
    """
    folder = Path(_read_beside(path).get("folder", ""))
    for name, sha256 in _lines_of(path):
        own = folder / name
        if not own.is_file():
            raise UnreadableFileError(f"{own}: is gone since its folder was listed; run again")
        before = own.stat()
        if sha256_of(own) != sha256:
            raise UnreadableFileError(f"{own}: has changed since its folder was listed; run again")
        yield name, own
        if not own.is_file() or own.stat().st_mtime_ns != before.st_mtime_ns:
            raise UnreadableFileError(f"{own}: changed while it was read; run again")


def gone_of(path: Path) -> list[str]:
    """Return the names of a list's files that are not there."""
    folder = Path(_read_beside(path).get("folder", ""))
    return [name for name, _ in _lines_of(path) if not (folder / name).is_file()]


def _lines_of(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            name, sha256 = json.loads(line)
            yield name, sha256


@cache  # a folder with a link to nowhere is asked about again and again
def _holds(path: Path, size: int, mtime_ns: int, *, sha256: str) -> bool:
    """Whether the file that has this size and time has the checksum."""
    try:
        return sha256_of(path) == sha256
    except OSError as error:
        _logger.warning("%s: has another time than when it was read, and cannot be compared (%s)", path, error)
        return False


def _sha256_of(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_beside(path: Path) -> Mapping[str, Any]:
    return read_kept(_beside(path), lambda value: {**value}, otherwise="the text files are hashed again") or {}

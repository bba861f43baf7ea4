"""What is known about a source of raw files, kept so that it is found out once: pins, listings, checksums.

`source.json` is changed by one process at a time, which holds the folder. What was found in each raw file is a file of
its own under `files/`, so that several processes can examine several files at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt_pipeline.errors import DataError
from gpt_pipeline.storage.atomic import known_fields, read_state, write_json
from gpt_pipeline.storage.names import slug

_NAME = "source.json"
_FILES = "files"
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the hub lists it."""

    name: str
    """Path in the dataset's repository."""

    size: int
    """Bytes."""

    sha256: str | None
    """Hex; null for a small file, which the hub keeps in git and not in LFS."""


def is_size(value: object) -> bool:
    """Whether `value` is a number of bytes, which not every mirror of the hub gives."""
    return type(value) is int and value >= 0


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What was found in a file that had this size and time."""

    key: str
    """The file's name, after the commit and `/` for files of the hub."""

    size: int
    """Bytes."""

    mtime_ns: int
    sha256: str
    rows: int

    documents: int
    """Rows that become documents, including repeated ones."""

    rule: str
    """The `RULE_VERSION` by which the documents were counted."""

    def is_of(self, path: Path) -> bool:
        """Whether `path` is still the file that was examined, as far as its size and time tell."""
        stat = path.stat()
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@dataclass(kw_only=True)
class SourceRecord:
    """What is known about one source; except by `write_facts`, change it only while holding its folder."""

    folder: Path

    commits: dict[str, str] = field(default_factory=dict)
    """The hub's commit for each revision requested; the empty one is the newest, pinned at its first use."""

    listings: dict[str, list[HubFile]] = field(default_factory=dict)
    """The files that are read of the dataset at each commit, in order."""

    folder_names: list[str] = field(default_factory=list)
    """The parquet files of a folder when it was last seen, since its disk may be unplugged."""

    english_rows: dict[str, int] = field(default_factory=dict)
    """English rows by file, for files of the hub, downloaded or not."""

    new_documents: dict[str, int] = field(default_factory=dict)
    """Documents of a file that repeat none before them, by the identity of the file and of all files before it."""

    unknown: dict[str, Any] = field(default_factory=dict)
    """Keys that this version does not know, since a newer one wrote them; they are written back."""

    def save(self) -> None:
        value = dataclasses.asdict(self)
        del value["folder"], value["unknown"]
        write_json(self.folder / _NAME, {**value, **self.unknown})

    def facts(self, key: str) -> FileFacts | None:
        """Return what was found in the file, if it was examined."""
        return _read(self._facts_path(key), lambda value: FileFacts(**known_fields(FileFacts, value)))

    def all_facts(self) -> list[FileFacts]:
        """Return what was found in each file that was examined, also of commits that are not wanted any more."""
        paths = sorted((self.folder / _FILES).glob("*.json"))
        found = (_read(path, lambda value: FileFacts(**known_fields(FileFacts, value))) for path in paths)
        return [facts for facts in found if facts is not None]

    def write_facts(self, facts: FileFacts) -> None:
        """Record what was found in a file; needs no lock."""
        write_json(self._facts_path(facts.key), dataclasses.asdict(facts))

    def _facts_path(self, key: str) -> Path:
        # The hash tells names apart that differ only in characters that file names may not contain.
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return self.folder / _FILES / f"{slug(key)[-60:]}-{digest}.json"


def read_record(folder: Path) -> SourceRecord:
    """Return the record in `folder`, or an empty one.

    Raises:
        DataError: the record is not readable.
    """

    def parse(value: Any) -> SourceRecord:
        known = known_fields(SourceRecord, value)
        unknown = {key: value[key] for key in value if key not in known}
        listings = {
            commit: [HubFile(**known_fields(HubFile, file)) for file in files]
            for commit, files in known.pop("listings").items()
            if all(
                is_size(file["size"]) for file in files
            )  # else kept by a version that did not check: asked for again
        }
        return SourceRecord(folder=folder, listings=listings, unknown=unknown, **known)

    return _read(folder / _NAME, parse) or SourceRecord(folder=folder)


def _read(path: Path, parse: Callable[[Any], _Value]) -> _Value | None:
    try:
        return read_state(path, parse)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is not readable ({error}); delete it: files are then checked again, and a revision that was "
            "not set in the experiment file is the newest once more"
        ) from error

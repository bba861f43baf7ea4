"""What was found out about a source of raw files, kept so that it is found out once: pins, listings, checksums."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from gpt_pipeline.data.eligibility import RULE_VERSION, count_documents
from gpt_pipeline.errors import DamagedFileError, DataError
from gpt_pipeline.storage.atomic import read_json, sha256_of, write_json

_NAME = "source.json"


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the hub lists it."""

    name: str
    """Path in the dataset's repository."""

    size: int
    """Bytes."""

    sha256: str | None
    """Hex; null for a small file, which the hub keeps in git and not in LFS."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What was found in a file when it had this size and this time."""

    size: int
    """Bytes."""

    mtime_ns: int
    sha256: str
    rows: int

    documents: int
    """Rows that become documents."""

    rule: str
    """The `RULE_VERSION` that the documents were counted by."""

    def is_of(self, path: Path) -> bool:
        """Whether `path` still is the file that was looked at, as far as its size and time tell."""
        stat = path.stat()
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@dataclass(kw_only=True)
class SourceRecord:
    """The memory of one source; change it only while holding its folder."""

    folder: Path

    commits: dict[str, str] = field(default_factory=dict)
    """The hub's commit for each revision asked for; the empty one is the newest, pinned at its first use."""

    listings: dict[str, list[HubFile]] = field(default_factory=dict)
    """The dataset's parquet files at each commit, in order."""

    files: dict[str, FileFacts] = field(default_factory=dict)
    """By file name, after the commit and `/` for files of the hub."""

    def save(self) -> None:
        value = dataclasses.asdict(self)
        del value["folder"]
        write_json(self.folder / _NAME, value)

    def facts_of(self, key: str, path: Path, *, sha256: str | None = None) -> FileFacts:
        """Return the facts of the file at `path`, reading it only if they are not known yet.

        Raises:
            DamagedFileError: its checksum is not `sha256`.
            DataError: it is not a file of SYNTH.
        """
        known = self.files.get(key)
        if known is None or known.rule != RULE_VERSION or not known.is_of(path):
            known = _look_at(path, sha256)
            self.files[key] = known
            self.save()
        return known


def _look_at(path: Path, sha256: str | None) -> FileFacts:
    stat = path.stat()  # before reading: a file that changes meanwhile is looked at again
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        raise DamagedFileError(f"{path}: found sha256 {found}, need {sha256}; delete it and run again")
    rows, documents = count_documents(path)
    return FileFacts(
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=found,
        rows=rows,
        documents=documents,
        rule=RULE_VERSION,
    )


def read_record(folder: Path) -> SourceRecord:
    """Return the record in `folder`, or an empty one.

    Raises:
        DataError: the record is not readable.
    """
    path = folder / _NAME
    try:
        value = read_json(path)
        return SourceRecord(
            folder=folder,
            commits=value["commits"],
            listings={commit: [HubFile(**file) for file in files] for commit, files in value["listings"].items()},
            files={name: FileFacts(**facts) for name, facts in value["files"].items()},
        )
    except FileNotFoundError:
        return SourceRecord(folder=folder)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not readable ({error}); delete it: files are then checked again, and a revision that was "
            "not set in the experiment file is the newest once more"
        ) from error

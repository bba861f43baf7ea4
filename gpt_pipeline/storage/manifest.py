"""The manifest of a finished stage. It is written last: without it, the stage's folder does not count.

It holds nothing that depends on when or how fast the stage was made, so two runs with the same result write the same
`manifest.json`; times are in `made.json` beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pipeline import __version__
from gpt_pipeline.errors import DamagedFileError, DataError, NewerFileError
from gpt_pipeline.storage.atomic import fsync_file, known_fields, read_kept, read_state, sha256_of, write_json
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.names import as_typed

_logger = logging.getLogger(__name__)
MANIFEST_NAME = "manifest.json"
MADE_NAME = "made.json"
_told: dict[Path, str] = {}
"""What this process has said last of the damage in a folder."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a stage."""

    size: int
    """Bytes."""

    sha256: str
    """Of the whole file, hex."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage holds and what it was made from."""

    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    """The part of the configuration that the fingerprint covers."""

    upstream: tuple[str, ...] = ()
    """Fingerprints of the stages this one read."""

    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """By path relative to the manifest's folder, with `/`."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts and other figures worth showing; JSON values."""

    def write(self, folder: Path, *, seconds: float = 0.0) -> None:
        """Write the manifest into `folder`, atomically, after `made.json`, which records that it took `seconds`."""
        made = Made(at=utc_now(), seconds=round(seconds, 3), version=__version__)
        write_json(folder / MADE_NAME, dataclasses.asdict(made))
        write_json(folder / MANIFEST_NAME, dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Made:
    """When a stage was made, and how long it took."""

    at: str
    """UTC, ISO 8601."""

    seconds: float
    """Wall time of the process that made it."""

    version: str
    """Of gpt_pipeline."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage."""

    folder: Path
    manifest: Manifest
    reused: bool
    """True when it was found finished and no work was done."""

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def made(self) -> Made | None:
        """When it was made and how long that took; None if unknown."""
        return _read_made(self.folder)


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def stage_folder(data_folder: Path, stage: str, fingerprint: str) -> Path:
    """Return `<data_folder>/<stage>-<first digits of the fingerprint>`."""
    return data_folder / f"{stage}-{fingerprint[:SHORT]}"


def not_finished(stage: str, folder: Path, *, of: str = "", file: Path | None = None) -> DataError:
    """Return the error that `stage`, which another stage reads, is not finished in `folder`.

    `of` is whose stage it is, for a person; `file` is the experiment's file that makes it.
    """
    whose = f" of {of}" if of else ""
    command = "" if file is None else f", or run: gpt-pipeline run {as_typed(file, Path.cwd())}"
    return DataError(f"{stage}{whose} is not finished in {folder}; materialize {stage} first{command}")


def record_file(path: Path) -> FileRecord:
    """Return the record of a file on disk, reading it once."""
    return FileRecord(size=path.stat().st_size, sha256=sha256_of(path))


def record_and_sync(path: Path) -> FileRecord:
    """Return the record of a file that was just written, reading it while the system makes it durable."""
    with ThreadPoolExecutor(1, thread_name_prefix="sync") as thread:
        durable = thread.submit(fsync_file, path)
        record = record_file(path)
        durable.result()
    return record


def forget(folder: Path) -> None:
    """Make the stage in `folder` unfinished; its files are kept until they are written again.

    A damaged manifest is kept under another name.

    Raises:
        NewerFileError: only a newer version can read the manifest.
    """
    path = folder / MANIFEST_NAME
    if has_damaged_manifest(folder):
        path.replace(path.with_name(f"{MANIFEST_NAME}.damaged-{time.time_ns()}"))
    path.unlink(missing_ok=True)


def has_damaged_manifest(folder: Path) -> bool:
    """Whether there is a manifest in `folder` that cannot be read, so that it counts as none."""
    return (folder / MANIFEST_NAME).is_file() and read_manifest(folder) is None


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`, or None if there is none; a damaged one is reported in the log, and is none.

    Raises:
        NewerFileError: only a newer version can read it.
    """
    path = folder / MANIFEST_NAME
    try:
        return read_state(path, _parse)
    except FileNotFoundError:
        return None
    except NewerFileError as error:
        made = _read_made(folder)
        writer = "" if made is None else f". {MADE_NAME} beside it names version {made.version}"
        raise NewerFileError(f"{error}{writer}") from None
    except ValueError as error:
        _logger.warning("%s is not a readable manifest (%s); the next run makes the stage again", path, error)
        return None


def _parse(value: Mapping[str, Any]) -> Manifest:
    files = {name: FileRecord(**known_fields(FileRecord, record)) for name, record in value["files"].items()}
    return Manifest(**{**known_fields(Manifest, value), "upstream": tuple(value["upstream"]), "files": files})


def _read_made(folder: Path) -> Made | None:
    path, unknown = folder / MADE_NAME, "when the stage was made is not known"
    return read_kept(path, lambda value: Made(**known_fields(Made, value)), otherwise=unknown)


def recorded(folder: Path, fingerprint: str) -> StageResult | None:
    """Return the stage in `folder` if it was finished with `fingerprint`, whatever has become of its files since."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.fingerprint != fingerprint:
        return None
    return StageResult(folder=folder, manifest=manifest, reused=True)


def finished(folder: Path, fingerprint: str) -> StageResult | None:
    """Return the stage in `folder` if it is finished with `fingerprint` and every file has its size; else None."""
    return if_whole(recorded(folder, fingerprint))


def if_whole(stage: StageResult | None) -> StageResult | None:
    """Return the stage if every file has its size; contents are not read."""
    if stage is None:
        return None
    damage = next(damaged_sizes(stage), None)
    if damage is None:
        _told.pop(stage.folder, None)
        return stage
    if _told.get(stage.folder) != damage:  # who makes a stage asks for it more than once
        _told[stage.folder] = damage
        _logger.warning("%s; the next run makes the stage again", damage)
    return None


def damaged_sizes(stage: StageResult, names: Iterable[str] | None = None) -> Iterator[str]:
    """Yield what is wrong with each file (of all, or of `names`) that is missing or not as long as it was made."""
    for name in stage.manifest.files if names is None else names:
        record, path = stage.manifest.files[name], stage.folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif (size := path.stat().st_size) != record.size:
            yield f"{path}: found {size:,} bytes, need {record.size:,}"


def verify(stage: StageResult, names: Iterable[str] | None = None) -> None:
    """Check the sha256 of the stage's files (all, or those in `names`).

    Raises:
        DamagedFileError: a file differs; the message names the first one and the remedy.
    """
    chosen = list(stage.manifest.files if names is None else names)
    if damage := next(damaged_sizes(stage, chosen), None):
        raise DamagedFileError(f"{damage}; run again: what is missing is made again")
    for name in chosen:
        record, path = stage.manifest.files[name], stage.folder / name
        if (found := sha256_of(path)) != record.sha256:
            raise DamagedFileError(
                f"{path}: found sha256 {found}, need {record.sha256}; delete the folder and run again"
            )

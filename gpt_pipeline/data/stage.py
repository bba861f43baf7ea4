"""How a data stage is made: of parts, one for each source file, that any number of processes may make at once.

A part is made into a folder of its own, with a manifest, and is found again by whoever needs the same part: the same
stage after a crash, or a larger one. The stage's own folder is put together from its parts at the end.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import remove_leftovers
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.lock import folder_lock, holder_of, is_locked
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, forget, if_whole, recorded, verify

UNIT_BYTES = 64 << 20
"""Source files are done in groups of at least this size: below it, starting a process costs more than its work."""

MOST_GROUPS = 1000
"""Of the source files, by larger groups if need be: each is a step of the run, and looks at the whole list of files."""

PARTS = "parts"
_AGAIN = ".again"
_READERS = 4  # more would wait for the disk
_logger = logging.getLogger(__name__)


class PartedStage(Protocol):
    """A data stage as its three moves; each reads from the disk what the others left there."""

    @property
    def name(self) -> str: ...

    def find(self) -> StageResult | None:
        """Return the finished stage, or None; does no work."""
        ...

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while what it is made of is not known."""
        ...

    def plan(self, *, force: bool, say: Say) -> Sequence[Sequence[str]]:
        """Return the source files whose parts are missing, in groups that are done one at a time; none if finished.

        `force` returns all of them, for `make` and `finish` with `force` to replace what there is; until then the
        stage, and all others that are made of the same parts, stand as they are.

        Raises:
            UserError: with `force`, something is missing that they are made of.
        """
        ...

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> Mapping[str, Any]:
        """Make the parts of the source files `names`, and return what there is to say of them, as JSON values.

        Among it `megabytes`: what was read, of files or of text. `force` makes those that are finished, too.
        """
        ...

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Return the stage, put together from its parts; one that is missing or damaged is made first.

        `force` puts together a finished stage, too. If that fails, it is finished still, once a plan without `force`
        has compared its bytes.
        """
        ...


class PlacedStage(ABC):
    """A stage whose folder is known from what it is made of: where it is found again once it is finished."""

    @abstractmethod
    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while what it is made of is not known."""

    def find(self) -> StageResult | None:
        """Return the finished stage, or None; does no work."""
        return if_whole(self.known())

    def known(self) -> StageResult | None:
        """Return the stage if it was finished once, whatever has become of its files since."""
        place = self.place()
        return None if place is None else recorded(*place)


def prepare(stage: PartedStage, *, force: bool = False, say: Say) -> StageResult:
    """Return the finished stage, making what is missing of it in this process, one part after the other."""
    for group in stage.plan(force=force, say=say):
        stage.make(group, force=force, say=say)
    return stage.finish(force=force, say=say)


def grouped(sizes: Mapping[str, int]) -> list[list[str]]:
    """Return the names of files with these sizes in bytes, in order, in at most `MOST_GROUPS` groups.

    Each reaches `UNIT_BYTES`, but for the last.
    """
    unit = max(UNIT_BYTES, -(-sum(sizes.values()) // MOST_GROUPS))
    groups: list[list[str]] = []
    size = unit
    for name, own in sizes.items():
        if size >= unit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    return groups


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is made of one source file, and where."""

    kind: str
    fingerprint: str
    data_folder: Path

    @property
    def folder(self) -> Path:
        return self.data_folder / PARTS / f"{self.kind}-{self.fingerprint[:SHORT]}"

    def find(self) -> StageResult | None:
        """Return the part if it is made; sizes are looked at, not contents."""
        return finished(self.folder, self.fingerprint)

    def prepare(self, *, force: bool = False, say: Say, make: Callable[[], Manifest]) -> StageResult:
        """Return the part, calling `make` if it is not made; see `prepare_stage`."""
        return prepare_stage(self.folder, self.fingerprint, force=force, say=say, make=make)

    def intact(self, *, say: Say) -> StageResult | None:
        """Return the part if it is made and every byte is what its manifest says; forgets it otherwise."""
        part = self.find()
        if part is None:
            return None
        try:
            verify(part)
        except DamagedFileError as error:
            say(f"{error}; it is made again now")
            forget(self.folder)
            return None
        return part


def intact_parts(parts: Sequence[Part], *, say: Say) -> list[StageResult | None]:
    """Return `Part.intact` of each, in order; several are read at a time, since hashing leaves Python's lock."""
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        return list(pool.map(lambda part: part.intact(say=say), parts))


def is_begun_again(folder: Path) -> bool:
    """Whether somebody puts the stage in `folder` together anew, or failed to."""
    return (folder / _AGAIN).is_file()


def needs_nothing(stage: StageResult | None, *, say: Say) -> TypeGuard[StageResult]:
    """Whether the stage was found finished; one that was begun again, and not ended, then stands as it is.

    Its bytes are compared with its manifest first, once nobody is at it any more: some of its files may be replaced.
    """
    if stage is None or (is_begun_again(stage.folder) and not _still_stands(stage, say)):
        return False
    say(f"{stage.folder} is finished already; nothing to do")
    return True


def _still_stands(stage: StageResult, say: Say) -> bool:
    with exclusive(stage.folder, purpose=f"comparing {stage.folder.name}", say=say):
        if not is_begun_again(stage.folder):
            return True  # whoever was at it has ended it
        try:
            verify(stage)
        except DamagedFileError as error:
            say(f"{error}; it is put together anew now")
            return False
        (stage.folder / _AGAIN).unlink()
    return True


def finish_stage(folder: Path, fingerprint: str, *, force: bool, say: Say, make: Callable[[], Manifest]) -> StageResult:
    """Return the stage in `folder`, put together by `make` if it is not finished, was begun again, or by `force`."""
    if not force and (stage := _untouched(folder, fingerprint)):
        return stage

    def begun() -> Manifest:
        (folder / _AGAIN).touch()  # removed with the manifest written
        return make()

    return prepare_stage(folder, fingerprint, force=force, say=say, make=begun)


def _untouched(folder: Path, fingerprint: str) -> StageResult | None:
    """Return the finished stage, or None; also None for one that somebody puts together anew, or failed to."""
    return None if is_begun_again(folder) else finished(folder, fingerprint)


@contextmanager
def exclusive(folder: Path, *, purpose: str, say: Say) -> Iterator[None]:
    """Hold `folder` for the block, after waiting for any process that holds it now."""
    if is_locked(folder):
        say(f"{folder} is in use by {holder_of(folder)}; waiting for it to end")
    with folder_lock(folder, purpose=purpose, wait_seconds=-1):
        yield


def prepare_stage(
    folder: Path, fingerprint: str, *, force: bool, say: Say, make: Callable[[], Manifest]
) -> StageResult:
    """Return the finished stage in `folder`; calls `make` if there is none, or if `force` says so.

    `make` writes the stage's files into `folder` and returns their manifest, which is then written last. If it fails,
    what was finished before is so still.
    """
    if not force and (stage := _untouched(folder, fingerprint)):
        say(f"{folder} is finished already; nothing to do")
        return stage
    with exclusive(folder, purpose=f"making {folder.name}", say=say):
        if not force and (stage := _untouched(folder, fingerprint)):
            say(f"{folder} was finished by another process; nothing left to do")
            return stage
        if finished(folder, fingerprint) is None:
            forget(folder)
        remove_leftovers(folder)
        started = time.monotonic()
        manifest = make()
        manifest.write(folder, seconds=time.monotonic() - started)
        (folder / _AGAIN).unlink(missing_ok=True)
    return StageResult(folder=folder, manifest=manifest, reused=False)

"""What the file system of a folder can do, tried out in a temporary folder that is gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from gpt_pipeline.findings import Finding, note, ok, problem
from gpt_pipeline.storage.atomic import fsync_file, fsync_folder
from gpt_pipeline.storage.room import existing_folder

_MOUNTS = Path("/proc/mounts")  # Linux
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "glusterfs")


def look_at_files(folders: Iterable[Path]) -> Iterator[Finding]:
    """Look at whether files in `folders` can be written safely; one that does not exist yet stands for its parent."""
    for folder in dict.fromkeys(existing_folder(each) for each in folders):
        try:
            with TemporaryDirectory(prefix=".gpt-pipeline-doctor-", dir=folder) as name:
                yield from _tried(folder, Path(name))
        except OSError as error:
            text = f"nothing can be written in {folder}: {error.strerror or error}"
            yield problem("files", text, "make it writable for this user, or choose another storage.base_folder")


def _tried(folder: Path, place: Path) -> Iterator[Finding]:
    tries: dict[str, Callable[[Path], None]] = {"replace a file at once": _replace, "keep two apart by a lock": _lock}
    kind = _kind_of(folder)
    where = f"{folder}{f' ({kind})' if kind else ''}"
    failed = [f"{what}: {reason}" for what, attempt in tries.items() if (reason := _failure(attempt, place))]
    if failed:
        remedy = "choose a storage.base_folder on a local disk; what a crash leaves there could not be trusted"
        yield problem("files", f"{where} cannot {'; '.join(failed)}", remedy)
    elif _failure(_link, place):
        yield note("files", f"{where} knows no hard links: finished data takes twice the room there")
    elif kind in _NETWORK:
        yield note("files", f"{where} is a network disk", "let one machine at a time work on an experiment")
    else:
        yield ok("files", f"{where} can be written, replaced, locked and linked")


def _failure(attempt: Callable[[Path], None], place: Path) -> str:
    """Return why the attempt failed; empty if it did not."""
    try:
        attempt(place)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _replace(place: Path) -> None:
    old, new = place / "old", place / "new"
    old.write_text("old", encoding="ascii")
    new.write_text("new", encoding="ascii")
    fsync_file(new)
    os.replace(new, old)
    fsync_folder(place)
    if old.read_text(encoding="ascii") != "new":
        raise OSError("the old content is still there")


def _lock(place: Path) -> None:
    with FileLock(place / "lock"), suppress(Timeout):
        # Another handle of the same process counts as another holder.
        FileLock(place / "lock", timeout=0).acquire()
        raise OSError("a second holder was let in")


def _link(place: Path) -> None:
    (place / "one").write_text("one", encoding="ascii")
    os.link(place / "one", place / "two")


def _kind_of(folder: Path) -> str:
    """Return the file system of the folder, as Linux names it; empty elsewhere."""
    try:
        mounts = [line.split() for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    points = {Path(point.replace("\\040", " ")): kind for _, point, kind, *_ in mounts}
    resolved = folder.resolve()
    return next((points[each] for each in (resolved, *resolved.parents) if each in points), "")

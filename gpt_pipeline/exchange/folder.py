"""A folder that appears complete or not at all, and replaces nothing but an earlier export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from gpt_pipeline import __version__
from gpt_pipeline.errors import UserError
from gpt_pipeline.storage.atomic import fsync_file, fsync_folder, read_json, sha256_of, write_json
from gpt_pipeline.storage.lock import hold_lock

RECORD_NAME = "export.json"
"""Written last: what was exported, and the hash of each file, by which an export is recognized."""

_OF_THE_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What macOS and Windows put into a folder that somebody looks at."""


@contextmanager
def new_folder(target: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it becomes `target` when the block ends without an error.

    It replaces an unchanged earlier export. `facts` go into `export.json`, with the sha256 of every file.

    Raises:
        UserError: `target` is something else; it is left untouched. Or another process is writing it, or what a killed
            one left cannot be removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        _settle(target)
        require_replaceable(target)
        temporary = _made(_beside(target, "new"), target)
        try:
            yield temporary
            files = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / RECORD_NAME, {"program": f"gpt_pipeline {__version__}", **facts, "files": files})
            for path in temporary.iterdir():
                fsync_file(path)
            fsync_folder(temporary)
            _put_in_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time write `target`."""
    lock, held = _beside(target, "lock"), ExitStack()
    try:
        held.enter_context(hold_lock(lock))
    except Timeout:
        raise UserError(f"--to {target}: another process is writing it; wait for its end") from None
    with held:
        try:
            yield
        finally:
            # Still held: one that opened it before does not get it then, as it would after the release. Windows
            # removes no file that is open; filelock does at the release.
            with suppress(PermissionError):
                lock.unlink(missing_ok=True)


def _made(temporary: Path, target: Path) -> Path:
    try:
        temporary.mkdir()
    except FileExistsError:
        raise UserError(
            f"--to {target}: an earlier export that was killed left {temporary}, which cannot be removed; remove it, "
            "and run again"
        ) from None
    return temporary


def _settle(target: Path) -> None:
    """Clear up after one that was killed: remove its files, and put back the export that it had moved away."""
    old = _beside(target, "old")
    if old.exists() and not os.path.lexists(target):
        os.replace(old, target)
    for left in (old, _beside(target, "new")):
        shutil.rmtree(left, ignore_errors=True)


def require_replaceable(target: Path) -> None:
    """Check that `target` does not exist, is an empty folder, or is an unchanged export.

    Raises:
        UserError: it is something else; says what.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise _in_the_way(target, "a file" if target.is_file() else "a link")
    if difference := _difference_to_export(target):
        raise _in_the_way(target, difference)


def _difference_to_export(folder: Path) -> str:
    """Return how `folder` differs from an unchanged export; empty if it is one, or holds nothing."""
    names = {path.name for path in folder.iterdir()} - _OF_THE_SYSTEM
    if not names:
        return ""
    try:
        files = read_json(folder / RECORD_NAME)["files"]
    except FileNotFoundError:
        return f"a folder with {sorted(names)[0]} and without {RECORD_NAME}, so not an export"
    except (KeyError, TypeError, ValueError):
        return f"a folder with a {RECORD_NAME} that is not readable"
    if strange := sorted(names - {RECORD_NAME, *files}):
        return f"an export with another file in it, {strange[0]}"
    changed = (name for name, digest in files.items() if name in names and sha256_of(folder / name) != digest)
    name = next(changed, None)
    return f"an export whose {name} was changed afterwards" if name else ""


def _put_in_place(temporary: Path, target: Path) -> None:
    old = _beside(target, "old")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise UserError(f"{target} cannot be replaced: {error.strerror}; close what uses it, run again") from error
    fsync_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)


def _beside(target: Path, word: str) -> Path:
    return target.with_name(f".{target.name}.gpt-pipeline-{word}")


def _in_the_way(target: Path, found: str) -> UserError:
    return UserError(
        f"--to {target}: found {found}, need a folder that is new, empty, or an unchanged earlier export; "
        "nothing was touched; name another folder"
    )

"""Making a stage once: found finished, or made by the one process that holds its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pipeline.storage.atomic import remove_leftovers
from gpt_pipeline.storage.lock import folder_lock, is_locked
from gpt_pipeline.storage.manifest import MANIFEST_NAME, Manifest, StageResult, finished

Say = Callable[[str], None]
"""Takes one line of progress for a person."""


@contextmanager
def exclusive(folder: Path, *, purpose: str, say: Say) -> Iterator[None]:
    """Hold `folder` for the block, after waiting for any process that holds it now."""
    if is_locked(folder):
        say(f"{folder} is in use by another process; waiting for it to end")
    with folder_lock(folder, purpose=purpose, wait_seconds=-1):
        yield


def prepare_stage(
    folder: Path, fingerprint: str, *, force: bool, say: Say, make: Callable[[], Manifest]
) -> StageResult:
    """Return the finished stage in `folder`; calls `make` if there is none, or if `force` says so.

    `make` writes the stage's files into `folder` and returns their manifest, which is then written last.
    """
    if not force and (stage := finished(folder, fingerprint)):
        say(f"{folder} is finished already; nothing to do")
        return stage
    with exclusive(folder, purpose=f"making {folder.name}", say=say):
        if not force and (stage := finished(folder, fingerprint)):
            say(f"{folder} was finished by another process; nothing left to do")
            return stage
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        remove_leftovers(folder)
        manifest = make()
        manifest.write(folder)
    return StageResult(folder=folder, manifest=manifest, reused=False)

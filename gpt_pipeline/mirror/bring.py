"""Finished work from the mirror, checked byte by byte; what is damaged there is passed over, and said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.manifest import (
    BEST_NAME,
    CheckpointInfo,
    checkpoint_path,
    manifest_path,
    write_manifest,
)
from gpt_pipeline.errors import NewerFileError
from gpt_pipeline.mirror import names
from gpt_pipeline.mirror.lease import first_term
from gpt_pipeline.mirror.store import MirrorError, Store, fetch, parsed
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.atomic import (
    PARTIAL_SUFFIX,
    atomic_path,
    fsync_file,
    fsync_folder,
    link_or_copy,
    parse_json,
    read_state,
    replace_file,
    sha256_of,
    write_text,
)
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.manifest import FileRecord, Manifest, finished, read_manifest
from gpt_pipeline.storage.room import explained_full_disk

_STEP = re.compile(r"checkpoints/checkpoint_step_(\d+)\.json$")
_TRIES = 2  # what arrives damaged is fetched once more, before the mirror's copy counts as damaged
_MADE_HERE = "The stage is made here"


def bring_stage(store: Store, base: Path, stage: str, fingerprint: str, *, say: Say) -> bool:
    """Bring a finished stage to `<base>/<stage>`; return whether it is there now.

    The manifest is written last. A stage that is damaged in the mirror no longer counts there, so that the one that is
    made here instead is sent.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    folder = base / stage
    if store.get_bytes(f"{stage}/{names.MANIFEST}") is None:
        return False
    with folder_lock(folder, purpose=f"bringing {folder.name} from the mirror", wait_seconds=-1):
        if finished(folder, fingerprint) is not None:
            return True
        incoming = folder / ".mirror"
        manifest = _fetched_manifest(store, stage, incoming)
        if manifest is None:
            (incoming / names.MANIFEST).unlink()
            end = _discard(store, [f"{stage}/{names.MANIFEST}"])
            say(f"The manifest of {stage} is damaged in the mirror {store.url}. {_MADE_HERE}{end}")
            return False
        if manifest.fingerprint != fingerprint or not all(map(names.is_plain, manifest.files)):
            (incoming / names.MANIFEST).unlink()
            say(f"{stage} in the mirror {store.url} is another one; it is not used")
            return False
        size = sum(record.size for record in manifest.files.values())
        say(f"Bringing {stage} from the mirror: {counted(len(manifest.files), 'file')}, {size / 1e6:,.1f} MB.")
        for file, record in manifest.files.items():
            if not _brought(store, f"{stage}/{file}", folder / file, record):
                end = _discard(store, [f"{stage}/{names.MANIFEST}", f"{stage}/{file}"])
                what = f"{stage}/{file} is damaged in the mirror {store.url}: its sha256 is not {record.sha256}"
                say(f"{what}. {_MADE_HERE}{end}")
                return False
        with atomic_path(folder / names.MADE) as temporary:
            if fetch(store, f"{stage}/{names.MADE}", temporary) is None:
                temporary.write_text("{}\n", encoding="utf-8")
        replace_file(incoming / names.MANIFEST, folder / names.MANIFEST)
        incoming.rmdir()
    return True


def _fetched_manifest(store: Store, stage: str, incoming: Path) -> Manifest | None:
    """Return the manifest of a stage, fetched into `incoming`; None if what arrives is damaged."""
    for _ in range(_TRIES):
        with atomic_path(incoming / names.MANIFEST) as temporary:
            fetch(store, f"{stage}/{names.MANIFEST}", temporary)
        if (manifest := read_manifest(incoming)) is not None:
            return manifest
    return None


def _discard(store: Store, damaged: list[str]) -> str:
    """Remove damaged objects, so that sound ones are sent in their place; return how the message of it ends."""
    try:
        store.remove(damaged)
    except MirrorError as error:  # of somebody who may only read there, say
        return f"; the damaged copy stays: {error}"
    return ", and sent again."


def bring_source(store: Store, base: Path, source: str, *, say: Say) -> bool:
    """Bring what is known of a source of raw files, unless something is known here; return whether it was brought.

    What is damaged there no longer counts, so that it is found out here, and sent again.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    folder, record = base / source, f"{source}/{names.SOURCE}"
    if (folder / names.SOURCE).exists():
        return False
    found = store.sizes(source)
    if record not in found or not all(map(names.is_plain, found)):
        return False
    content = _sound(store, record, say)
    if content is None:
        return False
    for name in found:
        if name != record and (fact := _sound(store, name, say)) is not None:
            write_text(base / name, fact)
    write_text(base / record, content)  # last: without it the rest does not count
    say(f"Brought what is known of the source {folder.name} from the mirror.")
    return True


def _sound(store: Store, name: str, say: Say) -> str | None:
    """Return the text of a small object; None if it is not there, or damaged, and then it is removed there."""
    for _ in range(_TRIES):
        content = store.get_bytes(name)
        if content is None or parsed(content) is not None:
            return None if content is None else content.decode("utf-8")
    say(f"{name} is damaged in the mirror {store.url}: what it held is found out here{_discard(store, [name])}")
    return None


def _brought(store: Store, name: str, target: Path, record: FileRecord) -> bool:
    """Bring one file, from where an earlier attempt was cut off; return False if what arrives is something else."""
    if target.is_file() and target.stat().st_size == record.size and sha256_of(target) == record.sha256:
        return True  # an earlier attempt was cut off behind it
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{record.sha256[:SHORT]}{PARTIAL_SUFFIX}")
    for _ in range(_TRIES + partial.exists()):
        with explained_full_disk(target):
            arrived = fetch(store, name, partial, goes_on=True)
        if arrived == record:
            fsync_file(partial)  # and killed here, all of it is found by the next attempt
            replace_file(partial, target)
            fsync_folder(target.parent)
            return True
        partial.unlink()
    return False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint in the mirror."""

    step: int
    term: int
    manifest: str
    """Name of its manifest's object."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What the mirror has of a training."""

    training: str
    """Its place: `names.training_prefix`."""

    first_term: int
    """The first term that belongs to the training as it is now."""

    objects: dict[str, int]
    """Bytes of each object of the terms that count, by name."""

    checkpoints: tuple[Kept, ...]
    """Newest first."""

    @property
    def newest_step(self) -> int:
        """-1: there is no checkpoint."""
        return self.checkpoints[0].step if self.checkpoints else -1


def look(store: Store, training: str) -> Copy:
    """Return what the mirror has of a training; no checkpoint's content is read."""
    since = first_term(store, training)
    objects, found = {}, []
    for name, size in store.sizes(training).items():
        place = names.split_term(name, training)
        if place is None or place[0] < since or not names.is_plain(name):
            continue
        objects[name] = size
        if step := _STEP.search(name):
            found.append(Kept(step=int(step[1]), term=place[0], manifest=name))
    newest = sorted(found, key=lambda each: (each.step, each.term), reverse=True)
    return Copy(training=training, first_term=since, objects=objects, checkpoints=tuple(newest))


def bring_training(
    store: Store, copy: Copy, folder: ExperimentFolder, fingerprint: str, *, newer_than: int, say: Say
) -> CheckpointInfo | None:
    """Bring the newest valid checkpoint, with the best model, metrics and evaluations up to it.

    `folder` holds no training that these would be mixed with. Returns the checkpoint; None if none that is valid has
    a step above `newer_than`.

    Raises:
        MirrorError: the mirror cannot be reached, or refuses.
    """
    for kept in copy.checkpoints:
        if kept.step <= newer_than:
            break
        info = _bring_checkpoint(store, kept.manifest, checkpoint_path(folder.checkpoints, kept.step), fingerprint)
        if info is None:
            say(f"{kept.manifest} is damaged in the mirror {store.url}; the one before is tried.")
            continue
        _bring_best(store, copy, kept, folder, say=say)
        _bring_small(store, copy, kept, folder)
        say(f"Brought {info.path.name} from the mirror {store.url}: {info.size / 1e6:,.1f} MB.")
        return info
    return None


def _bring_checkpoint(store: Store, manifest: str, target: Path, fingerprint: str | None) -> CheckpointInfo | None:
    """Bring a checkpoint to `target`, then its manifest; None if it is damaged, or not of the training `fingerprint`,
    where that is given."""
    found = _read_info(store, manifest, target)
    if found is None or fingerprint not in (None, found[0].fingerprint):
        return None
    info, data = found
    record = FileRecord(size=info.size, sha256=info.sha256)
    same = next((path for path in _of_size(target, info.size) if sha256_of(path) == info.sha256), None)
    if same is not None:
        link_or_copy(same, target)
    elif not _brought(store, f"{manifest.rpartition('/')[0]}/{data}", target, record):
        return None
    write_manifest(info)
    return info


def _of_size(target: Path, size: int) -> list[Path]:
    """Return checkpoints beside a best model to be, of its size: one of them may be the same."""
    if target.name != BEST_NAME:
        return []
    return [path for path in target.parent.glob("*.pt") if path.stat().st_size == size]


def _read_info(store: Store, manifest: str, target: Path) -> tuple[CheckpointInfo, str] | None:
    """Return the info of a checkpoint to be at `target`, and the name of its data's object.

    Raises:
        NewerFileError: only a newer version can read it.
    """
    incoming = target.with_name(f".{target.name}.mirror.json")
    with atomic_path(incoming) as temporary:
        if fetch(store, manifest, temporary) is None:
            temporary.write_text("null", encoding="utf-8")
    try:
        return read_state(incoming, lambda value: _parse_info(value, target))
    except NewerFileError:
        raise
    except ValueError:
        return None
    finally:
        incoming.unlink(missing_ok=True)


def _parse_info(value: Any, target: Path) -> tuple[CheckpointInfo, str]:
    return CheckpointInfo.from_json({**value, "path": target}), Path(value["path"]).name


def _bring_best(store: Store, copy: Copy, kept: Kept, folder: ExperimentFolder, *, say: Say) -> None:
    """Bring the best model of the newest term up to the checkpoint's; without a valid one, the best is counted anew.

    It may be of another training, from a checkpoint of which this one went on.
    """
    name = f"{names.CHECKPOINTS}/{manifest_path(Path(BEST_NAME)).name}"
    for term in range(kept.term, 0, -1):
        manifest = f"{names.term_prefix(copy.training, term)}/{name}"
        if manifest not in copy.objects:
            continue
        if _bring_checkpoint(store, manifest, folder.checkpoints / BEST_NAME, None) is not None:
            return
        say(f"{manifest} is damaged in the mirror {store.url}; it is not used.")


def _bring_small(store: Store, copy: Copy, kept: Kept, folder: ExperimentFolder) -> None:
    """Bring the rest: metrics and the like of the checkpoint's term, evaluations of all; nothing here is replaced."""
    for name, path in _small_files(copy, kept, folder):
        if path.exists():
            continue
        if path == folder.training and not _is_finished_at(store, name, kept.step):
            continue
        with atomic_path(path) as temporary:
            if fetch(store, name, temporary) is None:
                temporary.touch()


def _small_files(copy: Copy, kept: Kept, folder: ExperimentFolder) -> Iterator[tuple[str, Path]]:
    """Yield objects and where they belong, those of newer terms first, that the training is finished last."""
    single = {path.name: path for path in (folder.metrics, folder.samples, folder.report, folder.training)}
    single |= {names.STARTED: folder.root / names.STARTED}
    for name in sorted(copy.objects, reverse=True):
        place = names.split_term(name, copy.training)
        if place is None:
            continue
        term, path = place
        if path.startswith("evaluations/") and path.count("/") == 1:
            yield name, folder.root / path
        elif term == kept.term and path in single and path != folder.training.name:
            yield name, single[path]
    finished_name = f"{names.term_prefix(copy.training, kept.term)}/{folder.training.name}"
    if finished_name in copy.objects:
        yield finished_name, folder.training


def _is_finished_at(store: Store, name: str, step: int) -> bool:
    try:
        return bool(parse_json(store.get_bytes(name) or b"null")["step"] == step)
    except (ValueError, TypeError, KeyError):
        return False

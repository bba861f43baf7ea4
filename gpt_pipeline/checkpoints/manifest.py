"""What is known about a checkpoint without reading it. Imports no torch, so that listing checkpoints is fast.

A checkpoint is a `.pt` file with a `.json` manifest of the same stem, written last: without it the file is a leftover.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pipeline.data.config import ADDED_TURNS, CHATML_SUFFIX
from gpt_pipeline.errors import NewerFileError
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import (
    fsync_folder,
    known_fields,
    only_known_fields,
    read_state,
    sha256_of,
    write_json,
)
from gpt_pipeline.storage.fingerprint import identity_of

_logger = logging.getLogger(__name__)

TOKENIZER = "data.tokenizer"
"""In a checkpoint's settings: stands for the tokenizer of the shards; left out: GPT-2's."""

BEST_NAME = "best_model.pt"
_PENDING_BEST = "best_model.next.json"


def new_tokens(settings: Mapping[str, Any], shards_facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids of ChatML's tokens, if the shards of these facts have them and weights with these settings not."""
    has_them = str(settings.get(TOKENIZER) or "").endswith(CHATML_SUFFIX)
    return () if has_them else tuple(shards_facts.get(ADDED_TURNS, ()))


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """One finished checkpoint."""

    path: Path
    step: int
    """Optimizer updates done."""

    sha256: str
    """Of the file, hex; computed while it was written."""

    weights_sha256: str
    """Of the model's tensors alone (see `snapshot.weights_sha256`): the identity of what is evaluated."""

    size: int
    """Bytes of the file."""

    fingerprint: str
    """Of the training."""

    shards_fingerprint: str
    """Of the token shards it was trained on."""

    tokens_seen: int
    metrics: Mapping[str, float | None]
    """`train_loss` of the last update and the newest `val_loss`, nats per token."""

    model: ModelConfig
    created_at: str
    """UTC, ISO 8601."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Of gpt_pipeline, torch and python."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The configuration of the training, by key of the experiment file; empty in manifests that predate this field."""

    def to_json(self) -> dict[str, Any]:
        """Return the info as JSON values, `path` in full; the model without keys that an earlier version does not know,
        where they are neutral.
        """
        return {**dataclasses.asdict(self), "path": str(self.path), "model": identity_of(self.model)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckpointInfo:
        """Return what `to_json` gave; raises KeyError, TypeError or ValueError for anything else.

        An unknown key of the model is another architecture, so it is not left out.
        """
        model = ModelConfig(**only_known_fields(ModelConfig, value["model"], section="model"))
        return cls(**{**known_fields(cls, value), "path": Path(value["path"]), "model": model})


def checkpoint_key(step: int) -> str:
    """Return the name of a checkpoint in partitions and evaluations; the zeros keep names in the order of steps."""
    return f"step_{step:08d}"


def checkpoint_step(key: str) -> int:
    """Return the step that `checkpoint_key` made `key` of; raises ValueError for another text."""
    prefix, _, digits = key.partition("_")
    if prefix != "step":
        raise ValueError(f"found {key!r}, need a key such as {checkpoint_key(1000)}")
    return int(digits)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step` in the `checkpoints` folder."""
    return folder / f"checkpoint_step_{step}.pt"


def manifest_path(path: Path) -> Path:
    """Return the path of the manifest of the checkpoint `path`."""
    return path.with_suffix(".json")


def write_manifest(info: CheckpointInfo, *, at: Path | None = None) -> None:
    """Write the manifest of `info`, atomically; the path in it is the file's name, so that a moved folder works."""
    write_json(at or manifest_path(info.path), {**info.to_json(), "path": info.path.name})


def read_info(path: Path) -> CheckpointInfo | None:
    """Return the manifest of the checkpoint `path`, or None when it has none or its file is missing or cut short.

    The file is not read; `load.verify_checkpoint` checks that it is the one in the manifest.

    Raises:
        NewerFileError: a newer version wrote it, with what this one cannot leave out.
    """
    return next(iter(possible_infos(path)), None)


def possible_infos(path: Path) -> list[CheckpointInfo]:
    """Return the manifests that may describe `path`: one, or two for a `best_model.pt` that is being replaced."""
    manifests = [manifest_path(path), *([path.with_name(_PENDING_BEST)] if path.name == BEST_NAME else [])]
    infos = [_read(manifest, path) for manifest in manifests]
    size = path.stat().st_size if path.is_file() else -1
    return [info for info in infos if info is not None and info.size == size]


def list_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """Return the checkpoints `checkpoint_step_<N>.pt` in `folder`, oldest step first; without `newer_manifests`.

    A copy under another name is none of them: it is found by its step nowhere, and nothing removes it.
    """
    found = [_readable_info(manifest.with_suffix(".pt")) for manifest in folder.glob("checkpoint_step_*.json")]
    return sorted((info for info in found if info is not None and _is_named_by_step(info)), key=lambda info: info.step)


def uncounted_checkpoints(folder: Path, *, is_saving: bool = False) -> dict[str, str]:
    """Return the names of the `.pt` files in `folder` that do not count, and why.

    While something `is_saving` there, one without a manifest is left out: it may be about to get it.
    """
    found = {}
    for path in sorted(folder.glob("*.pt")):
        if path.name == BEST_NAME or path.name.startswith("."):
            continue
        manifest, info = manifest_path(path), _readable_info(path)
        if info is not None and not _is_named_by_step(info):
            own = checkpoint_path(folder, info.step)
            found[path.name] = (
                f"it is of step {info.step}; name it {own.name}, and its manifest {manifest_path(own).name}"
            )
        elif info is None and not is_saving and not manifest.is_file():
            found[path.name] = f"its manifest {manifest.name} is missing; a file that you copied here needs it too"
    return found


def best_checkpoint(folder: Path) -> CheckpointInfo | None:
    """Return `best_model.pt`, the one with the lowest so far of the loss that decides, or None."""
    return _readable_info(folder / BEST_NAME)


def all_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """Return `list_checkpoints`, and behind them `best_checkpoint`; of two at one step, the one that stays is first."""
    best = best_checkpoint(folder)
    return [*list_checkpoints(folder), *([best] if best else [])]


def find_checkpoint(folder: Path, step: int) -> CheckpointInfo | None:
    """Return the checkpoint of `step`, under its own name or as `best_model.pt`."""
    info = _readable_info(checkpoint_path(folder, step))
    if info is not None and info.step == step:
        return info
    best = best_checkpoint(folder)
    return best if best is not None and best.step == step else None


def newer_manifests(folder: Path) -> dict[Path, NewerFileError]:
    """Return the manifests in `folder` that only a newer version can read, and why.

    Whoever lists checkpoints passes over them, so nothing of them is evaluated, removed or replaced.
    """
    found = {}
    for manifest in sorted(folder.glob("*.json")):
        try:
            _read(manifest, manifest.with_suffix(".pt"))
        except NewerFileError as error:
            found[manifest] = error
    return found


def announce_best(info: CheckpointInfo) -> None:
    """Write the manifest of the next `best_model.pt` beside that of the current one."""
    write_manifest(info, at=info.path.with_name(_PENDING_BEST))


def settle_best(folder: Path) -> None:
    """Complete or discard an interrupted replacement of `best_model.pt`; needs the lock of the experiment.

    The new manifest stands before the file is renamed and takes the old one's place afterwards, so at each moment one
    of the two describes the file.
    """
    pending = folder / _PENDING_BEST
    if not pending.is_file():
        return
    path = folder / BEST_NAME
    announced = _read(pending, path)
    # Sizes are often equal, so only the content tells which manifest describes the file.
    if announced is not None and path.is_file() and sha256_of(path) == announced.sha256:
        pending.replace(manifest_path(path))
    else:
        pending.unlink()
    fsync_folder(folder)


def set_aside(path: Path, *, why: str) -> Path:
    """Rename a checkpoint and its manifest to `<name>.<why>` (numbered if taken); return the file's new path."""
    number = 1
    while True:
        suffix = f".{why}" if number == 1 else f".{why}-{number}"
        aside = path.with_name(path.name + suffix)
        if not aside.exists():
            break
        number += 1
    manifest = manifest_path(path)
    if manifest.exists():  # first, so that the rest does not count as a checkpoint
        manifest.replace(manifest.with_name(manifest.name + suffix))
    path.replace(aside)
    fsync_folder(path.parent)
    return aside


def _is_named_by_step(info: CheckpointInfo) -> bool:
    return info.path.name == checkpoint_path(info.path.parent, info.step).name


def _readable_info(path: Path) -> CheckpointInfo | None:
    try:
        return read_info(path)
    except NewerFileError:
        return None


def _read(manifest: Path, path: Path) -> CheckpointInfo | None:
    try:
        return read_state(manifest, lambda value: CheckpointInfo.from_json({**value, "path": path}))
    except FileNotFoundError:
        return None
    except ValueError as error:
        _logger.warning("%s is not a readable manifest (%s); its checkpoint does not count", manifest, error)
        return None

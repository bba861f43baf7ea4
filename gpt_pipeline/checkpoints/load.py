"""Read checkpoints: verify the hash first, then load tensors and plain values only, never code."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gpt_pipeline.checkpoints.manifest import (
    TOKENIZER,
    CheckpointInfo,
    manifest_path,
    new_tokens,
    possible_infos,
    read_info,
)
from gpt_pipeline.checkpoints.snapshot import Snapshot, weights_sha256
from gpt_pipeline.data.tokens.tokenizer import Tokenizer, as_identified, gpt2, read_tokenizer
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.architectures import make_empty_model
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.model.vocabulary import with_new_tokens
from gpt_pipeline.storage.atomic import sha256_of

Weights = Literal["raw", "average"]
"""Those that the training changes, or their mean."""

UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What torch raises for a file that is not one of its own: its unpickler takes the bytes of a text for commands."""


def verify_checkpoint(path: Path) -> CheckpointInfo:
    """Return the manifest of the checkpoint `path` after checking that the file is the one it describes.

    Raises:
        UserError: there is no such checkpoint.
        DamagedFileError: the content is not what was written.
    """
    infos = possible_infos(path)
    if not infos:
        raise _not_a_checkpoint(path)
    found = sha256_of(path)
    # Read again: a `best_model.pt` may have been replaced while it was hashed.
    for info in [*infos, *possible_infos(path)]:
        if info.sha256 == found:
            return info
    raise DamagedFileError(f"{path} is damaged: found sha256 {found}, need {infos[0].sha256} as it was written")


def require_undamaged(path: Path) -> CheckpointInfo:
    """Return what `verify_checkpoint` does; the error says what to do, where nothing takes another file by itself."""
    try:
        return verify_checkpoint(path)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; put an undamaged copy in its place, or take another checkpoint") from None


def load_checkpoint(path: Path, *, verify: bool = True) -> Snapshot:
    """Return the state in the checkpoint `path`, on the CPU.

    Raises:
        UserError: there is no such checkpoint.
        DamagedFileError: the content is not what was written, or holds more than tensors and plain values.
    """
    if verify:
        require_undamaged(path)
    elif read_info(path) is None:
        raise _not_a_checkpoint(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0]
        raise DamagedFileError(
            f"{path} is refused: a checkpoint holds tensors and plain values only, and reading it as such failed "
            f"({reason})"
        ) from error
    return Snapshot.from_payload(payload, source=path)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a checkpoint holds for whoever uses its model."""

    model: LanguageModel
    """In eval mode."""

    info: CheckpointInfo
    tokenizer_file: str | None
    """The text of its `tokenizer.json`; None: GPT-2's."""

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_in(self.tokenizer_file, self.info)


def tokenizer_in(file: str | None, info: CheckpointInfo) -> Tokenizer:
    """Return the tokenizer that a checkpoint holds, with `file` as `Snapshot.tokenizer`."""
    found = gpt2() if file is None else read_tokenizer(file, source=info.path)
    return as_identified(found, info.settings.get(TOKENIZER))


def load_model(
    path: Path, *, device: str | torch.device = "cpu", shards_facts: Mapping[str, Any] | None = None
) -> tuple[LanguageModel, CheckpointInfo]:
    """Return the model of the checkpoint `path` and the checkpoint's info; see `load_trained`.

    With `shards_facts` it has rows for their tokens, as a training on those shards that starts from it begins with.
    """
    snapshot, info = load_weights(path, "raw")
    if ids := new_tokens(info.settings, shards_facts or {}):
        size = max(snapshot.model_config.vocab_size, *(id_ + 1 for id_ in ids))
        config = dataclasses.replace(snapshot.model_config, vocab_size=size)
        snapshot = dataclasses.replace(snapshot, model=with_new_tokens(snapshot.model, ids), model_config=config)
    return _model_of(snapshot, device), info


def load_weights(path: Path, weights: Weights) -> tuple[Snapshot, CheckpointInfo]:
    """Return the state in the checkpoint `path` with those of its `weights` as its model, and its info.

    With `average` the info has their hash, and no losses: those of a checkpoint are of the weights themselves.

    Raises:
        UserError: as `load_checkpoint`, or the checkpoint has no average.
    """
    info = require_undamaged(path)
    snapshot = load_checkpoint(path, verify=False)
    if weights == "raw":
        return snapshot, info
    if snapshot.average is None:
        asked = any(info.settings.get(f"training.average_weights.{key}") for key in ("decay", "last"))
        remedy = (
            "choose a later checkpoint: the mean begins with the last updates"
            if asked
            else "leave --weights out, or train with training.average_weights, such as {decay: 0.999}"
        )
        raise UserError(f"--weights average: found {path.name}, which holds no mean of the weights; {remedy}")
    info = dataclasses.replace(info, weights_sha256=weights_sha256(snapshot.average), metrics={})
    return dataclasses.replace(snapshot, model=snapshot.average), info


def weights_info(path: Path, weights: Weights) -> CheckpointInfo:
    """Return the info that `load_weights` returns; of the weights themselves the manifest has it, and they stay unread.

    Raises:
        UserError: as `load_weights`.
    """
    return require_undamaged(path) if weights == "raw" else load_weights(path, weights)[1]


def load_trained(path: Path, *, device: str | torch.device = "cpu", weights: Weights = "raw") -> Trained:
    """Return the model of the checkpoint `path` on `device`, with what belongs to it.

    Raises:
        UserError: as `load_weights`.
    """
    snapshot, info = load_weights(path, weights)
    return Trained(model=_model_of(snapshot, device), info=info, tokenizer_file=snapshot.tokenizer)


def load_with_average(
    path: Path, *, device: str | torch.device = "cpu"
) -> tuple[LanguageModel, LanguageModel | None, CheckpointInfo]:
    """Return the model of the checkpoint, the same with the mean of the weights if it has one, and its info.

    Raises:
        UserError: as `load_checkpoint`.
    """
    snapshot, info = load_weights(path, "raw")
    average = None
    if snapshot.average is not None:
        average = _model_of(dataclasses.replace(snapshot, model=snapshot.average), device)
    return _model_of(snapshot, device), average, info


def _model_of(snapshot: Snapshot, device: str | torch.device) -> LanguageModel:
    model = make_empty_model(snapshot.model_config)
    model.load_state_dict(dict(snapshot.model), assign=True)
    model.requires_grad_(False).to(device).eval()
    return model


def _not_a_checkpoint(path: Path) -> UserError:
    if not path.is_file():
        return UserError(f"{path}: no such checkpoint")
    if manifest_path(path).is_file():
        return DamagedFileError(
            f"{path} is damaged: its {path.stat().st_size} bytes are not the number in its manifest"
        )
    return UserError(f"{path} is not a finished checkpoint: its manifest {manifest_path(path).name} is missing")

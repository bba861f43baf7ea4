"""Write a checkpoint as a folder for `transformers`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gpt_pipeline.checkpoints.leases import hold
from gpt_pipeline.checkpoints.load import Weights, load_weights, tokenizer_in
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.checkpoints.snapshot import Snapshot, tensor_bytes
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.card import model_card
from gpt_pipeline.exchange.chat_template import chat_template
from gpt_pipeline.exchange.folder import new_folder, require_replaceable
from gpt_pipeline.exchange.hugging_face import hugging_face_weights
from gpt_pipeline.exchange.tokenizer_files import write_tokenizer
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.config_json import hugging_face_config
from gpt_pipeline.storage.atomic import write_json, write_text
from gpt_pipeline.storage.room import free_bytes

WEIGHTS_NAME = "model.safetensors"
_TOKENIZER_BYTES = 8 << 20  # roughly, of all files but the weights


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export."""

    folder: Path
    checkpoint: CheckpointInfo
    parameters: int


def export_checkpoint(experiment: Experiment, checkpoint: Path, target: Path, *, weights: Weights = "raw") -> Exported:
    """Write the model of one of the experiment's checkpoints to the folder `target`, for `transformers`.

    The same checkpoint with the same evaluation gives the same bytes.

    Raises:
        UserError: `target` holds something other than an earlier export, the disk is full, or there is no checkpoint or
            no such weights in it.
        DamagedFileError: the checkpoint is damaged.
    """
    target = target.absolute()
    require_replaceable(target)
    with hold(checkpoint):
        snapshot, info = load_weights(checkpoint, weights)
    _require_room(target, snapshot)
    tokenizer = tokenizer_in(snapshot.tokenizer, info)
    with new_folder(target, _facts(experiment, info, weights)) as folder:
        _write_model(folder, snapshot, tokenizer)
        max_length = trained_length(experiment, info)
        write_json(folder / "generation_config.json", _generation(tokenizer, max_length))
        template = chat_template(experiment.config.data, tokenizer)
        write_tokenizer(folder, tokenizer, max_length=max_length, chat_template=template)
        card = model_card(experiment, info, tokenizer, max_length=max_length, weights=weights)
        write_text(folder / "README.md", card)
    return Exported(folder=target, checkpoint=info, parameters=_parameters(snapshot))


def trained_length(experiment: Experiment, info: CheckpointInfo) -> int:
    """Return the length of a training sequence in tokens: positions beyond it were never trained."""
    length = int(info.settings.get("data.max_length", experiment.config.data.max_length))
    return min(length, info.model.context_length)


def _write_model(folder: Path, snapshot: Snapshot, tokenizer: Tokenizer) -> None:
    config = hugging_face_config(snapshot.model_config, eot_token=tokenizer.eot_token)
    write_json(folder / "config.json", config)
    weights = hugging_face_weights(snapshot.model, snapshot.model_config)
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})  # without it transformers refuses the file
    shutil.copymode(
        folder / "config.json", folder / WEIGHTS_NAME
    )  # safetensors makes its file readable by its owner alone


def _generation(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """Return the defaults of `generate`: prompt and answer together end where the positions that were trained do."""
    tokens: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_token)
    if len(tokenizer.ends) > 1:
        tokens["eos_token_id"] = list(tokenizer.ends)
    return {**tokens, "do_sample": False, "max_length": max_length}


def _facts(experiment: Experiment, info: CheckpointInfo, weights: Weights) -> dict[str, Any]:
    return {
        "experiment": experiment.display_name,
        "step": info.step,
        "weights_sha256": info.weights_sha256,
        "training_fingerprint": info.fingerprint,
        "shards_fingerprint": info.shards_fingerprint,
        **({} if weights == "raw" else {"weights": weights}),
    }


def _parameters(snapshot: Snapshot) -> int:
    return sum(tensor.numel() for tensor in snapshot.model.values())


def _require_room(target: Path, snapshot: Snapshot) -> None:
    needed, free = tensor_bytes(snapshot.model) + _TOKENIZER_BYTES, free_bytes(target.parent)
    if free < needed:
        raise UserError(f"--to {target}: found {free / 1e9:.3g} GB free, need {needed / 1e9:.3g} GB; free some space")

"""Write a checkpoint as a folder: for `transformers`, or for llama.cpp."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from gpt_pipeline.exchange.gguf import MODEL_NAME, Dtype, require_gguf, write_gguf
from gpt_pipeline.exchange.gguf_tokenizer import gguf_tokenizer
from gpt_pipeline.exchange.hugging_face import hugging_face_weights
from gpt_pipeline.exchange.ollama import MODELFILE_NAME, modelfile
from gpt_pipeline.exchange.tokenizer_files import write_tokenizer
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.model.config_json import hugging_face_config
from gpt_pipeline.shown import size
from gpt_pipeline.storage.atomic import write_json, write_text
from gpt_pipeline.storage.room import free_bytes

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
_TOKENIZER_BYTES = 8 << 20  # roughly, of all files but the weights


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export."""

    folder: Path
    checkpoint: CheckpointInfo
    parameters: int


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is exported."""

    experiment: Experiment
    info: CheckpointInfo
    snapshot: Snapshot
    tokenizer: Tokenizer
    weights: Weights

    @property
    def max_length(self) -> int:
        return trained_length(self.experiment, self.info)

    def chat_template(self, *, always_reasons: bool = False) -> str | None:
        return chat_template(self.experiment.config.data, self.tokenizer, always_reasons=always_reasons)

    def card(self, dtype: Dtype | None = None) -> str:
        return model_card(
            self.experiment, self.info, self.tokenizer, max_length=self.max_length, weights=self.weights, gguf=dtype
        )


def export_checkpoint(experiment: Experiment, checkpoint: Path, target: Path, *, weights: Weights = "raw") -> Exported:
    """Write the model of one of the experiment's checkpoints to the folder `target`, for `transformers`.

    The same checkpoint with the same evaluation gives the same bytes.

    Raises:
        UserError: `target` holds something other than an earlier export, the disk is full, or there is no checkpoint or
            no such weights in it.
        DamagedFileError: the checkpoint is damaged.
    """
    return _export(experiment, checkpoint, target, weights, write=_write_hugging_face, facts={})


def export_gguf(
    experiment: Experiment, checkpoint: Path, target: Path, *, weights: Weights = "raw", dtype: Dtype = "f16"
) -> Exported:
    """Write the same model to the folder `target` as a GGUF file, with a Modelfile for Ollama and a card.

    Raises:
        UserError: as `export_checkpoint`; or llama.cpp has no such architecture or tokenizer, `gguf` is not installed,
            or `dtype` cannot hold a weight.
        DamagedFileError: the checkpoint is damaged.
    """
    facts = {"format": "gguf", "dtype": dtype}
    return _export(experiment, checkpoint, target, weights, write=partial(_write_gguf, dtype=dtype), facts=facts)


def _export(
    experiment: Experiment,
    checkpoint: Path,
    target: Path,
    weights: Weights,
    *,
    write: Callable[[Path, _Model], None],
    facts: Mapping[str, Any],
) -> Exported:
    target = target.absolute()
    require_replaceable(target)
    with hold(checkpoint):
        snapshot, info = load_weights(checkpoint, weights)
    _require_room(target, snapshot)
    tokenizer = tokenizer_in(snapshot.tokenizer, info)
    model = _Model(experiment=experiment, info=info, snapshot=snapshot, tokenizer=tokenizer, weights=weights)
    with new_folder(target, {**_facts(experiment, info, weights), **facts}) as folder:
        write(folder, model)
    return Exported(folder=target, checkpoint=info, parameters=_parameters(snapshot))


def _write_hugging_face(folder: Path, model: _Model) -> None:
    _write_model(folder, model.snapshot, model.tokenizer)
    write_json(folder / "generation_config.json", _generation(model.tokenizer, model.max_length))
    write_tokenizer(folder, model.tokenizer, max_length=model.max_length, chat_template=model.chat_template())
    write_text(folder / CARD_NAME, model.card())


def _write_gguf(folder: Path, model: _Model, *, dtype: Dtype) -> None:
    require_gguf(model.info.model)
    # llama.cpp sets `enable_thinking` to false where it does not recognize how reasoning is marked: in plain documents.
    template = model.chat_template(always_reasons=not model.tokenizer.marks)
    tokenizer = gguf_tokenizer(model.tokenizer, max_length=model.max_length, chat_template=template)
    shape = model.info.model
    name = model.experiment.display_name
    write_gguf(folder / MODEL_NAME, model.snapshot.model, shape, tokenizer, name=name, dtype=dtype)
    write_text(folder / MODELFILE_NAME, modelfile(MODEL_NAME, chat_template=template, max_length=model.max_length))
    write_text(folder / CARD_NAME, model.card(dtype))


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
        raise UserError(f"--to {target}: found {size(free)} free, need {size(needed)}; free some space")

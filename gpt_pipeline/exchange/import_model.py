"""Weights of other programs as a checkpoint that an experiment's training starts from.

They come from a folder that `transformers` reads, from such a model on the hub, or from the original scripts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_path, read_info
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot, weights_sha256
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME
from gpt_pipeline.data.tokens.tokenizer import TOKENIZER_ID, Tokenizer, gpt2
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.exchange.export import WEIGHTS_NAME
from gpt_pipeline.exchange.gpt2 import has_qkv_bias
from gpt_pipeline.exchange.hugging_face import our_weights
from gpt_pipeline.exchange.tokenizer_files import tokenizer_of
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.start_from import note_source, source_of, start_checkpoint, weights_path
from gpt_pipeline.experiment.template import written
from gpt_pipeline.model.architectures import make_empty_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.config_json import json_object, model_in_folder
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import remove_leftovers
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.job import TOKENIZER
from gpt_pipeline.training.optimizer import Optimizer
from gpt_pipeline.training.original import read_original
from gpt_pipeline.training.seeds import random_states, seed_all

_LOCK_SECONDS = 600.0  # another process may be converting the same weights
_DOWNLOADED = ["*.json", "*.safetensors", "merges.txt"]
_INDEX_NAME = "model.safetensors.index.json"  # of weights in several files


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A checkpoint that was made of a folder."""

    checkpoint: CheckpointInfo
    new: bool
    """False when the experiment had it already."""


def import_folder(source: Path, experiment: Experiment) -> ImportedModel:
    """Write the model in the folder `source` as the experiment's `checkpoint_step_0.pt`.

    The optimizer starts afresh. Another checkpoint of that name is set aside, not overwritten.

    Raises:
        UserError: the folder holds no model that fits the experiment; names each difference, with the keys to set.
        LockedError: the experiment is being trained.
        DiskFullError: there is no room.
    """
    model = _fitting_config(source, experiment)
    weights = our_weights(_read_weights(source), model, source=source)
    snapshot = _snapshot(weights, model, experiment, tokenizer_of(source, model))
    folder = experiment.folder
    with folder_lock(folder.root, purpose="import"):
        kept = read_info(checkpoint_path(folder.checkpoints, 0))
        if kept is not None and _is_same_start(kept, weights, experiment.config.training):
            return ImportedModel(checkpoint=kept, new=False)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        return ImportedModel(checkpoint=save_checkpoint(folder.checkpoints, snapshot), new=True)


def convert_start(experiment: Experiment, *, say: Say) -> None:
    """Convert what `start_from` names to a checkpoint in the experiment's `start` folder, unless that is done already.

    Raises:
        UserError: it is not a model in one of the forms that are known, or the hub cannot be reached or refuses.
        DiskFullError: there is no room.
    """
    start_from, folder = experiment.config.start_from, experiment.folder
    if start_from is None or start_from.experiment is not None:
        return
    if start_checkpoint(start_from, experiment.file, folder) is not None:
        return
    folder.start.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder.start, purpose="converting the weights to start from", wait_seconds=_LOCK_SECONDS, say=say):
        if start_checkpoint(start_from, experiment.file, folder) is not None:
            return  # another process converted it meanwhile
        path, revision = weights_path(start_from, experiment.file), None
        source = source_of(start_from, experiment.file)  # before reading: what changes meanwhile is converted again
        if path is None:
            path, revision = _downloaded(start_from.text, say)
        say(f"Converting the weights of {start_from.text}, which the training starts from.")
        read = _read_original if path.is_file() else _read_folder
        weights, model = read(path, experiment.config.model)
        remove_leftovers(folder.start)
        for stale in folder.start.glob("checkpoint_step_0.*"):
            stale.unlink()
        tokenizer = gpt2() if path.is_file() else tokenizer_of(path, model)
        save_checkpoint(folder.start, _snapshot(weights, model, experiment, tokenizer))
        note_source(folder, {**source, "revision": revision})


def _read_folder(source: Path, _: ModelConfig) -> tuple[Mapping[str, Tensor], ModelConfig]:
    weights, model = _read_weights(source), model_in_folder(source)
    model = dataclasses.replace(model, qkv_bias=has_qkv_bias(weights))
    return our_weights(weights, model, source=source), model


def _read_original(path: Path, model: ModelConfig) -> tuple[Mapping[str, Tensor], ModelConfig]:
    """Return what a checkpoint of the original scripts holds; the number of heads, which it lacks, is the file's."""
    original = read_original(path)
    if original is None:
        raise UserError(
            f"start_from.file: {path} has no manifest and is not a checkpoint of the original scripts; name a "
            f"checkpoint beside its manifest {path.with_suffix('.json').name}"
        )
    return original.model, dataclasses.replace(model, **original.shape)


def _downloaded(name: str, say: Say) -> tuple[Path, str]:
    """Return the folder in the hub's cache with the model `name`, and its commit."""
    from huggingface_hub import snapshot_download

    from gpt_pipeline.data.sources.hub.explain import explained_model

    say(f"Downloading {name} from the hub.")
    failure = f"start_from.hugging_face: {name} cannot be downloaded"
    with explained_model(failure, otherwise="download it elsewhere and name its folder"):
        folder = Path(snapshot_download(name, allow_patterns=_DOWNLOADED))
    return folder, folder.name  # in the hub's cache, folders bear the commit


def _fitting_config(source: Path, experiment: Experiment) -> ModelConfig:
    """Return the experiment's model, which the folder's fits; raises UserError with all differences otherwise."""
    shape = dataclasses.asdict(model_in_folder(source))
    wanted = experiment.config.model
    differences = [
        f"model.{key}: found {written(value)}, the experiment says {written(getattr(wanted, key))}"
        for key, value in shape.items()
        if key not in ("qkv_bias", "dropout") and value != getattr(wanted, key)
    ]
    if differences:
        raise UserError(
            f"{source} does not fit {experiment.file.name}: {'; '.join(differences)}; set these keys in the "
            f"experiment file as the folder has them (vocab_size by data.tokenizer, the folder's {TOKENIZER_NAME})"
        )
    return wanted


def _read_weights(source: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in _weight_files(source):
        try:
            weights |= load_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file, although {_INDEX_NAME} names it") from None
        except SafetensorError as error:
            raise DamagedFileError(f"{path} is damaged: it cannot be read as safetensors ({error})") from error
    return weights


def _weight_files(source: Path) -> list[Path]:
    if (source / WEIGHTS_NAME).is_file():
        return [source / WEIGHTS_NAME]
    if (source / _INDEX_NAME).is_file():
        listed = json_object(source / _INDEX_NAME).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
            raise DamagedFileError(f"{source / _INDEX_NAME} is damaged: need a weight_map with a file for each weight")
        return sorted({source / Path(name).name for name in listed.values()})  # none from elsewhere
    raise UserError(
        f"{source}: found no {WEIGHTS_NAME}, need the weights as safetensors; other files may run code when they are "
        "read: save the model again with save_pretrained, in a recent version of transformers"
    )


def _is_same_start(kept: CheckpointInfo, weights: Mapping[str, Tensor], training: TrainingConfig) -> bool:
    if kept.weights_sha256 != weights_sha256(weights):
        return False
    return bool(load_checkpoint(kept.path).optimizer["name"] == training.optimizer)


def _snapshot(
    weights: Mapping[str, Tensor], model: ModelConfig, experiment: Experiment, tokenizer: Tokenizer
) -> Snapshot:
    training = experiment.config.training
    seed_all(training.seed)
    shape = {f"model.{key}": value for key, value in dataclasses.asdict(model).items() if key != "dropout"}
    return Snapshot(
        model=weights,
        model_config=model,
        optimizer=_fresh_optimizer(weights, model, training),
        random=random_states(),
        progress=Progress(),
        fingerprint="",
        shards_fingerprint="",
        settings=shape if tokenizer.identity == TOKENIZER_ID else {**shape, TOKENIZER: tokenizer.identity},
        tokenizer=tokenizer.file,
    )


def _fresh_optimizer(weights: Mapping[str, Tensor], model: ModelConfig, training: TrainingConfig) -> dict[str, Any]:
    network = make_empty_model(model)
    network.load_state_dict(dict(weights), assign=True)
    return Optimizer(network, training).state()

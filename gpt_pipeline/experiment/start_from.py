"""The `start_from:` block: whose weights a training begins with, and the shape of the model that they give.

Weights that are not a checkpoint of ours (a folder for transformers, a model of the hub, a checkpoint of the original
scripts) are converted once, to a checkpoint in the experiment's `start` folder, before the training needs them. What is
read here is manifests and a model's config.json: no torch, no network.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.choose import BEST, LAST
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, checkpoint_path, manifest_path, read_info
from gpt_pipeline.data.config import is_hub_name
from gpt_pipeline.errors import ConfigError, UserError, require
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.config_json import model_in_folder
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.storage.fingerprint import neutral_values
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.names import resolve_folder

_SOURCE_NAME = "source.json"  # beside the converted checkpoint: what it was made of
_STEP = re.compile(r"step_\d+")
_READ_BY_TRANSFORMERS = (".json", ".safetensors")


class StartNotReadyError(UserError):
    """The weights to start from are still to be made; running the experiment makes them."""


@dataclass(frozen=True, kw_only=True)
class StartFromConfig:
    """Whose weights the training begins with: one of `experiment`, `hugging_face` and `file`; none: random ones."""

    experiment: str | None = None
    """Another experiment file, relative to this one. `run` trains it first if it is not finished, in its own project if
    it lies in another folder."""

    hugging_face: str | None = None
    """A folder with a model as transformers saves it (GPT-2, LLaMA, nanochat), or its name on the hub, `owner/name`."""

    file: str | None = None
    """A checkpoint file: one of this program with its manifest, or one of the original scripts."""

    checkpoint: str = BEST
    """Which checkpoint of `experiment`: `best`, `last`, or a step such as `step_50000`."""

    def __post_init__(self) -> None:
        given = [name for name in ("experiment", "hugging_face", "file") if getattr(self, name) is not None]
        if len(given) > 1:
            need, remedy = "only one of experiment, hugging_face and file", f"remove {given[0]} or {given[1]}"
            raise ConfigError(given[1], found=getattr(self, given[1]), need=need, remedy=remedy)
        for key in given:
            require(bool(getattr(self, key).strip()), key, found=getattr(self, key), need="a path or a name")
        is_known = self.checkpoint in (BEST, LAST) or _STEP.fullmatch(self.checkpoint) is not None
        require(is_known, "checkpoint", found=self.checkpoint, need="best, last, or a step such as step_50000")
        if self.experiment is None and self.checkpoint != BEST:
            raise ConfigError("checkpoint", found=self.checkpoint, need="no value where start_from names no experiment")

    @property
    def step(self) -> int | None:
        """The step that `checkpoint` names."""
        return int(self.checkpoint.removeprefix("step_")) if _STEP.fullmatch(self.checkpoint) else None

    @property
    def text(self) -> str:
        """What the file says, in a word or two."""
        return self.experiment or self.hugging_face or str(self.file)


def base_file(start_from: StartFromConfig, file: Path) -> Path | None:
    """Return the experiment file that the experiment in `file` starts from, absolute; None if it starts from none."""
    return None if start_from.experiment is None else Path(os.path.realpath(file.parent / start_from.experiment))


def weights_path(start_from: StartFromConfig, file: Path) -> Path | None:
    """Return the checkpoint file or folder that is named, absolute; None for an experiment or a model of the hub."""
    if start_from.experiment is not None:
        return None
    text = start_from.file or str(start_from.hugging_face)
    key = "start_from.file" if start_from.file else "start_from.hugging_face"
    path = resolve_folder(text, relative_to=file.parent, key=key)
    is_on_hub = start_from.file is None and not path.exists() and is_hub_name(text)
    return None if is_on_hub else path


def start_checkpoint(start_from: StartFromConfig, file: Path, folder: ExperimentFolder) -> CheckpointInfo | None:
    """Return the checkpoint that a `file` or `hugging_face` stands for; None while it is to be converted.

    Raises:
        UserError: the file is missing, or not what its manifest says.
    """
    path = weights_path(start_from, file)
    if start_from.file is not None and path is not None and manifest_path(path).is_file():
        info = read_info(path)
        if info is None:
            raise UserError(f"{path} is missing, or not as long as its manifest says")
        return info
    if start_from.file is not None and path is not None and path.is_dir():
        raise UserError(f"{path} is a folder, need a file; name a folder by start_from.hugging_face")
    made = read_kept(folder.start / _SOURCE_NAME, dict, otherwise="the weights to start from are converted again")
    is_made = made is not None and made.get("text") == start_from.text
    if path is not None and not is_made:
        _require_weights(path)
    if made is None or not is_made or not _are_unchanged(made.get("files"), path):
        return None
    return read_info(checkpoint_path(folder.start, 0))


def shape_to_come(start_from: StartFromConfig, file: Path) -> Mapping[str, Any]:
    """Return what is known, by the keys of `ModelConfig`, of a model that is still to be converted.

    Of a model of the hub that has not been downloaded: nothing.

    Raises:
        UserError: the folder's `config.json` describes no model that can be trained here.
    """
    path = weights_here(start_from, file)
    if path is None:
        return {}
    if path.is_file():
        return neutral_values(ModelConfig)  # the original scripts train GPT-2, and know no key that came later
    shape = dataclasses.asdict(model_in_folder(path))
    if shape["architecture"] == "gpt2":
        del shape["qkv_bias"]  # which the weights alone tell
    return shape


def weights_here(start_from: StartFromConfig, file: Path) -> Path | None:
    """Return what `weights_path` does, but of a model of the hub its folder in the hub's cache, if it has one there."""
    path = weights_path(start_from, file)
    if path is not None or start_from.experiment is not None:
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(start_from.text, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _require_weights(path: Path) -> None:
    """Raise UserError unless `path` is a file, or a folder with a model's configuration and weights."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        names = [each.name for each in path.iterdir() if each.exists()]
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            found = ", ".join(sorted(names)[:5]) or "nothing"
            if links := sorted(each.name for each in path.iterdir() if not each.exists()):
                found += f", and links that lead nowhere ({', '.join(links[:5])})"
            raise UserError(
                f"{path}: found {found}; need a folder with config.json and the weights as .safetensors, as "
                "transformers saves a model"
            )


def source_of(start_from: StartFromConfig, file: Path) -> dict[str, Any]:
    """Return what a conversion is made of, as JSON values: what the experiment says, and the files that it names."""
    path = weights_path(start_from, file)
    return {"text": start_from.text, "files": None if path is None else _listing(path)}


def note_source(folder: ExperimentFolder, source: Mapping[str, Any]) -> None:
    """Note beside the converted checkpoint what it was made of."""
    write_json(folder.start / _SOURCE_NAME, dict(source))


def hub_revision(start_from: StartFromConfig, folder: ExperimentFolder) -> str | None:
    """Return the commit at which a model of the hub was taken; None if it is not noted."""
    made = read_kept(folder.start / _SOURCE_NAME, dict, otherwise="the model's commit is not known")
    return None if made is None or made.get("text") != start_from.text else made.get("revision")


def _listing(path: Path) -> dict[str, list[int]]:
    """Return size and time of the files that the weights are read from, without links that lead nowhere."""
    paths = [path] if path.is_file() else [each for each in path.iterdir() if each.suffix in _READ_BY_TRANSFORMERS]
    stats = {each.name: each.stat() for each in sorted(paths) if each.exists()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _are_unchanged(files: object, path: Path | None) -> bool:
    """Whether the weights in `path` are read from `files`, a listing of earlier; `path` is None for a model of the hub.

    What is away cannot have changed: a folder on a disk that is not plugged in, links into a cache that was emptied.
    """
    if path is None or not path.exists():
        return True
    here = {name: each for name, each in files.items() if _is_here(path / name)} if isinstance(files, dict) else files
    return here == _listing(path)


def _is_here(path: Path) -> bool:
    """Whether a file is there, or is gone: anything but a link that leads nowhere."""
    return path.exists() or not path.is_symlink()


def model_from_start(
    model: ModelConfig, shape: Mapping[str, Any], given: Sequence[str], *, source: str
) -> tuple[ModelConfig, list[ConfigError]]:
    """Return `model` with the shape of the weights, and what the file says otherwise.

    `given` are the keys that the `model:` block gives; a `dropout` among them is kept.
    """
    known = {key: value for key, value in shape.items() if key != "dropout" or key not in given}
    problems = [
        ConfigError(
            f"model.{key}",
            found=getattr(model, key),
            need=f"{_written(known[key])}, as {source} has it",
            remedy="remove the line: the model has the shape of the weights it starts from",
        )
        for key in given
        if key in known and getattr(model, key) != known[key]
    ]
    return model if problems else dataclasses.replace(model, **known), problems


def _written(value: Any) -> str:
    """Return a value as an experiment file has it."""
    return value if isinstance(value, str) else json.dumps(value)

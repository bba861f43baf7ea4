"""Experiment files read and checked, with what depends on other files: the tokenizer, the weights to begin with."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt_pipeline.data.config import (
    CHATML_SUFFIX,
    GPT2,
    PLAIN,
    DataConfig,
    DocumentsConfig,
    SharedTokenizerConfig,
    TokenizerConfig,
    is_gpt2,
    is_path,
)
from gpt_pipeline.data.formats.forms import MARKS
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment.config import DATA_FOLDER, ExperimentConfig, contradictions
from gpt_pipeline.experiment.document import Kind, Written, read_document, read_text
from gpt_pipeline.experiment.identity import TRAINING_CODE_VERSION, training_identity
from gpt_pipeline.experiment.problems import ExperimentFileError, Problem
from gpt_pipeline.experiment.reading import Reading
from gpt_pipeline.experiment.start_from import (
    StartFromConfig,
    base_file,
    model_from_start,
    shape_to_come,
    start_checkpoint,
)
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.fingerprint import fingerprint
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.names import as_typed, folder_name, resolve_folder, slug
from gpt_pipeline.training.config import CadenceConfig
from gpt_pipeline.training.job import TOKENIZER

_VARIABLE = re.compile(r"\$\w|\$\{|%\w+%")


_Documents = TypeVar("_Documents", bound=DocumentsConfig)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One valid experiment file. Folders are resolved on access, for the machine that accesses them."""

    file: Path
    """Absolute, so that relative folders in the file do not depend on the working directory."""

    config: ExperimentConfig

    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Line of each key that the file gives, by its whole path."""

    def __post_init__(self) -> None:
        for contradiction in contradictions(self.config):
            raise contradiction

    @property
    def name(self) -> str:
        """The file's stem as a key for assets, groups and jobs."""
        return slug(self.file.stem)

    @property
    def display_name(self) -> str:
        return self.config.experiment_name

    @property
    def base_folder(self) -> Path:
        """Absolute. Raises ConfigError for a Windows path elsewhere, a variable, and if a file is in its place."""
        key, text = "storage.base_folder", self.config.storage.base_folder
        folder = self._resolved(key, text)
        there = next((each for each in (folder, *folder.parents) if os.path.exists(each)), None)
        if there is not None and not there.is_dir():
            need, remedy = f"a folder, or a place to make one in ({there} is a file)", f"set {key} to another folder"
            raise self._unusable(key, text, need=need, remedy=remedy)
        if there != folder and _VARIABLE.search(text):  # else all data would be in a folder of that very name
            need = "a folder without variables, which are not replaced here, or one of that very name that is there"
            raise self._unusable(key, text, need=need, remedy="write the folder itself")
        return folder

    @property
    def data_folder(self) -> Path:
        """Folder of what experiments share: raw files, documents, token shards."""
        return self.base_folder / DATA_FOLDER

    @property
    def folder(self) -> ExperimentFolder:
        """Folder of what belongs to this experiment alone: checkpoints, metrics, evaluations, report.

        Raises ConfigError as `base_folder`, and if something else is in its place.
        """
        key, name = "experiment_name", self.display_name
        root = self.base_folder / folder_name(name, key=key)
        if os.path.lexists(root) and not root.is_dir():
            need = f"a folder, or a place to make one in ({root} is a file, or a link that leads nowhere)"
            raise self._unusable(key, name, need=need, remedy="move that away, or choose another name")
        return ExperimentFolder(root=root)

    @property
    def way_to_checkpoints(self) -> str:
        """What to do where there is none yet, for a person in the working directory."""
        file = as_typed(self.file, Path.cwd())
        train = f"train first: gpt-pipeline run {file}"
        is_mirrored = self.config.storage.mirror is not None
        return f"{train}, or bring one from the mirror: gpt-pipeline mirror {file} --bring" if is_mirrored else train

    @property
    def data(self) -> DataConfig:
        """The `data:` block for the data stages: paths of one's own absolute. Raises ConfigError as `base_folder`."""
        data = self.config.data
        if isinstance(data.tokenizer, str) and is_path(data.tokenizer):
            path = self._resolved("data.tokenizer", data.tokenizer)
            data = dataclasses.replace(data, tokenizer=str(path))
        elif isinstance(data.tokenizer, SharedTokenizerConfig):
            sources = tuple(self._at_home(each, "data") for each in data.tokenizer.parts)
            data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, parts=sources))
        if data.mix is not None:
            mix = {name: self._at_home(part, f"data.mix.{name}") for name, part in data.mix.items()}
            return dataclasses.replace(data, mix=mix)
        return self._at_home(data, "data")

    @property
    def parts(self) -> Mapping[str, Experiment]:
        """The same experiment with each part of its mix alone, by the part's name; without a mix, itself under ''."""
        if self.config.data.mix is None:
            return {"": self}
        return {
            name: dataclasses.replace(
                self,
                config=dataclasses.replace(self.config, data=part),
                lines={key.replace(f"data.mix.{name}.", "data."): line for key, line in self.lines.items()},
            )
            for name, part in self.config.data.parts.items()
        }

    @property
    def identity(self) -> str:
        """Changes when, on the same data, the weights would: the identity of the training without that of its data."""
        identity = training_identity(self.config)
        if self.config.start_from is not None:
            identity["start_from"] = dataclasses.asdict(self.config.start_from)
        return fingerprint("training", config=identity, code_version=TRAINING_CODE_VERSION)

    @property
    def cadence(self) -> CadenceConfig:
        """The part of the `evaluation:` block that the trainer needs."""
        names = [field.name for field in dataclasses.fields(CadenceConfig)]
        return CadenceConfig(**{name: getattr(self.config.evaluation, name) for name in names})

    def _at_home(self, data: _Documents, block: str) -> _Documents:
        """Return the block with a path of one's own absolute."""
        if data.local is None:
            return data
        return data.at(str(self._resolved(f"{block}.{data.local_key}", data.local)))

    def _resolved(self, key: str, text: str) -> Path:
        try:
            return resolve_folder(text, relative_to=self.file.parent, key=key)
        except ConfigError as error:
            raise self._unusable(key, text, need=error.need, remedy=error.remedy) from None

    def _unusable(self, key: str, text: str, *, need: str, remedy: str) -> ConfigError:
        """Return the error on the value `text` of `key`, with its place in the file."""
        place = ":".join(str(part) for part in (self.file, self.lines.get(key)) if part is not None)
        return ConfigError(f"{place}: {key}", found=Written(kind=Kind.QUOTED, text=text), need=need, remedy=remedy)


def load_experiment(path: Path, *, later: tuple[Path, ...] = ()) -> Experiment:
    """Return the experiment that the YAML file `path` describes; see `read_experiment`."""
    return read_experiment(path, read_text(path), later=later)


def read_experiment(path: Path, text: str, *, later: tuple[Path, ...] = ()) -> Experiment:
    """Return the experiment that `text` describes, which stands in the file `path`, or is to stand there.

    `later` are the experiments, the last one first read, for which this one is read because they start from it.

    Raises:
        ExperimentFileError: one line for each problem: file, line, key, what was found, what is needed, the remedy.
            Contradictions between blocks are checked once each block is valid by itself.
    """
    reading = Reading()
    values = reading.block(ExperimentConfig, read_document(path, text), section="", line=None)
    if reading.problems:
        raise ExperimentFileError(path, reading.problems)
    lines = {key: entry.line for key, entry in reading.entries.items()}
    config = _with_the_packing_of_its_objective(ExperimentConfig(**values), lines)
    try:
        config, errors = _with_the_vocabulary(config, path.absolute(), lines)
    except (UserError, OSError) as error:  # a tokenizer's file that cannot be used, in words of its own
        key = "data.tokenizer"
        raise ExperimentFileError(path, [Problem(line=lines.get(key), key=key, text=str(error))]) from error
    if not errors:
        try:
            config, errors = _with_the_shape_of_its_start(config, path.absolute(), lines, later)
        except ConfigError as error:  # what blocks do not agree on, whatever the shape
            errors = [error]
    problems = [reading.problem_of(error) for error in errors or contradictions(config)]
    if problems:
        raise ExperimentFileError(path, problems)
    return Experiment(file=path.absolute(), config=config, lines=lines)


def _with_the_packing_of_its_objective(config: ExperimentConfig, lines: Mapping[str, int]) -> ExperimentConfig:
    """Return the experiment with rows of whole documents where only answers count and the file names no packing."""
    if not config.training.answers_only or "data.packing" in lines:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing="documents"))


def _with_the_vocabulary(
    config: ExperimentConfig, file: Path, lines: Mapping[str, int]
) -> tuple[ExperimentConfig, list[ConfigError]]:
    """Return the experiment with a model for the ids of its tokenizer, as far as they are known."""
    found = config.model.vocab_size
    try:
        size = _vocabulary_size(config, file)
    except ConfigError as error:
        return config, [error]
    if size is None or size == found:
        return config, []
    if "model.vocab_size" in lines:
        need, remedy = f"{size}, the ids of data.tokenizer", "remove the line: it follows the tokenizer"
        return config, [ConfigError("model.vocab_size", found=found, need=need, remedy=remedy)]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size)), []


def _vocabulary_size(config: ExperimentConfig, file: Path) -> int | None:
    """Return the ids of the tokenizer; None for one of the hub that has not been fetched."""
    wanted = config.data.tokenizer
    added = 0 if config.data.template == PLAIN else len(MARKS)
    if isinstance(wanted, TokenizerConfig):
        return wanted.train + added
    if wanted == GPT2:
        return ModelConfig().vocab_size + added
    from gpt_pipeline.data.tokens.tokenizer_stage import vocabulary_size  # numpy

    base = resolve_folder(config.storage.base_folder, relative_to=file.parent, key="storage.base_folder")
    if is_path(str(wanted)):
        wanted = str(resolve_folder(str(wanted), relative_to=file.parent, key="data.tokenizer"))
    return vocabulary_size(str(wanted), base / DATA_FOLDER, config.data.template)


def _with_the_shape_of_its_start(
    config: ExperimentConfig, file: Path, lines: Mapping[str, int], later: tuple[Path, ...]
) -> tuple[ExperimentConfig, list[ConfigError]]:
    """Return the experiment with the model that its weights have, as far as that is known before they are made."""
    if config.start_from is None:
        return config, []
    try:
        start = _start(config, file, later)
    except ConfigError as error:
        return config, [error]
    return _with_the_shape_of(start, config, file, lines)


def problems_with_tokenizer(experiment: Experiment, theirs: str) -> list[ConfigError]:
    """Return what speaks against weights that are to be converted once it is known that their tokenizer is `theirs`."""
    assert experiment.config.start_from is not None
    start = _Start(shape=shape_to_come(experiment.config.start_from, experiment.file), tokenizer=theirs)
    return _with_the_shape_of(start, experiment.config, experiment.file, experiment.lines)[1]


def _with_the_shape_of(
    start: _Start, config: ExperimentConfig, file: Path, lines: Mapping[str, int]
) -> tuple[ExperimentConfig, list[ConfigError]]:
    assert config.start_from is not None
    given = [key.removeprefix("model.") for key in lines if key.startswith("model.")]
    model, errors = model_from_start(config.model, start.shape, given, source=config.start_from.text)
    size = _vocabulary_size(config, file)
    ids = start.shape.get("vocab_size", size)
    if start.gains_turns(config.data.template) and size is not None and ids < size <= ids + len(MARKS):
        model, ids = dataclasses.replace(model, vocab_size=size), size  # the rows of ChatML's tokens are new
    if start.has_turns and config.data.template == PLAIN and not errors:
        need = f"chatml, as {config.start_from.text} has it, whose model has tokens for its turns"
        errors = [ConfigError("data.template", found=config.data.template, need=need)]
    remedy = _where_its_tokenizer_is(start, config.start_from)
    if size is not None and size > ids and not errors:  # a trained one may have fewer than the model
        need = f"the tokenizer of {config.start_from.text}, whose model has {ids} ids; this one has {size}"
        errors = [ConfigError("data.tokenizer", found=config.data.tokenizer, need=need, remedy=remedy)]
    if not errors and start.is_made and not _has_the_tokenizer_of(start, Experiment(file=file, config=config)):
        need = f"the tokenizer of {config.start_from.text}, by which the rows of its weights are ordered"
        errors = [ConfigError("data.tokenizer", found=config.data.tokenizer, need=need, remedy=remedy)]
    return dataclasses.replace(config, model=model), errors


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The weights that a training will begin with."""

    shape: Mapping[str, Any]
    """What is known of their model, by the keys of `ModelConfig`."""

    base: Experiment | None = None
    """The experiment that makes them."""

    is_made: bool = True
    """False while they are to be converted, so that their tokenizer is not known."""

    tokenizer: str | None = None
    """What their checkpoint says of its tokenizer; None for GPT-2's, and if an experiment makes them."""

    @property
    def is_of_gpt2(self) -> bool:
        """Whether they were trained on the tokens of GPT-2's tokenizer."""
        if self.base is not None:
            return self.base.data.tokenizer == GPT2
        return is_gpt2(self.tokenizer)

    @property
    def has_turns(self) -> bool:
        """Whether they were trained on the turns of ChatML, as far as that is known."""
        if self.base is not None:
            return self.base.data.template != PLAIN
        return (self.tokenizer or "").endswith(CHATML_SUFFIX)

    def gains_turns(self, template: str) -> bool:
        """Whether a training with this template gives them the rows of ChatML's tokens."""
        return template != PLAIN and not self.has_turns


def _where_its_tokenizer_is(start: _Start, start_from: StartFromConfig) -> str:
    """Return what to do for the tokenizer of the weights, for a person."""
    if start.is_made and start.is_of_gpt2:
        return "leave the key out, which is gpt2"
    if start_from.hugging_face is not None:
        return "name its tokenizer.json, which is beside its weights"
    export = "; that of an export has ChatML's tokens besides" if start.has_turns else " and in an export of it"
    return f"name its tokenizer.json, which is in its folder of token_shards{export}"


def _has_the_tokenizer_of(start: _Start, experiment: Experiment) -> bool:
    """Whether the experiment has the tokenizer that the weights were trained on, as far as that is known."""
    ours, base = experiment.data, start.base
    if start.is_of_gpt2 or ours.tokenizer == GPT2:
        return start.is_of_gpt2 and ours.tokenizer == GPT2
    from gpt_pipeline.data.tokens.tokenizer_stage import known_identity  # numpy

    known = known_identity(ours, experiment.data_folder)
    wanted = start.tokenizer if base is None else known_identity(base.data, base.data_folder)
    wanted = wanted and wanted.removesuffix(CHATML_SUFFIX)
    if known is not None and wanted is not None:
        return known == wanted
    if isinstance(ours.tokenizer, str):
        return True  # to be fetched or, for the weights, to be trained: compared when it is there
    # One that is trained on other documents is another one.
    return (
        base is not None
        and dataclasses.replace(ours, max_length=base.data.max_length, packing=base.data.packing) == base.data
    )


def _start(config: ExperimentConfig, file: Path, later: tuple[Path, ...]) -> _Start:
    start_from = config.start_from
    assert start_from is not None
    base = base_file(start_from, file)
    if base is None:
        root = resolve_folder(config.storage.base_folder, relative_to=file.parent, key="storage.base_folder")
        folder = ExperimentFolder(root=root / folder_name(config.experiment_name, key="experiment_name"))
        try:
            info = start_checkpoint(start_from, file, folder)
            if info is None:
                return _Start(shape=shape_to_come(start_from, file), is_made=False)
        except (UserError, OSError) as error:
            key = "start_from.file" if start_from.file else "start_from.hugging_face"
            raise ConfigError(key, found=start_from.text, need=f"weights that can be used ({error})") from error
        return _Start(shape=dataclasses.asdict(info.model), tokenizer=info.settings.get(TOKENIZER))
    chain = (*later, file.resolve())
    key = "start_from.experiment"
    if base in chain:
        circle = " -> ".join(each.name for each in (*chain[chain.index(base) :], base))
        raise ConfigError(key, found=start_from.experiment, need=f"an experiment that does not lead back ({circle})")
    if not os.path.isfile(base):  # Path.is_file raises, where the path is too long or forbidden
        raise ConfigError(key, found=start_from.experiment, need=f"an experiment file; {base} does not exist")
    try:
        loaded = load_experiment(base, later=chain)
        return _Start(shape=dataclasses.asdict(loaded.config.model), base=loaded)
    except ExperimentFileError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(key, found=start_from.experiment, need=f"an experiment that can be used ({first})") from error

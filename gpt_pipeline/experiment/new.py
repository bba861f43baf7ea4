"""A new experiment file, from a recipe or from nothing but the defaults."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_pipeline.checkpoints.choose import BEST
from gpt_pipeline.checkpoints.manifest import read_info
from gpt_pipeline.data.config import GPT2, PLAIN, DataConfig, is_path
from gpt_pipeline.data.guess_format import Look, look_at, look_into
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment.document import SUFFIXES
from gpt_pipeline.experiment.load import Experiment, load_experiment, read_experiment
from gpt_pipeline.experiment.problems import ExperimentFileError, quoted
from gpt_pipeline.experiment.recipes import RECIPES, Recipe, Value
from gpt_pipeline.experiment.schema import place_schema
from gpt_pipeline.experiment.start_from import StartFromConfig, shape_to_come
from gpt_pipeline.experiment.template import render
from gpt_pipeline.project import OTHER_FILES
from gpt_pipeline.shown import Say, counted, on_terminal
from gpt_pipeline.storage.atomic import atomic_path, fsync_file
from gpt_pipeline.storage.names import as_typed, is_name, resolve_folder

_logger = logging.getLogger(__name__)
LONGEST_NAME = 120  # bytes; with what is added, it names folders and files, of which Linux takes 255 bytes
_SHOWN = 60  # letters of a name that is refused
_NUM_SAMPLES = 100_000  # of SYNTH: one file, 470 MB; enough for a first look

_FROM_DEFAULTS = Recipe(
    title="",
    about="""\
An experiment of gpt_pipeline. Lines that begin with `# key:` show defaults; remove the # to change one.
`gpt-pipeline plan` says what it will take, `gpt-pipeline run` does it.""",
    values={
        "data.num_samples": (_NUM_SAMPLES, "English documents of PleIAs/SYNTH, from the hub"),
        "storage.base_folder": ("", "data and checkpoints; a relative folder starts at this file's own"),
    },
)

_FROM_RECIPE = """\
An experiment of gpt_pipeline, begun from its recipe {recipe}; reasons beside values are that recipe's.
Lines that begin with `# key:` show defaults; remove the # to change one. `gpt-pipeline plan` says what it will take."""


def write_new_experiment(
    file: Path,
    *,
    recipe: str | None = None,
    num_samples: int | None = None,
    base_folder: str | None = None,
    start_from: str | None = None,
    data: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    say: Say = _logger.info,
) -> Experiment:
    """Write `file` with every key and its text, and the schema beside it; return what it describes.

    `data` is a path as one types it here, or a dataset of the hub, of which `subset` and `split` may be chosen; the
    block `data:` is written for it.

    Raises:
        UserError: there is such a file, its name does not end in .yaml, the folder is none of this machine, a value
            cannot be used, `data` names no files that can be read, or the hub cannot be reached. Nothing is written.
    """
    require_new_name(file)
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: found the ending {file.suffix!r}, need .yaml; use {file.with_suffix('.yaml')}")
    if os.path.lexists(file):  # a link that leads nowhere, too
        raise UserError(f"{file} is there already and stays as it is; choose another name")
    start = RECIPES[recipe] if recipe else _FROM_DEFAULTS
    if recipe and start_from is None and any(_is_of_start(key) for key in start.values):
        raise UserError(
            f"--recipe {recipe} goes on from weights; name them by --start-from: an experiment's .yaml, a checkpoint's "
            ".pt, or a model of Hugging Face, such as openai-community/gpt2"
        )
    base_folder = base_folder or ("../storage" if file.absolute().parent.name == "experiments" else "storage")
    resolve_folder(base_folder, relative_to=file.absolute().parent, key="--folder")
    values = {**start.values, "storage.base_folder": (base_folder, start.values["storage.base_folder"][1])}
    if num_samples is not None:
        values["data.num_samples"] = (num_samples, "English documents")
    if data is not None:
        values = _without_data(values)  # before the base's keys, which stay
    if start_from is not None:
        values = {key: value for key, value in values.items() if not _is_of_start(key)}
        values |= _start_values(start_from, file.absolute(), values)
        values |= _whole_updates(values)
    if data is not None:
        values = {
            **_data_values(data, file.absolute(), num_samples, subset=subset, split=split, say=say),
            **values,
        }
    about = _FROM_RECIPE.format(recipe=recipe) if recipe else start.about
    text = render(dataclasses.replace(start, title=title_of(file.stem), about=about, values=values), every_key=True)
    made = read_unwritten(file, text)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        fsync_file(temporary)
    place_schema(file.parent)
    return made


def read_unwritten(file: Path, text: str) -> Experiment:
    """Return the experiment that `file` will describe; raises UserError, which says so, where it would be none."""
    try:
        made = read_experiment(file, text)
        _ = made.base_folder  # which every command needs
    except (ExperimentFileError, ConfigError) as error:
        raise UserError(f"Nothing was written, since {file.name} would not be an experiment:\n{error}") from error
    return made


def require_new_name(file: Path) -> None:
    """Raise UserError where the name is none for a new experiment file: it would not be found, or not everywhere."""
    name = file.name
    if not name or (len(os.fsencode(name)) <= LONGEST_NAME and file.is_dir()):
        raise UserError(f"{file}: found a folder, need a file in it; use {file / 'my-idea.yaml'}")
    wanted, shown = (
        "letters, digits and -, _ or spaces, such as my-idea.yaml",
        os.fsencode(name)[:_SHOWN].decode(errors="replace"),
    )
    if len(os.fsencode(name)) > LONGEST_NAME:
        found = f"found a name of {len(os.fsencode(name))} bytes, need at most {LONGEST_NAME}"
        raise UserError(f"{shown}...: {found}; choose a shorter one")
    if name.startswith(".") or name in OTHER_FILES:
        why = "hidden files are" if name.startswith(".") else "this file of a project is"
        raise UserError(f"{file}: found {quoted(name)}, need another name: {why} taken for no experiment")
    if not is_name(name):
        raise UserError(f"{file.parent}: found the file's name {quoted(shown)}, need {wanted}")


def _data_values(
    data: str, file: Path, num_samples: int | None, *, subset: str | None, split: str | None, say: Say
) -> dict[str, tuple[Value, str]]:
    """Return the `data:` block for files of one's own, or of a dataset of the hub, guessed from their first rows."""
    asked = {key: value for key, value in (("subset", subset), ("split", split)) if value is not None}
    if is_path(data) or Path(data).exists() or glob.has_magic(data):
        if asked:
            raise UserError(
                f"--{next(iter(asked))} is for datasets of the hub; {data} is here: name files by a pattern"
            )
        source, seen = _own_files(data, file)
    else:
        source, seen = data, _hub_files(data, subset, split, say)
    count = counted(seen.files, "file")
    found = ", ".join(f"{_in_line(name)} ({kind})" for name, kind in seen.columns.items())
    values: dict[str, tuple[Value, str]] = {
        "data.source": (source, f"{count}; columns: {found}"),
        **{f"data.{key}": (value, "") for key, value in asked.items()},
        "data.format": (seen.format, "guessed; see `gpt-pipeline show` for the documents that this makes"),
        "data.num_samples": (num_samples or "all", "or a number of documents"),
    }
    if seen.chosen:
        values["data.columns"] = (dict(seen.chosen), "guessed by their names and lengths")
    if seen.split_at is not None:
        values["data.split_text_at"] = (
            seen.split_at,
            "guessed: where a document ends, since one has at most 1 MiB, and one alone is too few",
        )
    if seen.kinds:
        values["data.kind"] = (None, f"for losses by kind; could be {', '.join(map(_in_line, seen.kinds))}")
    return values


def _in_line(name: str) -> str:
    """Return a column's name for a comment, whatever it holds."""
    return on_terminal(" ".join(name.split()))


def _own_files(data: str, file: Path) -> tuple[str, Look]:
    """Return what a path, typed here, is called in the experiment file, and what its files seem to be."""
    typed = Path(data).expanduser()
    path = Path(os.path.abspath(typed))
    return (data if typed.is_absolute() else _named_from(file.parent, path)), look_at(str(path))


def _hub_files(name: str, subset: str | None, split: str | None, say: Say) -> Look:
    """Return what the files of a dataset seem to be.

    Raises:
        ConfigError: it is no dataset's name; or a subset or split has to be chosen, or is not there; names the option.
    """
    from gpt_pipeline.data.sources.hub import Hub, asked_dataset

    try:
        data = DataConfig(num_samples=1, source=name, subset=subset, split=split)
        dataset = asked_dataset(Hub(), data.source, None, subset=data.subset, split=data.split, say=say)
    except ConfigError as error:
        key = error.key.removeprefix("data.")
        key = "--data" if key == "source" else f"--{key}"
        raise ConfigError(key, found=error.found, need=error.need, remedy=error.remedy) from None
    return look_into(dataset, say=say)


def _without_data(values: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return the recipe's values but for the documents that it names; what sequences and tokens are stays its own.

    A reason that lies in SYNTH is none for other documents.
    """
    kept = ("data.max_length", "data.packing", "data.template", "data.tokenizer")
    own = {key: value for key, value in values.items() if not key.startswith("data.") or key in kept}
    return {key: (value, "" if "SYNTH" in reason else reason) for key, (value, reason) in own.items()}


def _is_of_start(key: str) -> bool:
    return key.startswith("start_from.")


def _start_values(start_from: str, file: Path, recipe: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return the keys of an experiment that starts from another, from a checkpoint, or from a Hugging Face model.

    What `recipe` only presumes of its base is as this base has it.

    Raises:
        UserError: the base is no experiment, or its tokenizer is not trained yet or cannot be used.
    """
    path = Path(start_from)
    if path.suffix not in (*SUFFIXES, ".pt"):
        name = _seen_from(file.parent, path) if path.is_dir() else start_from
        return {
            **_length_within(shape_to_come(StartFromConfig(hugging_face=name), file), recipe),
            **_tokenizer_in(path, file.parent),
            "start_from.hugging_face": (name, "the model begins with these weights, and has their shape"),
        }
    relative = _seen_from(file.parent, path)
    if path.suffix == ".pt":
        info = read_info(path)
        return {
            **({} if info is None else _length_within(dataclasses.asdict(info.model), recipe)),
            "start_from.file": (relative, "the model begins with these weights, and has their shape"),
        }
    base = load_experiment(path)
    return {
        "data.max_length": (base.config.data.max_length, f"as in {path.name}"),
        **_split_of(base, recipe),
        **_tokens_of(base, file.parent),
        **_rates_after(base, recipe),
        "start_from.experiment": (relative, "`run` trains it first; the model has its shape"),
        "start_from.checkpoint": (BEST, "or last, or a step such as step_50000"),
    }


def _length_within(shape: Mapping[str, Any], recipe: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return the key that keeps sequences within the context of a model of this `shape`, where they would be longer."""
    context = shape.get("context_length")
    length, _ = recipe.get("data.max_length", (DataConfig(num_samples=1).max_length, ""))
    is_short = isinstance(context, int) and isinstance(length, int) and context < length
    return {"data.max_length": (context, "as long as the model can take")} if is_short else {}


def _whole_updates(values: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return the recipe's tokens of an update as near as whole micro-batches of the base's sequences come to them."""
    tokens, length, size = (
        values.get(key, (None,))[0]
        for key in ("training.tokens_per_step", "data.max_length", "training.micro_batch_size")
    )
    if not isinstance(tokens, int) or not isinstance(length, int):
        return {}
    unit = length * (size if isinstance(size, int) else 1)
    near = max(1, round(tokens / unit)) * unit
    why = f"the recipe's {tokens:,}, as near as micro-batches of {length:,} tokens a sequence come"
    return {} if near == tokens else {"training.tokens_per_step": (near, why)}


def _split_of(base: Experiment, recipe: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return the keys by which the documents that `base` holds out are held out too; none where they are anyway."""
    data, usual = base.data, DataConfig(num_samples=1)
    why = f"as in {base.file.name}: documents of both are held out in both"
    found: dict[str, tuple[Value, str]] = {}
    if recipe.get("data.validation_fraction", (usual.validation_fraction,))[0] != data.validation_fraction:
        found["data.validation_fraction"] = (data.validation_fraction, why)
    if data.seed != usual.seed:
        found["data.seed"] = (data.seed, why)
    return found


def _tokens_of(base: Experiment, folder: Path) -> dict[str, tuple[Value, str]]:
    """Return the keys by which an experiment in `folder` has the tokens of `base`; none where they are the default."""
    from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME  # numpy
    from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage

    data, why = base.data, f"as in {base.file.name}"
    found: dict[str, tuple[Value, str]] = {}
    if data.template != PLAIN:
        found["data.template"] = (data.template, why)
    if not isinstance(data.tokenizer, str):
        made = TokenizerStage(config=data, data_folder=base.data_folder).find()
        if made is None:
            raise UserError(
                f"--start-from {base.file.name}: found a tokenizer that its run is still to train, need the trained "
                f"one, which the new file names; first run: gpt-pipeline run {as_typed(base.file, Path.cwd())}"
            )
        found["data.tokenizer"] = (_named_from(folder, made.folder / TOKENIZER_NAME), f"that of {base.file.name}")
    elif data.tokenizer != GPT2:
        is_file = is_path(data.tokenizer)
        found["data.tokenizer"] = (_named_from(folder, Path(data.tokenizer)) if is_file else data.tokenizer, why)
    return found


def _tokenizer_in(model: Path, folder: Path) -> dict[str, tuple[Value, str]]:
    """Return the key that names the tokenizer in a model's folder; none where it has no file, or GPT-2's."""
    from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME  # numpy
    from gpt_pipeline.data.tokens.tokenizer import gpt2, read_tokenizer

    file = model / TOKENIZER_NAME
    if not file.is_file():
        return {}
    ids, usual = read_tokenizer(file.read_text(encoding="utf-8"), source=file).token_bytes, gpt2().token_bytes
    return {} if [*ids[: len(usual)]] == [*usual] else {"data.tokenizer": (_named_from(folder, file), "the model's")}


def _rates_after(base: Experiment, recipe: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    """Return what a recipe of fine-tuning takes over from a pretraining: the optimizer, and a share of its rate."""
    training, name = base.config.training, base.file.name
    if recipe.get("training.objective", ("",))[0] != "sft" or training.is_post_training:
        return {}
    rate = float(f"{training.learning_rate / 10:.3g}")
    why = f"a tenth of the peak of {name}, as is common: a high rate unlearns what the base knows"
    return {
        "training.optimizer": (training.optimizer, f"as in {name}"),
        "training.learning_rate": (rate, why),
    }


def _named_from(folder: Path, file: Path) -> str:
    """Return the path of a file as a value of an experiment file in `folder`, which tells it from a name of the hub."""
    named = _seen_from(folder, file)
    return named if is_path(named) else f"./{named}"


def _seen_from(folder: Path, path: Path) -> str:
    """Return `path` relative to `folder`, with `/`; whole, if it lies on another drive of Windows."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def title_of(stem: str) -> str:
    """Return a file's name as one would say it: `my-idea` is `My idea`."""
    words = stem.replace("-", " ").replace("_", " ").strip() or "Experiment"
    return words[0].upper() + words[1:]

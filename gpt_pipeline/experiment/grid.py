"""A family of experiment files: one for each combination of the values of some keys, made from a base file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

from ruamel.yaml.nodes import MappingNode, SequenceNode

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.discover import refuse_taken
from gpt_pipeline.experiment.document import BYTE_ORDER_MARK, SUFFIXES, compose, read_text
from gpt_pipeline.experiment.edit import with_value
from gpt_pipeline.experiment.load import Experiment, read_experiment
from gpt_pipeline.experiment.new import LONGEST_NAME, read_unwritten, require_new_name, title_of
from gpt_pipeline.experiment.problems import ExperimentFileError, quoted
from gpt_pipeline.experiment.reading import RUNTIME
from gpt_pipeline.experiment.runtime import without_runtime
from gpt_pipeline.experiment.schema import place_schema
from gpt_pipeline.experiment.template import written
from gpt_pipeline.storage.atomic import atomic_path, fsync_file
from gpt_pipeline.storage.names import slug

MOST_FILES = 100
"""Of a family: each is a training, a group of assets and a sensor."""

_OURS = ("experiment_name", "family", RUNTIME)
_LONGEST = 40  # letters of a value in a file's name
_UNFIT_LETTERS = re.compile(r"[^A-Za-z0-9.+-]+")

Values = Mapping[str, Sequence[str]]
"""By a key's whole path: the values it is to have, as YAML."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The files of a grid."""

    experiments: tuple[Experiment, ...]
    written: tuple[Path, ...]
    """Those that were not there before."""


def parse_values(assignments: Sequence[str]) -> Values:
    """Return what `key=value,value` says, for each of `assignments`; a list, in brackets, is one value.

    Raises:
        UserError: no such form, a key twice or one that `init` sets itself, no value, or the same value twice.
    """
    values: dict[str, Sequence[str]] = {}
    for text in assignments:
        key, equals, given = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--set: found {quoted(text)}, need KEY=VALUE,VALUE; use training.learning_rate=0.001,0.002"
            )
        if key in values:
            raise UserError(f"--set: found {key} twice, need each key once; write {key}={given},...")
        if key.split(".")[0] in _OURS:
            raise UserError(f"--set: found {key}, which is written by init itself; choose another key")
        values[key] = _split(key, given)
    return values


def _split(key: str, given: str) -> list[str]:
    """Return the values between the commas of `given` as they are written; commas in brackets and quotes count not."""
    text = f"[{given}]"
    try:
        node = compose(Path("--set"), text)
    except ExperimentFileError as error:
        raise UserError(
            f"--set {key}: found {quoted(given)}, need values of YAML, one after the other: {error}"
        ) from None
    items = node.value if isinstance(node, SequenceNode) else []
    if any(isinstance(item, MappingNode) for item in items):
        raise UserError(f"--set {key}: found a block of keys in {quoted(given)}; name its key, such as {key}.name=...")
    found = [text[item.start_mark.index : item.end_mark.index] for item in items]
    if not found or not all(found):
        raise UserError(f"--set {key}: found {quoted(given)}, need a value before and after each comma")
    if twice := [value for value, count in Counter(found).items() if count > 1]:
        raise UserError(f"--set {key}: found {', '.join(twice)} twice, need different values")
    return found


def write_family(new: Path, base: Path, values: Values) -> Family:
    """Write a file for each combination of `values`, beside `new`, whose name they begin with; return the experiments.

    All of them are read, and their names compared with their neighbours', before the first is written. A file that
    holds what would be written stays, also with the `runtime:` block that a run has added.

    Raises:
        UserError: `base` is no experiment; a value does not fit; a file is there and differs; too many files; `new` is
            in another folder than `base`, where relative paths would begin elsewhere.
    """
    new, base = new.absolute(), base.absolute()
    require_new_name(new)
    combinations = [dict(zip(values, each, strict=True)) for each in _places(values)]
    texts = dict(_texts(new.with_suffix("") if new.suffix in SUFFIXES else new, base, values, combinations))
    experiments = tuple(read_unwritten(file, text) for file, text in texts.items())
    _refuse_same(experiments, values, combinations)
    refuse_taken(experiments, new.parent)
    missing = [file for file, text in texts.items() if not _is_there(file, text)]
    for file in missing:
        with atomic_path(file) as temporary:
            temporary.write_bytes(texts[file].encode("utf-8"))
            fsync_file(temporary)
    place_schema(new.parent)
    return Family(experiments=experiments, written=tuple(missing))


def _places(values: Values) -> list[tuple[int, ...]]:
    """Return each combination of the values, by their places."""
    if (count := prod(map(len, values.values()))) > MOST_FILES:
        raise UserError(f"--set: found {count:,} combinations, need at most {MOST_FILES}; leave out some values")
    return [*product(*(range(len(each)) for each in values.values()))]


def _texts(
    stem: Path, base: Path, values: Values, combinations: Sequence[Mapping[str, int]]
) -> Iterator[tuple[Path, str]]:
    """Yield the files and their texts."""
    text = read_text(base)
    read_experiment(base, text)
    if stem.parent.resolve() != base.parent.resolve():
        raise UserError(
            f"{stem}: found another folder than that of {base}, need the same, since relative paths in the file begin "
            f"there; use {base.parent / stem.name}"
        )
    text = without_runtime(base, text).removeprefix(BYTE_ORDER_MARK)
    text = with_value(base, text, "family", written(stem.name))
    for chosen, words in zip(combinations, _words_of(stem.name, values, combinations), strict=True):
        file = stem.with_name("-".join([stem.name, *words]) + ".yaml")
        require_new_name(file)
        name = " ".join([title_of(stem.name), *words])
        changed = with_value(base, text, "experiment_name", written(name))
        for key, place in chosen.items():
            changed = with_value(base, changed, key, values[key][place])
        yield file, changed


def _words_of(stem: str, values: Values, combinations: Sequence[Mapping[str, int]]) -> list[list[str]]:
    """Return the words that tell each file's values; just its number where the names would become too long."""
    words = {key: _words(key, values) for key in values}
    told = [
        [word for key, place in chosen.items() for word in (words[key][0], words[key][1 + place])]
        for chosen in combinations
    ]
    too_long = any(len(os.fsencode("-".join([stem, *each]) + ".yaml")) > LONGEST_NAME for each in told)
    return [[str(number)] for number in range(1, len(told) + 1)] if too_long else told


def _refuse_same(experiments: Sequence[Experiment], values: Values, combinations: Sequence[Mapping[str, int]]) -> None:
    """Raise UserError where two files would be one experiment, since two values are the same once they are read."""
    configs = [dataclasses.replace(each.config, experiment_name="") for each in experiments]
    for (one, chosen), (other, others) in itertools.combinations(zip(configs, combinations, strict=True), 2):
        if one == other:
            same = [
                f"{key}={values[key][chosen[key]]},{values[key][others[key]]}"
                for key in values
                if chosen[key] != others[key]
            ]
            raise UserError(f"--set {' '.join(same)}: found two ways to write one value, need different values")


def _words(key: str, values: Values) -> list[str]:
    """Return a key's name for files, then its values'; where such a name does not tell a value, its number does."""
    last = key.rsplit(".", maxsplit=1)[-1]
    name = last if [each.split(".")[-1] for each in values].count(last) == 1 else key.replace(".", "-")
    found = [_UNFIT_LETTERS.sub("_", value).strip("_.") for value in values[key]]
    telling = len({slug(each) for each in found}) == len(found) and all(0 < len(each) <= _LONGEST for each in found)
    return [_UNFIT_LETTERS.sub("_", name), *(found if telling else map(str, range(1, len(found) + 1)))]


def _is_there(file: Path, text: str) -> bool:
    """Whether the file holds `text`.

    Raises:
        UserError: it holds something else.
    """
    if not os.path.lexists(file):
        return False
    if without_runtime(file, read_text(file)).rstrip() != text.rstrip():
        raise UserError(f"{file} is there already and differs from what would be written; choose another name than it")
    return True

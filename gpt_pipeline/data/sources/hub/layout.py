"""Which files of a dataset on the hub are a subset's and a split's: by the front matter of its card, or by their names.

The rules are those of the hub (its documentation, "Manual Configuration" and "File names and splits"), so that what its
pages and `datasets` call a subset and a split is the same here. Two cases are decided otherwise: folders that each have
splits of their own are subsets also where the card names none, and files whose names tell no split are `train` where no
other file is, not left out.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from gpt_pipeline.data.file_kinds import PARQUET, READABLE, TEXT, TEXT_LIST, kind_of
from gpt_pipeline.data.sources.hub.explain import NO_HUB
from gpt_pipeline.errors import ConfigError, DataError

CARD = "README.md"

_TRAIN, _DEFAULT = "train", "default"
_KEYWORDS = {
    _TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {keyword: split for split, keywords in _KEYWORDS.items() for keyword in keywords}
_KEYWORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_SPLIT_OF)})(?=[-._ 0-9]|$)")
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_NO_DOCUMENTS = re.compile(
    r"(config|state|dataset_infos?|dataset_dict)\.json|requirements\.txt"
    r"|(readme|licen[cs]e|changelog|contributing|citation)([-._].*)?\.(md|txt)",
    re.IGNORECASE,
)
_MAX_VALUES = 1_000_000  # at the top of a card
_SHOWN = 30  # names in an error

_Splits = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The files of a dataset that one subset and split have."""

    names: tuple[str, ...]
    """In the order in which they are read."""

    text: str
    """What was chosen, for a person: `subset en, split train`; empty where a dataset has one of each."""


def front_matter(card: str, *, where: str) -> Mapping[str, Any]:
    """Return the values at the top of a dataset's card, which has none if it does not begin with them.

    Raises:
        DataError: they are not YAML, or stand for far too much; `where` names the dataset.
    """
    found = _FRONT_MATTER.match(card)
    yaml = YAML(typ="safe", pure=True)
    try:
        if found and _count(yaml.compose(found[1]), {}) > _MAX_VALUES:  # before they are made, one by one
            raise ValueError(f"it stands for more than {_MAX_VALUES:,} values")
        values = yaml.load(found[1]) if found else None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{where}: the front matter of {CARD} cannot be read as YAML ({said}); {NO_HUB}") from error
    return values if isinstance(values, dict) else {}


def _count(node: Any, counts: dict[int, int]) -> int:
    """Return how many values a node of YAML stands for, itself among them and an alias's each time; `counts` are known.

    Raises:
        RecursionError: it is nested too deep, or in itself.
    """
    if id(node) not in counts:
        inner: Iterable[Any] = ()
        if isinstance(node, MappingNode):
            inner = itertools.chain.from_iterable(node.value)  # keys and values
        elif isinstance(node, SequenceNode):
            inner = node.value
        counts[id(node)] = 1 + sum(_count(each, counts) for each in inner)
    return counts[id(node)]


def chosen_files(
    names: Iterable[str], card: Mapping[str, Any], *, subset: str | None, split: str | None, where: str
) -> Chosen:
    """Return which of a dataset's files are those of `subset` and `split`; null: the default one.

    `card` is the front matter of the dataset's card, `where` names the dataset in errors.

    Raises:
        ConfigError: there is no such subset or split, or there are several and none is the default.
        DataError: there are no files that can be read.
    """
    names = sorted(names)
    readable = [name for name in names if _is_readable(name)]
    subsets = _configured(card, where)
    if subsets:
        subset = _chosen("subset", subset, subsets, default=_default_of(subsets), where=where)
        where = f"{where}, subset {subset}"
        splits = _splits_of(subsets[subset], readable, where)
    elif (folder := _folder_of(subset, readable, where)) is not None:
        splits = named_splits(_of_one_kind(readable, where, within=folder), within=folder)
    else:
        splits = named_splits(_of_one_kind(readable, where))
    if not readable or not splits:
        raise DataError(_nothing(names, where))
    split = _chosen("split", split, splits, default=_TRAIN if _TRAIN in splits else None, where=where)
    chosen = _of_one_kind(splits[split], where)
    if not chosen:
        raise DataError(_nothing(names, f"split {split} of {where}"))
    told = [f"subset {subset}"] if subset is not None and len(subsets) != 1 else []
    return Chosen(names=tuple(chosen), text=", ".join([*told, *([f"split {split}"] if len(splits) > 1 else [])]))


def _is_readable(name: str) -> bool:
    path = PurePosixPath(name)
    is_hidden = any(part.startswith((".", "__")) for part in path.parts)
    return kind_of(name) not in (None, TEXT_LIST) and not is_hidden and not _NO_DOCUMENTS.fullmatch(path.name)


def _configured(card: Mapping[str, Any], where: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the subsets that the card describes, by name, in order."""
    configs = card.get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise DataError(f"{where}: `configs` in {CARD} is {configs!r:.80}, need a list of subsets; {NO_HUB}")
    return {str(config.get("config_name", _DEFAULT)): config for config in configs}


def _default_of(subsets: Mapping[str, Mapping[str, Any]]) -> str | None:
    marked = next((name for name, config in subsets.items() if config.get("default") is True), None)
    return marked or (_DEFAULT if _DEFAULT in subsets else None)


def _splits_of(config: Mapping[str, Any], names: Sequence[str], where: str) -> _Splits:
    """Return the files of each split of a subset that the card describes."""
    folder = str(config.get("data_dir") or "").strip("./")
    if config.get("data_files") is None:
        return named_splits(_of_one_kind(names, where, within=folder), within=folder)
    patterns = _patterns_of(config["data_files"], where)
    return {
        split: _matching(names, (f"{folder}/{each}" if folder else each for each in patterns[split]))
        for split in patterns
    }


def _patterns_of(data_files: Any, where: str) -> dict[str, list[str]]:
    """Return the patterns of each split: `data_files` is one, a list of them, or has them by split."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        return {_TRAIN: entries}
    if isinstance(data_files, dict):
        entries = [{"split": split, "path": path} for split, path in data_files.items()]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise DataError(f"{where}: `data_files` in {CARD} has {entry!r:.80}, need a split and its path; {NO_HUB}")
        patterns.setdefault(str(entry.get("split", _TRAIN)), []).extend(paths)
    return patterns


def _matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that the patterns name, in the patterns' order, each once."""
    expressions = [_expression(pattern.removeprefix("./").lstrip("/")) for pattern in patterns]
    return list(dict.fromkeys(name for each in expressions for name in names if each.fullmatch(name)))


def _expression(pattern: str) -> re.Pattern[str]:
    """Return what a pattern means: `*` ends at a folder, `**` does not."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    in_words = (
        # A class of characters is the same in both, but for what negates it.
        re.sub(r"^\[!", "[^", piece) if place % 2 and piece[0] == "[" else meanings.get(piece, re.escape(piece))
        for place, piece in enumerate(pieces)
    )
    return re.compile("".join(in_words))


def _folder_of(subset: str | None, names: Sequence[str], where: str) -> str | None:
    """Return the folder of a subset that the card does not describe; None: all folders belong together.

    Raises:
        ConfigError: there is no such folder, or several could be meant.
    """
    if subset is not None:
        folders = (subset.strip("/"), f"data/{subset.strip('/')}")
        found = next((each for each in folders if any(name.startswith(f"{each}/") for name in names)), None)
        if found is not None or subset == _DEFAULT:
            return found
        return _chosen("subset", subset, _folders(names), default=None, where=where)
    folders_of_own = _folders_with_splits(_of_one_kind(names, where))
    if len(folders_of_own) < 2:
        return None
    default = _DEFAULT if _DEFAULT in folders_of_own else None
    return _chosen("subset", None, folders_of_own, default=default, where=where)


def _folders(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition("/")[0] for name in names if "/" in name})


def _folders_with_splits(names: Sequence[str]) -> list[str]:
    """Return the folders that hold all the files, if each tells apart splits of its own."""
    inside: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.partition("/")
        if not rest or folder == "data" or _keyword(folder):
            return []
        inside.setdefault(folder, []).append(rest)
    return sorted(inside) if all(any(map(_told_split, rest)) for rest in inside.values()) else []


def named_splits(names: Sequence[str], *, within: str = "") -> _Splits:
    """Return the files of each split that their names tell, seen from the folder `within`."""
    own = {name: name.removeprefix(f"{within}/") for name in names}
    shards = {name: found[1] for name in names if (found := _SHARD.fullmatch(own[name]))}
    told = shards or {name: split for name in names if (split := _told_split(own[name]))}
    splits: dict[str, list[str]] = {}
    for name, split in told.items():
        splits.setdefault(split, []).append(name)
    rest = [name for name in names if name not in told]
    return splits if _TRAIN in splits or not rest or shards else {_TRAIN: rest, **splits}


def _told_split(name: str) -> str | None:
    """Return the split that a file's folders tell, the nearest first, or else its own name."""
    *folders, own = name.split("/")
    return next((split for part in (*reversed(folders), own) if (split := _keyword(part))), None)


def _keyword(part: str) -> str | None:
    found = _KEYWORD.search(part)
    return _SPLIT_OF[found[1]] if found else None


def _chosen(key: str, wanted: str | None, found: Iterable[str], *, default: str | None, where: str) -> str:
    """Return the one `wanted`, or its usual name; without one the default, or the only one.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = list(found)
    usual = _SPLIT_OF.get(wanted or "") if key == "split" else None
    for each in (wanted, usual) if wanted is not None else (default, found[0] if len(found) == 1 else None):
        if each in found:
            return str(each)
    near = difflib.get_close_matches(wanted or "", found, n=1)
    listed = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    need = f"one of the {key}s of {where}: {listed}" if found else f"none: {where} has no {key}s"
    remedy = f"set it to the nearest, {near[0]}" if near else "set it to one of these" if found else "leave it out"
    raise ConfigError(f"data.{key}", found=wanted, need=need, remedy=remedy)


def _of_one_kind(names: Iterable[str], where: str, *, within: str = "") -> list[str]:
    """Return the files of parquet where there are some, else those of the kind that most files are.

    Texts count only where there is nothing else: a dataset often has notes beside it.

    Raises:
        DataError: there are as many of two kinds.
    """
    names = [name for name in names if not within or name.startswith(f"{within}/")]
    counts = Counter(kind_of(name) for name in names)
    if len(counts) > 1:
        del counts[TEXT]
    kinds = (
        [PARQUET] if PARQUET in counts else [kind for kind, count in counts.items() if count == max(counts.values())]
    )
    if len(kinds) > 1:
        which = " and ".join(sorted(map(str, kinds)))
        raise DataError(
            f"{where} has as many files of {which}: which are meant? Download them, and name those by a pattern in "
            "data.source"
        )
    return [name for name in names if kind_of(name) in kinds]


def _nothing(names: Sequence[str], where: str) -> str:
    """Say why a dataset has no files to read."""
    scripts = [name for name in names if name.endswith(".py") and "/" not in name]
    if scripts:
        return (
            f"{where} holds the program {scripts[0]}, which would load it, and no files of documents; programs are not "
            "run: set data.revision: refs/convert/parquet, where the hub keeps many such datasets as parquet files, "
            f"{NO_HUB}"
        )
    ends = Counter("".join(PurePosixPath(name).suffixes[-2:]) or "no ending" for name in names)
    listed = ", ".join(f"{end} ({count})" for end, count in ends.most_common(_SHOWN)) or "no file"
    return f"{where} has no files to read: {READABLE}; it holds {listed}; correct data.source, {NO_HUB}"

"""The blocks of an experiment file read as values of its config classes: every problem is noted, with its line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import cache
from types import NoneType
from typing import Any, get_type_hints

from gpt_pipeline.errors import ConfigError
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.document import Entry, Kind, Written
from gpt_pipeline.experiment.keys import default_of
from gpt_pipeline.experiment.problems import Problem, listed, nearest, one_line
from gpt_pipeline.experiment.values import (
    UNFIT,
    block_of,
    choices,
    named_block_of,
    need_of,
    read_value,
    remedy_for,
)
from gpt_pipeline.project import NOTIFY_CONFIG

RUNTIME = "runtime"  # the block that the pipeline writes; its content has no effect
_NOTHING = Written(kind=Kind.PLAIN, text="")
_STAND_INS = {
    int: 1,
    float: 1.0,
    str: "x",
}  # for a required value that is missing or wrong, so that its block is still checked


class Reading:
    """One pass over a file: its entries and its problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.entries: dict[str, Entry] = {}

    def block(self, config: Any, entries: Iterable[Entry], *, section: str, line: int | None) -> dict[str, Any]:
        """Return the values of a block by key; unusable ones are noted in `problems` and left out."""
        hints = _hints(config)
        given = self._known(entries, hints, section)
        given.pop(RUNTIME, None)
        read = {key: self._value(entry, hints[key], path=_join(section, key)) for key, entry in given.items()}
        values = {key: value for key, value in read.items() if value is not UNFIT}
        self._note_missing(config, given, section=section, line=line)
        sound = self._note_out_of_range(config, values, section=section, line=line) if section else values
        for key in read.keys() - values.keys():
            self._note_unfit(config, given[key], sound, path=_join(section, key))
        return values

    def problem_of(self, error: ConfigError, *, line: int | None = None) -> Problem:
        """Return `error`, whose key is a whole path, as a problem at the line that gives the key, or at `line`."""
        entry = self.entries.get(error.key)
        found = _Default(error.found) if entry is None else entry.value
        shown = ConfigError(error.key, found=found, need=error.need, remedy=error.remedy)
        return Problem(line=entry.line if entry else line, key=error.key, text=str(shown))

    def _known(self, entries: Iterable[Entry], hints: Mapping[str, Any], section: str) -> dict[str, Entry]:
        given: dict[str, Entry] = {}
        for entry in entries:
            path = _join(section, entry.key)
            if entry.key in given:
                text = f"{path}: found twice, first in line {given[entry.key].line}, need it once; remove one"
                self.problems.append(Problem(line=entry.line, key=path, text=text))
            elif entry.key in hints or path == RUNTIME:
                given[entry.key] = self.entries[path] = entry
            else:
                text = f"{one_line(path)}: {_unknown(entry.key, section, hints)}"
                self.problems.append(Problem(line=entry.line, key=path, text=text))
        return given

    def _value(self, entry: Entry, hint: Any, *, path: str) -> Any:
        config = block_of(hint)
        if entry.value.kind is Kind.BLOCK and _holds_names(hint):
            named = named_block_of(hint)
            return self._mapping(entry, path=path) if named is None else self._named_blocks(entry, named, path=path)
        if config is None:
            # A key without a value is a slip: the whole source may be hundreds of GB. Who means it writes `null`.
            is_slip = entry.value == _NOTHING and "all" in choices(hint)
            return UNFIT if is_slip else read_value(entry.value, hint)
        if entry.value.kind is not Kind.BLOCK:
            value = read_value(entry.value, hint)
            if value is not UNFIT or read_value(entry.value, NoneType) is UNFIT:
                return value
        count = len(self.problems)
        values = self.block(config, entry.block, section=path, line=entry.line)
        if len(self.problems) > count:
            return UNFIT
        value = config(**values)
        # A block that may be null as a whole is null when it says nothing.
        says_nothing = not _required(config) and value == config()
        return None if NoneType in choices(hint) and says_nothing else value

    def _mapping(self, entry: Entry, *, path: str) -> Any:
        count = len(self.problems)
        given = self._known(entry.block, dict.fromkeys((each.key for each in entry.block), str), path)
        values = {key: read_value(each.value, str) for key, each in given.items()}
        for key in (key for key, value in values.items() if value is UNFIT):
            found = given[key].value
            error = ConfigError(_join(path, key), found=found, need=need_of(str), remedy=remedy_for(found, str))
            self.problems.append(self.problem_of(error))
        return values if len(self.problems) == count else UNFIT

    def _named_blocks(self, entry: Entry, config: Any, *, path: str) -> Any:
        count = len(self.problems)
        given = self._known(entry.block, dict.fromkeys((each.key for each in entry.block), config), path)
        values = {key: self._value(each, config, path=_join(path, key)) for key, each in given.items()}
        for key in (key for key, value in values.items() if value is UNFIT):
            self._note_unfit_block(given[key], path=_join(path, key))
        return values if len(self.problems) == count else UNFIT

    def _note_missing(self, config: Any, given: Mapping[str, Entry], *, section: str, line: int | None) -> None:
        for key in (name for name in _required(config) if name not in given):
            path = _join(section, key)
            hint = _hints(config)[key]
            if block_of(hint):
                self.block(block_of(hint), (), section=path, line=None)
            else:
                text = f"{path}: missing, need {_need(config, key, {})}"
                self.problems.append(Problem(line=line, key=path, text=text))

    def _note_unfit(self, config: Any, entry: Entry, values: Mapping[str, Any], *, path: str) -> None:
        hint = _hints(config)[entry.key]
        if block_of(hint):
            self._note_unfit_block(entry, path=path)
            return
        if entry.value.kind is Kind.BLOCK and _holds_names(hint):
            return  # the problems inside the block are noted already
        error = ConfigError(
            path,
            found=entry.value,
            need=_need(config, entry.key, values),
            remedy=remedy_for(entry.value, hint) or _drop(config, entry),
        )
        self.problems.append(self.problem_of(error))

    def _note_unfit_block(self, entry: Entry, *, path: str) -> None:
        if entry.value.kind is Kind.BLOCK:
            return  # the problems inside the block are noted already
        remedy = "write one `key: value` a line, with a space after the colon"
        need = f"keys indented below `{entry.key}:`"
        self.problems.append(self.problem_of(ConfigError(path, found=entry.value, need=need, remedy=remedy)))

    def _note_out_of_range(
        self, config: Any, values: Mapping[str, Any], *, section: str, line: int | None
    ) -> dict[str, Any]:
        """Note each value that the config's own check refuses; return the others, and stand-ins for required ones."""
        sound = {**_stand_ins(config), **values}
        dropped: list[str] = []
        stand_ins = _stand_ins(config).keys() - values.keys()
        while (error := _construction_error(config, sound)) is not None:
            if error.key in stand_ins:
                break  # which no one wrote
            # A need that quotes a value just found wrong would mislead: it shows the default in that value's place.
            if not any(f"{key}=" in error.need for key in dropped):
                self.problems.append(self.problem_of(error.within(section), line=line))
            if error.key not in sound:
                break
            dropped.append(error.key)
            del sound[error.key]
            if error.key in _required(config):
                sound[error.key] = _stand_ins(config)[error.key]
                stand_ins = stand_ins | {error.key}
        return sound


def _holds_names(hint: Any) -> bool:
    """Whether the keys below a key are names that the file chooses."""
    return Mapping in choices(hint) or named_block_of(hint) is not None


class _Default:
    """A value that the file does not give; its `repr` is what an error shows as found."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"{self._value!r} (the default)"


@cache
def _hints(config: Any) -> dict[str, Any]:
    return get_type_hints(config, include_extras=True)  # which tell `Exact` from other text


@cache
def _required(config: type) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(config) if default_of(each) is dataclasses.MISSING)


def _stand_ins(config: Any) -> dict[str, Any]:
    taken = {key: choices(_hints(config)[key]) for key in _required(config)}
    return {key: next(_STAND_INS[each] for each in types if each in _STAND_INS) for key, types in taken.items()}


def refusal(config: Any, key: str, value: Any, *, beside: Mapping[str, Any] | None = None) -> ConfigError | None:
    """Return how the config class refuses `value` for `key`, beside these values of other keys; None if it does not."""
    error = _construction_error(config, {**_stand_ins(config), **(beside or {}), key: value})
    return error if error is not None and error.key == key else None


def _construction_error(config: Any, values: Mapping[str, Any]) -> ConfigError | None:
    try:
        config(**values)
    except ConfigError as error:
        return error
    return None


def _need(config: Any, key: str, values: Mapping[str, Any]) -> str:
    """Return what `key` takes, in the words of the config's own check where it has one.

    NaN, which is in no range, makes the check say so.
    """
    hint = _hints(config)[key]
    if {int, float} & set(choices(hint)) and config is not ExperimentConfig:
        error = refusal(config, key, math.nan, beside=values)
        if error is not None:
            return error.need
    return need_of(hint)


def _drop(config: Any, entry: Entry) -> str:
    if entry.value.kind is not Kind.PLAIN or entry.value.text or entry.key in _required(config):
        return ""
    default = next(default_of(each) for each in dataclasses.fields(config) if each.name == entry.key)
    return f"give a value, or remove the line for the default, {default}"


def _unknown(key: str, section: str, home: Mapping[str, Any]) -> str:
    """Return the text on an unknown key: the same key of another block, else the nearest key here, else elsewhere."""
    if key in ("notify", "notifications", "addresses") and not section:
        return f"unknown key: addresses are secrets; put them into {NOTIFY_CONFIG} beside dagster.yaml, and remove this"
    if key == "<<":
        return "unknown key: YAML 1.2 merges no blocks; write the keys out"
    blocks = {name: _hints(block_of(hint)) for name, hint in _hints(ExperimentConfig).items() if block_of(hint)}
    elsewhere = {name: block for block, keys in blocks.items() for name in keys if block != section}
    owners = [block for block, keys in blocks.items() if key in keys]
    if owners:
        return f"unknown key here, it belongs to {listed([f'`{owner}:`' for owner in owners])}; move it there"
    if near := nearest(key, home):
        return f"unknown key; did you mean {_join(section, near)}?"
    if near := nearest(key, elsewhere):
        return f"unknown key; did you mean {_join(elsewhere[near], near)}?"
    return f"unknown key, need one of {', '.join(home)}"


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key

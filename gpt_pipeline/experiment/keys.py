"""Every key of an experiment file with its type, default and text, read from the config classes.

The text is the docstring below the field. The schema, `gpt-pipeline init` and the reference in docs/ all use it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, get_type_hints

from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.values import block_of, choices

_LATE_BLOCKS = ("storage", "hardware")  # what is computed comes first, where it runs last


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a block, or of the file itself."""

    name: str
    block: str
    """The block's name; empty for a key of the file itself."""

    hint: Any
    """The Python type that `values.read_value` takes."""

    default: Any
    """`dataclasses.MISSING` for a required key."""

    text: str
    """What the key means, in full sentences."""

    owner: type
    """The class that checks the value."""

    @property
    def path(self) -> str:
        return f"{self.block}.{self.name}" if self.block else self.name

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of the file, such as `training:`."""

    name: str
    text: str
    keys: Sequence[Key]
    nullable: bool
    """Whether a file without the block means null rather than the block's defaults."""

    @property
    def required(self) -> bool:
        """Whether every file needs the block."""
        return not self.nullable and any(key.required for key in self.keys)


@cache
def file_keys() -> tuple[Key, ...]:
    """Return the keys of the file itself, without the blocks."""
    return tuple(key for key in _keys(ExperimentConfig, "") if not block_of(key.hint))


@cache
def blocks() -> tuple[Block, ...]:
    """Return the blocks in the order in which files have them."""
    hints = get_type_hints(ExperimentConfig)
    written = [name for name, hint in hints.items() if block_of(hint) and name not in _LATE_BLOCKS]
    return tuple(block_from(name, hints[name]) for name in (*written, *_LATE_BLOCKS))


def block_from(name: str, hint: Any) -> Block:
    """Return the block that the class in `hint` describes."""
    config = block_of(hint)
    return Block(
        name=name, text=_first_paragraph(config), keys=tuple(_keys(config, name)), nullable=NoneType in choices(hint)
    )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the value of a field that a file omits; `dataclasses.MISSING` if the file has to give it."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def plain(default: Any) -> Any:
    """Return the default of a key as YAML and JSON say it: that of a block within a block by its keys."""
    return dataclasses.asdict(default) if dataclasses.is_dataclass(type(default)) else default


def _keys(config: Any, block: str) -> list[Key]:
    hints, texts = get_type_hints(config), _field_texts(config)
    return [
        Key(
            name=each.name,
            block=block,
            hint=hints[each.name],
            default=default_of(each),
            text=texts.get(each.name, ""),
            owner=config,
        )
        for each in dataclasses.fields(config)
    ]


def _field_texts(config: Any) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, those of the classes that it extends among them."""
    texts: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        texts |= _own_field_texts(owner)
    return texts


def _own_field_texts(config: type) -> dict[str, str]:
    """Return the docstring below each field that the class defines. Python keeps none, so this reads the source."""
    [definition] = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            texts[field.target.id] = " ".join(below.value.value.split())
    return texts


def _first_paragraph(config: Any) -> str:
    return " ".join((inspect.getdoc(config) or "").partition("\n\n")[0].split())

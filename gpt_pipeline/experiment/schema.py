"""The JSON Schema of experiment files: it gives editors completion, hints and marked mistakes.

Only the loader decides whether a file is valid. The schema says the same as far as JSON Schema can, which excludes
conditions between two keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from gpt_pipeline.experiment.keys import Block, Key, block_from, blocks, file_keys, plain
from gpt_pipeline.experiment.reading import RUNTIME, refusal
from gpt_pipeline.experiment.values import block_of, choices, named_block_of
from gpt_pipeline.storage.atomic import atomic_path, fsync_file

SCHEMA_FILE = "experiment.schema.json"
EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""First line of an experiment file: where the editor finds the schema, beside the file."""

_TYPES: dict[Any, str] = {
    NoneType: "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    tuple: "array",
    Mapping: "object",
}
_OTHER_KEY = re.compile(r"(\w+)=\S*\w")  # `n_head=12` in a need is that key's value of the moment


def experiment_schema() -> dict[str, Any]:
    """Return the schema, in draft 7, which editors support best."""
    properties = {key.name: _property(key) for key in file_keys()}
    properties |= {block.name: _block(block) for block in blocks()}
    properties[RUNTIME] = {
        "type": ["object", "null"],
        "description": "Written by gpt-pipeline for your information; editing it has no effect.",
    }
    required = [key.name for key in file_keys() if key.required] + [block.name for block in blocks() if block.required]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "gpt_pipeline experiment",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the schema as the text of `experiment.schema.json`."""
    return json.dumps(experiment_schema(), indent=2, ensure_ascii=False) + "\n"


def place_schema(folder: Path) -> Path:
    """Write the schema of this version into `folder`, unless it is there already; return its path."""
    path, text = folder / SCHEMA_FILE, schema_text()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            fsync_file(temporary)
    return path


def need_in_words(key: Key) -> str:
    """Return the range of a number in the words of the key's class; empty if the class takes any number."""
    numeric = {int, float} & set(choices(key.hint))
    error = refusal(key.owner, key.name, float("nan")) if numeric and key.block else None
    return _OTHER_KEY.sub(r"`\1`", error.need) if error is not None else ""


def _block(block: Block) -> dict[str, Any]:
    return {
        "type": "object" if block.required else ["object", "null"],
        "description": block.text,
        "properties": {key.name: _property(key) for key in block.keys},
        "required": [key.name for key in block.keys if key.required],
        "additionalProperties": False,
    }


def _property(key: Key) -> dict[str, Any]:
    need = need_in_words(key)
    described = {"description": f"{key.text} Takes {need}." if need else key.text}
    default = {} if key.required else {"default": plain(key.default)}
    if (named := named_block_of(key.hint)) is not None:
        blocks_of_keys = _block(block_from(key.path, named))
        return {"type": ["object", "null"], "additionalProperties": blocks_of_keys, **described, **default}
    values = _block_values(key) if block_of(key.hint) else _values(key)
    return {**values, **described, **default}


def _block_values(key: Key) -> dict[str, Any]:
    """Return the part of a property that says which keys a block inside a block takes, or that a text does instead."""
    own = _block(block_from(key.path, key.hint))
    return {"anyOf": [{"type": "string"}, own]} if str in choices(key.hint) else own


def _values(key: Key) -> dict[str, Any]:
    """Return the part of a property that says which values it takes."""
    taken = choices(key.hint)
    types = [_TYPES[choice] for choice in taken if choice in _TYPES]
    words = [choice for choice in taken if choice not in _TYPES]
    bounds = _bounds(key) if {int, float} & set(taken) else {}
    if Mapping in taken:
        bounds["additionalProperties"] = {"type": "string"}
    if tuple in taken:
        bounds["items"] = {"type": "string"}
    if not words:
        return {"type": types[0] if len(types) == 1 else types, **bounds}
    if not types:
        return {"enum": words}
    return {"anyOf": [{"type": types, **bounds}, {"enum": words}]}


def _bounds(key: Key) -> dict[str, Any]:
    """Return the range of a number, found by giving values to the key's class."""
    if not key.block:
        return {}
    if (
        isinstance(key.default, int | float)
        and key.default
        and all(_refuses(key, key.default * factor) for factor in (0.5, 2))
    ):
        return {"const": key.default}
    whole = int in choices(key.hint)
    return {**_lower(key, whole=whole), **({} if whole else _upper(key))}


def _lower(key: Key, *, whole: bool) -> dict[str, Any]:
    if not _refuses(key, -1):
        return {}
    if not _refuses(key, 0):
        return {"minimum": 0}
    if not whole:
        return {"exclusiveMinimum": 0}
    return {"minimum": next((value for value in (1, 2) if not _refuses(key, value)), 1)}


def _upper(key: Key) -> dict[str, Any]:
    for limit in (0.5, 1):
        # If the class refuses values below the limit too, another key bounds this one.
        if _refuses(key, limit * 1.001) and not _refuses(key, limit * 0.999):
            return {"exclusiveMaximum": limit} if _refuses(key, limit) else {"maximum": limit}
    return {}


def _refuses(key: Key, value: float) -> bool:
    return refusal(key.owner, key.name, value) is not None

"""Experiment files as text: a recipe's values with their reasons and, on request, every other key as a comment."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpt_pipeline.experiment.keys import Block, Key, blocks, file_keys, plain
from gpt_pipeline.experiment.recipes import Recipe, Value
from gpt_pipeline.experiment.schema import EDITOR_LINE

_WIDTH = 120
_COMMENT_COLUMN = 34  # the comments of a block are aligned, at most here
_PLAIN = re.compile(r"[A-Za-z./][A-Za-z0-9 ./_+-]*(?<! )")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # not texts to some readers of YAML


@dataclass(frozen=True, kw_only=True)
class _Line:
    code: str
    comment: str


def render(recipe: Recipe, *, every_key: bool = False) -> str:
    """Return the recipe as an experiment file.

    With `every_key`, the keys that the recipe leaves out appear as comments, with their defaults and meanings.
    """
    name, *others = file_keys()
    head = [EDITOR_LINE, *(f"# {line}" for line in recipe.about.splitlines()), f"{name.name}: {written(recipe.title)}"]
    if every_key:
        head += [line.removeprefix("  ") for line in _aligned([_default(key, "# ") for key in others])]
    parts = ["\n".join(head)]
    for block in blocks():
        lines = list(_lines(block, recipe, every_key=every_key))
        if lines:
            note = [f"# {block.text}"] if every_key else []
            text = "\n".join([f"{block.name}:", *_aligned(lines)])
            parts.append("\n".join([*note, textwrap.indent(text, "# ") if _is_off(block, recipe) else text]))
    return "\n\n".join(parts) + "\n"


def written(value: Value | Mapping[str, str] | tuple[str, ...]) -> str:
    """Return a value as YAML, quoted where a reader could take it for something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(name)}: {written(text)}" for name, text in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if not isinstance(value, str):
        return str(value)
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else _quoted(value)


def _quoted(value: str) -> str:
    if _CONTROL.search(value) is None:
        return "'" + value.replace("'", "''") + "'"
    quoted = json.dumps(value, ensure_ascii=False)  # double quotes of YAML are made after those of JSON
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _lines(block: Block, recipe: Recipe, *, every_key: bool) -> Iterator[_Line]:
    chosen = [path for path in recipe.values if path.split(".")[0] == block.name]
    keys = {key.path: key for key in block.keys}
    for path in chosen:
        value, reason = recipe.values[path]
        text = reason or (keys[path].text if every_key else "")
        yield _Line(code=f"  {keys[path].name}: {written(value)}", comment=text)
    if every_key:
        mark = "" if _is_off(block, recipe) else "# "
        yield from (_default(key, mark) for path, key in keys.items() if path not in recipe.values)


def _is_off(block: Block, recipe: Recipe) -> bool:
    """Whether the block is a comment as a whole, because naming it without a value would mean something else."""
    return block.nullable and not any(path.startswith(f"{block.name}.") for path in recipe.values)


def _default(key: Key, mark: str) -> _Line:
    return _Line(
        code=f"  {mark}{key.name}:" + ("" if key.required else f" {written(plain(key.default))}"), comment=key.text
    )


def _aligned(lines: Sequence[_Line]) -> Iterator[str]:
    """Yield the lines with their comments in one column; a comment that is too long goes above its line."""
    column = min(_COMMENT_COLUMN, max(len(line.code) for line in lines) + 2)
    for line in lines:
        beside = f"{line.code.ljust(column - 2)}  # {line.comment}"
        if not line.comment:
            yield line.code
        elif len(beside) <= _WIDTH:
            yield beside
        else:
            yield from textwrap.wrap(line.comment, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")
            yield line.code

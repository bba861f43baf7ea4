"""The `runtime:` block of an experiment file: what the pipeline found out, written back for the user to read.

Only the block changes; every other byte of the file is the user's and stays.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.config import ExperimentConfig
from gpt_pipeline.experiment.document import BYTE_ORDER_MARK, Entry, compose, read_document, read_text
from gpt_pipeline.experiment.reading import RUNTIME
from gpt_pipeline.experiment.sizes import TrainingSize
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.storage.atomic import atomic_path, fsync_file

RuntimeValue = int | float | str | bool | None
_COMMENT = "written by gpt-pipeline for you to read; changing it changes nothing"
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")
_ATTEMPTS = 5  # each is lost only if the file is edited within the same few milliseconds


class _EditedMeanwhileError(Exception):
    """The file changed between being read and being replaced."""


def runtime_values(
    config: ExperimentConfig, shards_facts: Mapping[str, Any], size: TrainingSize
) -> dict[str, int | float]:
    """Return what the `runtime:` block tells of an experiment of this size whose shards have these facts."""
    parameters = parameter_count(config.model)
    return {
        "parameters": parameters,
        "trainable_parameters": parameters,
        "tokens_per_epoch": size.tokens_per_epoch,
        "batches_per_epoch": size.steps_per_epoch,
        "iterations": size.layout.max_steps,
        "tokens_per_batch": size.layout.tokens_per_step,
        "average_tokens_per_sample": round(float(shards_facts["tokens_per_document"]), 2),
    }


def write_runtime(path: Path, values: Mapping[str, RuntimeValue]) -> bool:
    """Put `values` into the `runtime:` block of the experiment file; return whether the file had to change.

    An edit that lands while this runs is kept: the file is read again right before it is replaced.

    Raises:
        UserError: the file cannot be written, is not the YAML of an experiment, or is edited without pause.
    """
    target = path.resolve()  # a link stays a link; what it points at is replaced
    for _ in range(_ATTEMPTS):
        text = read_text(path)
        changed = with_runtime(path, text, values)
        if changed == text:
            return False
        try:
            _replace(target, text, changed)
        except _EditedMeanwhileError:
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{path}: cannot write the `{RUNTIME}:` block: {reason}; make the file writable") from error
        return True
    raise UserError(f"{path}: cannot write the `{RUNTIME}:` block: the file keeps changing; run again when it rests")


def with_runtime(path: Path, text: str, values: Mapping[str, RuntimeValue]) -> str:
    """Return `text`, which stands in `path`, with the block replaced, or added at its end.

    Raises:
        UserError: a file whose form leaves no place for the block, such as one mapping in braces.
    """
    before = read_document(path, text)
    root = compose(path, text)
    indent = root.start_mark.column if isinstance(root, MappingNode) else 0
    start, end = _block_range(text, root, indent)
    line_end = "\r\n" if "\r\n" in text else "\n"
    lead = _lead(text, line_end) if start == end else ""
    changed = text[:start] + lead + _block(values, indent=indent, line_end=line_end) + text[end:]
    if not _holds(path, changed, before, values):
        raise UserError(
            f"{path}: cannot write the `{RUNTIME}:` block without touching the rest of the file; "
            "write each block as `name:` at the start of a line, with its keys indented below, and no `...` at the end"
        )
    return changed


def without_runtime(path: Path, text: str) -> str:
    """Return `text`, which stands in `path`, without the block and the empty line before it."""
    root = compose(path, text)
    start, end = _block_range(text, root, root.start_mark.column if isinstance(root, MappingNode) else 0)
    line_end = "\r\n" if "\r\n" in text else "\n"
    return text if start == end else text[:start].removesuffix(line_end) + text[end:]


def _block_range(text: str, root: Node | None, indent: int) -> tuple[int, int]:
    """Return where the block stands in `text`; an empty range at the end when there is none."""
    skipped = len(text) - len(text.removeprefix(BYTE_ORDER_MARK))  # marks count from after it
    keys = [key for key, _ in root.value if isinstance(key, ScalarNode)] if isinstance(root, MappingNode) else []
    start = next((skipped + key.start_mark.index - indent for key in keys if key.value == RUNTIME), None)
    if start is None:
        return len(text), len(text)
    return start, _block_end(text, start, indent)


def _block_end(text: str, start: int, indent: int) -> int:
    """Return where the last line ends that is indented below the one at `start`; comments after it are the user's."""
    end = start
    for line in _LINE.finditer(text, start):
        content = line.group().lstrip()
        if not content or content.startswith("#"):
            continue
        if line.start() > start and len(line.group()) - len(content) <= indent:
            break
        end = line.end()
    return end


def _lead(text: str, line_end: str) -> str:
    """Return what sets the block off from the text before it: an empty line, after an end to the last one."""
    return line_end if text.endswith(("\n", "\r")) else 2 * line_end


def _block(values: Mapping[str, RuntimeValue], *, indent: int, line_end: str) -> str:
    lines = [f"{RUNTIME}:  # {_COMMENT}", *(f"  {_key(key)}: {_scalar(value)}" for key, value in values.items())]
    return "".join(f"{' ' * indent}{line}{line_end}" for line in lines)


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"runtime key {key!r} must be lower-case letters, digits and underscores")
    return key


def _scalar(value: RuntimeValue) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"runtime value {value!r} must be finite")
    return json.dumps(value, ensure_ascii=True)  # JSON's scalars are YAML's


def _holds(path: Path, text: str, before: tuple[Entry, ...], values: Mapping[str, RuntimeValue]) -> bool:
    """Whether `text` says what `before` said, and `values` in its runtime block."""
    try:
        after = read_document(path, text)
    except UserError:
        return False
    block = next((entry.block for entry in after if entry.key == RUNTIME), ())
    written = {entry.key: entry.value.text for entry in block}
    expected = {key: value if isinstance(value, str) else _scalar(value) for key, value in values.items()}
    return _without_runtime(after) == _without_runtime(before) and written == expected


def _without_runtime(entries: tuple[Entry, ...]) -> list[Entry]:
    # Lines below a block that grew have other numbers and the same content.
    return [_unnumbered(entry) for entry in entries if entry.key != RUNTIME]


def _unnumbered(entry: Entry) -> Entry:
    return Entry(key=entry.key, line=0, value=entry.value, block=tuple(map(_unnumbered, entry.block)))


def _replace(path: Path, expected: str, text: str) -> None:
    """Replace the content of `path`, keeping its mode, if it still is `expected`."""
    if not os.access(path, os.W_OK):
        raise PermissionError(None, "the file is read-only")
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
        shutil.copymode(path, temporary)
        fsync_file(temporary)  # before the last look, so that little happens between it and the rename
        if path.read_bytes() != expected.encode("utf-8"):
            raise _EditedMeanwhileError

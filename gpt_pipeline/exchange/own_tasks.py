"""What benchmark tasks of one's own are made of: the files in their folder, and those that they name elsewhere."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gpt_pipeline.storage.atomic import sha256_of

_TASKS = (".yaml", ".yml")
_INCLUDE = "include"  # names other task files, from the folder of the one that has it
_DOCUMENTS = ("dataset_path", "dataset_kwargs")  # name documents, from the working directory


def own_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file that the tasks in `folder` are made of: by its path there, elsewhere by a number.

    Documents of the hub, and what the tasks' own code reads, are not among them.
    """
    folder = folder.resolve()
    names = {path: path.relative_to(folder).as_posix() for path in _files_in(folder)}
    waiting = [path for path in names if path.suffix in _TASKS]
    for task in waiting:
        for path in _files_named_in(task):
            if path not in names:
                names[path] = f"elsewhere {len(names)}"
                waiting += [path] if path.suffix in _TASKS else []
    return {name: sha256_of(path) for path, name in names.items()}


def _files_in(folder: Path) -> list[Path]:
    """Return the files in the folder and below it, but for hidden ones and what Python has compiled."""
    paths = ((path, path.relative_to(folder).parts) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path, parts in paths if not any(part.startswith((".", "__pycache__")) for part in parts))


def _files_named_in(task: Path) -> Iterator[Path]:
    """Yield the files that a task file names, and those in the folders that it names."""
    try:
        top = YAML(typ="safe", pure=True).compose(task)  # unlike loading, it knows every tag, such as `!function`
    except (YAMLError, UnicodeDecodeError):
        return  # the harness names it, if it is one of the tasks that are asked for
    for key, text in _texts(top):
        pattern = glob.escape(str(task.parent / text)) if key == _INCLUDE else os.path.expanduser(text)
        for found in sorted(glob.glob(pattern, recursive=True)):
            path = Path(found).resolve()
            yield from _files_in(path) if path.is_dir() else [path]


def _texts(node: Node | None, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts that stand below keys which name files, each with that key."""
    if isinstance(node, MappingNode):
        for name, value in node.value:
            yield from _texts(value, key or (name.value if name.value in (_INCLUDE, *_DOCUMENTS) else ""))
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from _texts(value, key)
    elif isinstance(node, ScalarNode) and key and node.value:
        yield key, node.value

"""Changes to the text of an experiment file, value by value; comments, order and every other byte stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.document import BYTE_ORDER_MARK, Entry, Kind, Written, compose, read_document


def with_value(path: Path, text: str, key: str, written: str) -> str:
    """Return `text`, which stands in `path`, with `written`, YAML in one line, as the value of `key` (a whole path).

    A key that is not there is added at the end of its block, a block that is not there at the end of the file.

    Raises:
        UserError: the text's form leaves no place for the value, such as one that is an alias.
    """
    root = compose(path, text.removeprefix(BYTE_ORDER_MARK))
    mark = text[: len(text) - len(text.removeprefix(BYTE_ORDER_MARK))]
    changed = mark + _changed(text.removeprefix(mark), root, key.split("."), written)
    if not _differ_only_in(path, key, text, changed):
        raise UserError(
            f"{path}: {key}: cannot set it to {written} without touching the rest of the file; write each block as "
            "`name:` at the start of a line, its keys indented below, and no aliases"
        )
    return changed


def _changed(text: str, root: Node | None, keys: list[str], written: str) -> str:
    assert isinstance(root, MappingNode)  # an experiment was read from the text
    block = root
    for place, name in enumerate(keys):
        pair = _pair_of(block, name)
        rest = keys[place + 1 :]
        if pair is None:
            return _added(text, block, name, _nested(rest, written))
        key, node = pair
        if not rest or not isinstance(node, MappingNode):
            return _replaced(text, key, node, _nested(rest, written))
        block = node
    raise AssertionError("a key has at least one part")


def _pair_of(block: MappingNode, name: str) -> tuple[Node, Node] | None:
    return next((pair for pair in block.value if isinstance(pair[0], ScalarNode) and pair[0].value == name), None)


def _nested(keys: Iterable[str], written: str) -> str:
    for key in reversed([*keys]):
        written = f"{{{key}: {written}}}"
    return written


def _replaced(text: str, key: Node, node: Node, written: str) -> str:
    start, end = node.start_mark.index, _end(node)
    if start < end:
        end = start + len(text[start:end].rstrip())  # the mark of a text over several lines stands behind its line end
        return f"{text[:start]}{written}{text[end:]}"
    place = text.index(":", key.end_mark.index) + 1  # a key without a value, whose mark stands at what follows
    return f"{text[:place]} {written}{text[place:]}"


def _added(text: str, block: MappingNode, name: str, written: str) -> str:
    if block.flow_style:
        start = block.start_mark.index + 1
        return f"{text[:start]}{name}: {written}{', ' if block.value else ''}{text[start:]}"
    line_end = "\r\n" if "\r\n" in text else "\n"
    end = _end(block)
    place = end if text[end - 1 : end] == "\n" else text.find("\n", end) + 1
    lead = "" if place else line_end  # the last line has no end
    place = place or len(text)
    column = block.value[0][0].start_mark.column
    return f"{text[:place]}{lead}{' ' * column}{name}: {written}{line_end}{text[place:]}"


def _end(node: Node) -> int:
    """Return where a value ends; ruamel's own mark of a block stands after the comments that follow it."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, MappingNode) else last)
    return int(node.end_mark.index)


def _differ_only_in(path: Path, key: str, before: str, after: str) -> bool:
    """Whether both texts say the same but for `key`, which the second has, and what is below it."""
    try:
        old, new = (dict(_flat(read_document(path, text))) for text in (before, after))
    except UserError:  # what was replaced held something that the rest needs
        return False
    blocks = {key[:place] for place, letter in enumerate(key) if letter == "."}  # without a block before, or null
    rest = [
        {name: value for name, value in each.items() if not f"{name}.".startswith(f"{key}.") and name not in blocks}
        for each in (old, new)
    ]
    return rest[0] == rest[1] and key in new


def _flat(entries: Iterable[Entry], section: str = "") -> Iterator[tuple[str, Written]]:
    for entry in entries:
        path = f"{section}{entry.key}"
        if entry.block:
            yield from _flat(entry.block, f"{path}.")
        elif entry.value.kind is not Kind.BLOCK:
            yield path, entry.value

"""An experiment file as it is written: blocks, keys and values with their lines, before they are interpreted.

ruamel.yaml only scans and composes the file here and never constructs values: the key decides in `values.py` whether a
text is a number, a boolean or a text. So no tag runs code, and no resolver turns `017` into 15.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from gpt_pipeline.experiment.problems import ExperimentFileError, Problem, nearest, quoted

BYTE_ORDER_MARK = "\ufeff"
SUFFIXES = (".yaml", ".yml")
_MAX_BYTES = 1_000_000  # an experiment file has a few hundred; a larger one is something else
_MAX_REPEATED = 10_000  # values behind aliases: a text of a few hundred bytes can stand for more than memory holds
_DEPTH = 4  # down to the columns of a part of `data.mix`
_FOLD = "\a"  # where ruamel notes that a folded text (`>`) has a line end
_TAG = "tag:yaml.org,2002:"
_CORE_TAGS = {
    _TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value")
}
_HINTS = {
    "found character '\\t'": "indent with spaces, not with tabs",
    "found character": "put text that starts with this character in single quotes",
    "expected chomping": "put text that starts with `>` or `|` in single quotes",
    "unknown escape character": "write a Windows folder in single quotes: 'E:\\folder'",
    "escape sequence": "write a Windows folder in single quotes: 'E:\\folder'",
    "mapping values are not allowed": "check the indentation and the space after each colon, and quote text with `: `",
    "expected ':'": "write `key: value`, with a space after the colon",
    "expected <block end>": "give the keys of one block the same indentation",
    "another document": "keep one experiment in a file; remove the second `---`",
    "end of stream": "close the quote",
    "stream end": "close the bracket",
    "undefined alias": "put text that starts with `*` in single quotes",
}


class Kind(Enum):
    """The form in which a value is written."""

    PLAIN = auto()
    QUOTED = auto()
    LIST = auto()
    BLOCK = auto()


@dataclass(frozen=True, kw_only=True, repr=False)
class Written:
    """A value as it stands in the file; its `repr` is what an error shows as found."""

    kind: Kind
    text: str = ""
    """Without the quotes; empty for a list or a block."""

    items: tuple[Written, ...] = ()
    """Of a list."""

    def __repr__(self) -> str:
        if self.kind is Kind.LIST:
            return "a list"
        if self.kind is Kind.BLOCK:
            return "a block of keys"
        if self.kind is Kind.PLAIN and not self.text:
            return "nothing"
        plain_number = self.kind is Kind.PLAIN and self.text.lstrip("+-.")[:1].isdigit()
        return self.text if plain_number and len(self.text) < 40 else quoted(self.text)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One `key: value` of the file."""

    key: str
    line: int
    value: Written
    block: tuple[Entry, ...] = ()
    """The keys below it, when the value is a block; below a block's own block they are not read."""


def read_text(path: Path) -> str:
    """Return the text of an experiment file with its line ends, and its byte order mark if it has one.

    Raises:
        ExperimentFileError: no such file (names the nearest one), a folder, too large, not UTF-8.
    """
    try:
        if path.is_dir():
            raise _broken(path, "this is a folder; name a YAML file in it")
        if path.stat().st_size > _MAX_BYTES:
            raise _broken(path, f"found {path.stat().st_size} bytes; an experiment file is a YAML text of a few lines")
        return _decode(path, path.read_bytes())
    except FileNotFoundError:
        if path.is_symlink():
            text = f"this is a link to {os.readlink(path)}, and there is no such file; mend the link, or remove it"
            raise _broken(path, text) from None
        raise _broken(path, f"no such file{_nearest_file(path)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ExperimentFileError):
            raise
        raise _broken(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_document(path: Path, text: str) -> tuple[Entry, ...]:
    """Return the top-level entries of `text`, which stands in `path`.

    Raises:
        ExperimentFileError: not YAML, empty, or no block of keys.
    """
    root = compose(path, text)
    if root is None:
        raise _broken(path, "the file is empty; start with `experiment_name:`, `data:` and `storage:`")
    if not isinstance(root, MappingNode):
        found = "a list" if not isinstance(root, ScalarNode) else quoted(root.value)
        raise _broken(path, f"found {found}, need `key: value` lines; start with `experiment_name:`", line=_line(root))
    return _entries(path, root, depth=0)


def compose(path: Path, text: str) -> Node | None:
    """Return the YAML node of the whole file; None for a file of nothing but comments. Marks count from after the BOM.

    Raises:
        ExperimentFileError: not YAML; says where and, for the usual slips, what to do. Or its aliases have no end, or
            stand for too much.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML 1.2 allows it; a Python warning would not help the user
    try:
        node: Node | None = yaml.compose(text.removeprefix(BYTE_ORDER_MARK))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _broken(
            path, f"character {chr(error.character)!r} is not allowed in YAML; remove it", line=line
        ) from None
    except MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except (YAMLError, RecursionError, ValueError) as error:  # ValueError: ruamel on, say, an escape beyond Unicode
        raise _broken(path, f"not a YAML file: {str(error).splitlines()[0]}") from None
    if node is not None:
        _refuse_explosion(path, node)
    return node


def _refuse_explosion(path: Path, root: Node) -> None:
    counts: dict[int, int] = {}
    repeated = _count(path, root, counts) - len(counts)
    if repeated > _MAX_REPEATED:
        text = f"found aliases (`*name`) that repeat {repeated:,} values, need at most {_MAX_REPEATED:,}"
        raise _broken(path, f"{text}; write out what is needed of them")


def _count(path: Path, node: Node, counts: dict[int, int]) -> int:
    """Return how many values `node` stands for, itself among them and those of aliases each time.

    `counts` has it of each node by its `id`; 0 while it is being counted.
    """
    if id(node) not in counts:
        counts[id(node)] = 0
        counts[id(node)] = 1 + sum(_count(path, each, counts) for each in _below(node))
    if counts[id(node)] == 0:
        text = "an alias (`*name`) leads back to the value that it stands in; write out what is meant"
        raise _broken(path, text, line=_line(node))
    return counts[id(node)]


def _below(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _entries(path: Path, node: MappingNode, *, depth: int) -> tuple[Entry, ...]:
    return tuple(_entry(path, key, value, depth=depth) for key, value in node.value)


def _entry(path: Path, key: Node, value: Node, *, depth: int) -> Entry:
    name = key.value if isinstance(key, ScalarNode) else "?"
    block = _entries(path, value, depth=depth + 1) if isinstance(value, MappingNode) and depth < _DEPTH else ()
    return Entry(key=name, line=_line(key), value=_written(path, value), block=block)


def _written(path: Path, node: Node) -> Written:
    if str(node.tag) not in _CORE_TAGS:
        raise _broken(path, f"found the tag {quoted(str(node.tag))}; remove it, or quote the value", line=_line(node))
    if isinstance(node, SequenceNode):
        return Written(kind=Kind.LIST, items=tuple(_written(path, item) for item in node.value))
    if not isinstance(node, ScalarNode):
        return Written(kind=Kind.BLOCK)
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _broken(path, f"found {quoted(node.value)}, with half of a character; write all of it", line=_line(node))
    text = node.value.replace(_FOLD, "") if node.style == ">" else node.value
    return Written(kind=Kind.QUOTED if node.style else Kind.PLAIN, text=text)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _decode(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _broken(path, "the file is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise _broken(path, f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8", line=line) from None


def _syntax_error(path: Path, error: MarkedYAMLError) -> ExperimentFileError:
    problem = " ".join(str(error.problem or error.context).split()).removeprefix("but ")
    unclosed = (
        "end of stream" in problem or "stream end" in problem
    )  # found at the end, but the mistake is where it opened
    mark = error.context_mark if unclosed and error.context_mark else error.problem_mark
    line = mark.line + 1 if isinstance(mark, StringMark) else None
    hint = next((hint for part, hint in _HINTS.items() if part in problem), "")
    return _broken(path, "; ".join(filter(None, [f"not valid YAML: {problem}", hint])), line=line)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    files = {file.stem: file for file in path.parent.iterdir() if file.suffix in SUFFIXES}
    found = nearest(path.stem, files)
    return f"; did you mean {files[found]}?" if found else ""


def _broken(path: Path, text: str, *, line: int | None = None) -> ExperimentFileError:
    return ExperimentFileError(path, [Problem(line=line, key="", text=text)])

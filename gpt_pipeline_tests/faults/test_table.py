"""`docs/faults.md` and `docs/clusters.md` name tests that exist, and the first every test of this folder."""

import ast
import re
from pathlib import Path

_FOLDER = Path(__file__).parent
_TESTS = _FOLDER.parent
_DOCS = _TESTS.parent / "docs"
_TABLES = (_DOCS / "faults.md", _DOCS / "clusters.md")
_OF_MIRRORS = _DOCS / "object_storage.md"


def _rows() -> list[list[str]]:
    """The cells of each fault: what it is, what happens, its tests."""
    texts = [table.read_text(encoding="utf-8") for table in _TABLES]
    texts.append(_OF_MIRRORS.read_text(encoding="utf-8").partition("\n## Faults")[2].partition("\n## ")[0])
    lines = [line for text in texts for line in text.splitlines()]
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| **", "| fault"))]
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]


def _named() -> list[str]:
    return [f"test_{name}" for row in _rows() for name in re.findall(r"`(\w+)`", row[2])]


def _defined(folder: Path) -> set[str]:
    """The tests that pytest collects below `folder`."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("test_*.py")]
    functions = [each.name for module in modules for each in module.body if isinstance(each, ast.FunctionDef)]
    return {name for name in functions if name.startswith("test_")}


def test_each_fault_of_the_table_has_a_test_that_exists() -> None:
    assert all(len(row) == 3 and re.search(r"`\w+`", row[2]) for row in _rows())
    assert set(_named()) - _defined(_TESTS) == set()


def test_each_test_of_a_fault_is_in_the_table() -> None:
    own = {"test_each_fault_of_the_table_has_a_test_that_exists", "test_each_test_of_a_fault_is_in_the_table"}
    assert _defined(_FOLDER) - own - set(_named()) == set()

"""Run the tests that belong to what has changed: `python -m gpt_pipeline_tests.changed`, a part of `make check`.

Changed is what `git` sees as not committed, and what is committed but not yet upstream. A test file belongs to it if it
is changed itself, or imports a changed module by name; those that run the whole product are left to `make test`. So it
is a look of a minute while one works, and `make test` is the proof.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import grimp

ROOT = Path(__file__).resolve().parent.parent
TESTS = "gpt_pipeline_tests"


def main() -> int:
    """Run them, if there are any; return pytest's exit code."""
    tests = sorted(tests_of(changed_modules()))
    if not tests:
        print("no test belongs to what has changed")
        return 0
    print("tests of what has changed:", *(name.removeprefix(f"{TESTS}.") for name in tests))
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in tests]
    workers = ["-n", "2", "--dist", "loadfile"] if len(files) > 1 else []
    return subprocess.run([sys.executable, "-m", "pytest", *workers, *files], cwd=ROOT, check=False).returncode


def changed_modules() -> set[str]:
    """Return the names of the Python modules that differ from upstream."""
    paths = [PurePosixPath(line) for line in changed_files()]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths if path.suffix == ".py"}


def changed_files() -> Iterator[str]:
    yield from _git("diff", "--name-only", "HEAD")
    yield from _git("ls-files", "--others", "--exclude-standard")
    upstream = _git("rev-parse", "--verify", "--quiet", "@{upstream}", check=False)
    if upstream:
        yield from _git("diff", "--name-only", f"{upstream[0]}...HEAD")


def tests_of(modules: set[str]) -> set[str]:
    """Return the test modules among `modules`, and those that import one of them."""
    graph = grimp.build_graph("gpt_pipeline", TESTS)
    known = modules & graph.modules
    importers = {importer for module in known for importer in graph.find_modules_that_directly_import(module)}
    lengthy = graph.find_modules_that_directly_import(f"{TESTS}.projects")
    return {name for name in (known | importers) - lengthy if name.startswith(f"{TESTS}.test_")}


def _git(*arguments: str, check: bool = True) -> list[str]:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=check)
    return found.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())

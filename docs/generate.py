"""Write the files that follow from the code: `make docs`.

    python docs/generate.py            write the files that differ
    python docs/generate.py --check    write nothing; exit 1 and name them

From the config classes: the schema of experiment files and docs/experiment-file.md. From the recipes: the files in
experiments/. From the command's own help: docs/commands.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from gpt_pipeline.cli import command
from gpt_pipeline.experiment.keys import Block, Key, block_from, blocks, file_keys, plain
from gpt_pipeline.experiment.reading import RUNTIME
from gpt_pipeline.experiment.recipes import RECIPES
from gpt_pipeline.experiment.schema import EDITOR_LINE, SCHEMA_FILE, need_in_words, schema_text
from gpt_pipeline.experiment.template import render, written
from gpt_pipeline.experiment.values import block_of

ROOT = Path(__file__).resolve().parent.parent
_NOTE = "<!-- Written by docs/generate.py; change the text in the code it comes from, then run `make docs`. -->"


def main() -> int:
    """Write the files, or only compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args().check
    outdated = {path: text for path, text in generated().items() if _content(path) != text}
    for path, text in outdated.items():
        print(f"{path.relative_to(ROOT)}: {'differs; run `make docs`' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if check and outdated else 0


def generated() -> Mapping[Path, str]:
    """Return every file that is written here, with its text."""
    recipes = {ROOT / "experiments" / f"{name}.yaml": recipe for name, recipe in RECIPES.items()}
    return {
        ROOT / "experiments" / SCHEMA_FILE: schema_text(),
        **{path: render(recipe) + _runtime_block(path) for path, recipe in recipes.items()},
        ROOT / "docs" / "experiment-file.md": reference(),
        ROOT / "docs" / "commands.md": commands(),
    }


def reference() -> str:
    """Return docs/experiment-file.md: every key, block by block."""
    parts = [
        "# The experiment file",
        _NOTE,
        "All keys, with their defaults and meanings. The first line of a file, "
        f"`{EDITOR_LINE}`, lets an editor with YAML support (VS Code with Red Hat's extension, say) complete keys and "
        "mark mistakes; `gpt-pipeline init` writes that line, and the schema beside the file. A key that a file omits "
        "has its default; an unknown key is an error that names the nearest known one.",
        _table(file_keys()),
        *(_section(block) for block in blocks()),
        f"## `{RUNTIME}:`\n\nWritten by the pipeline for your information; editing it has no effect.",
    ]
    return "\n\n".join(parts) + "\n"


def _section(block: Block) -> str:
    inner = [block_from(key.path, key.hint) for key in block.keys if block_of(key.hint)]
    tables = [f"### `{each.name}:`\n\n{each.text}\n\n{_table(each.keys)}" for each in inner]
    return "\n\n".join([f"## `{block.name}:`\n\n{block.text}\n\n{_table(block.keys)}", *tables])


def _table(keys: Sequence[Key]) -> str:
    rows = [f"| `{key.name}` | {_default(key)} | {_cell(key)} |" for key in keys]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _default(key: Key) -> str:
    return "required" if key.required else f"`{written(plain(key.default))}`"


def _cell(key: Key) -> str:
    need = need_in_words(key)
    return (f"{key.text} Takes {need}." if need else key.text).replace("|", r"\|")


def commands() -> str:
    """Return docs/commands.md: the help of every verb."""
    verbs = [_help(click.Context(verb, info_name=f"gpt-pipeline {name}")) for name, verb in command.commands.items()]
    codes = (
        "Exit codes: 0; 1 for a failure, also where this machine cannot do what a file says; 2 for a misused command, "
        "or a file with wrong keys or values; 130 where Ctrl+C or a signal stopped it."
    )
    return "\n\n".join(["# `gpt-pipeline`", _NOTE, codes, *verbs]) + "\n"


def _help(context: click.Context) -> str:
    context.max_content_width = context.terminal_width = 100
    return f"## `{context.info_name}`\n\n```\n{context.get_help()}\n```"


def _runtime_block(path: Path) -> str:
    """Return the block that a run has written at the end of the file, so that it is kept."""
    lines = (_content(path) or "").splitlines(keepends=True)
    starts: Iterator[int] = (number for number, line in enumerate(lines) if line.startswith(f"{RUNTIME}:"))
    start = next(starts, None)
    return "" if start is None else "\n" + "".join(lines[start:])


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())

"""Results to read: aligned columns, in colour on a terminal, the same as plain text in a pipe or with NO_COLOR.

A line is never wrapped here, so that a path or a command can be copied whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt_pipeline.findings import Finding
from gpt_pipeline.shown import in_markdown, on_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Cell = str | tuple[str, str]
"""A text, or a text and its style in rich's words."""

Line = Sequence[Cell]

SEVERITY_STYLES = {"ok": "green", "note": "yellow", "warning": "yellow", "problem": "bold red"}
_GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A block of lines."""

    heading: Line = ()
    """Its first line; the cells follow each other two spaces apart."""

    rows: Sequence[Line] = ()
    """Their cells are aligned in columns."""

    indent: int = 0
    """Spaces before each row."""

    numbers_from: int | None = None
    """The first of the columns that are aligned to the right."""

    closing: Sequence[Line] = ()
    """Lines after the rows."""


def findings_sheet(findings: Sequence[Finding], conclusion: Line) -> Sheet:
    """Return the findings, each with its remedy in the line below, and a last line."""
    rows: list[Line] = []
    for finding in findings:
        rows.append(((finding.severity, SEVERITY_STYLES[finding.severity]), (finding.key, "bold"), finding.text))
        rows += [("", "", (f"-> {finding.remedy}", "dim"))] if finding.remedy else []
    return Sheet(rows=rows, closing=[conclusion])


def print_sheets(sheets: Sequence[Sheet], console: Console) -> None:
    """Print the sheets one below the other."""
    console.width = console.width or 80  # some terminals set COLUMNS=0, at which rich prints nothing
    for line in _lines(sheets):
        console.print(line, soft_wrap=True)


def plain_text(sheets: Sequence[Sheet]) -> str:
    """Return the sheets as they are printed, without colours."""
    return "".join(f"{line.plain}\n" for line in _lines(sheets))


def markdown_table(heads: Sequence[str], rows: Iterable[Line]) -> str:
    """Return a table in markdown: names in the first column, numbers on the right; a cell with a style is bold.

    A cell reads as it is, whatever it holds, and cannot break the table.
    """
    lines = ["".join(["|", *map(_markdown_cell, row)]) for row in (heads, *rows)]
    return "\n".join([lines[0], f"|---|{'---:|' * (len(heads) - 1)}", *lines[1:]])


def _markdown_cell(cell: Cell) -> str:
    shown = in_markdown(cell) if isinstance(cell, str) else f"**{in_markdown(cell[0])}**"
    return f" {shown} |" if shown else " |"


def _lines(sheets: Sequence[Sheet]) -> Iterator[Text]:
    for sheet in sheets:
        if sheet.heading:
            yield _joined(sheet.heading)
        yield from _aligned(sheet)
        yield from map(_joined, sheet.closing)


def _joined(cells: Line) -> Text:
    from rich.text import Text

    return Text(_GAP).join(map(_text, cells))


def _text(cell: Cell) -> Text:
    from rich.text import Text

    content, style = (cell, "") if isinstance(cell, str) else cell
    return Text(on_terminal(content), style)


def _aligned(sheet: Sheet) -> Iterator[Text]:
    from rich.cells import cell_len
    from rich.text import Text

    texts = [[_text(cell) for cell in row] for row in sheet.rows]
    columns = max(map(len, texts), default=0)
    widths = [max(cell_len(row[n].plain) for row in texts if n < len(row)) for n in range(columns)]
    for row in texts:
        for number, (cell, width) in enumerate(zip(row, widths, strict=False)):
            room = width - cell_len(cell.plain)
            to_the_right = sheet.numbers_from is not None and number >= sheet.numbers_from
            cell.pad_left(room) if to_the_right else cell.pad_right(room)
        line = Text(" " * sheet.indent).append_text(Text(_GAP).join(row))
        line.rstrip()
        yield line

"""How results are printed: aligned, never wrapped, in colour on a terminal alone."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from gpt_pipeline.findings import note, ok, problem
from gpt_pipeline.sheet import Sheet, findings_sheet, markdown_table, plain_text, print_sheets

SHEET = Sheet(
    heading=(("a name", "bold"), "/a/folder"),
    rows=[("model", ("size", "dim"), "7"), ("", "speed", "1,234"), ("日本", "[red]no markup[/red]", ("x", "red"))],
    indent=2,
)


def _printed(sheet: Sheet, *, terminal: bool, width: int = 20) -> str:
    output = StringIO()
    colours = "truecolor" if terminal else "auto"
    print_sheets([sheet], Console(file=output, width=width, force_terminal=terminal, color_system=colours))
    return output.getvalue()


@pytest.mark.parametrize("width", [0, 1])
def test_sheet_is_printed_whole_on_a_terminal_that_calls_itself_so_narrow(width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    output = StringIO()
    print_sheets([SHEET], Console(file=output))
    assert output.getvalue().splitlines() == plain_text([SHEET]).splitlines()


def test_plain_text_aligns_columns_by_what_a_terminal_shows() -> None:
    assert plain_text([SHEET]).splitlines() == [
        "a name  /a/folder",
        "  model  size                  7",
        "         speed                 1,234",
        "  日本   [red]no markup[/red]  x",
    ]


def test_plain_text_of_numbers_aligns_them_to_the_right() -> None:
    sheet = Sheet(rows=[("", "one", "two"), ("loss", "*2.0", "13.0"), ("steps", "7", "")], numbers_from=1)
    assert plain_text([sheet]).splitlines() == ["        one   two", "loss   *2.0  13.0", "steps     7"]


def test_print_sheets_into_a_pipe_is_the_plain_text_however_narrow() -> None:
    assert _printed(SHEET, terminal=False) == plain_text([SHEET])


def test_print_sheets_on_a_terminal_adds_colours_and_breaks_no_line() -> None:
    printed = _printed(SHEET, terminal=True)
    assert "\x1b[31mx\x1b[0m" in printed
    assert len(printed.splitlines()) == len(plain_text([SHEET]).splitlines())


def test_print_sheets_with_no_color_has_no_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in _printed(SHEET, terminal=True)


def test_findings_sheet_has_remedies_below_and_the_conclusion_last() -> None:
    findings = [ok("python", "3.11"), note("hub", "skipped"), problem("disk", "full", "empty it")]
    assert plain_text([findings_sheet(findings, ["1 problem to solve."])]).splitlines() == [
        "ok       python  3.11",
        "note     hub     skipped",
        "problem  disk    full",
        "                 -> empty it",
        "1 problem to solve.",
    ]


def test_markdown_table_cells_cannot_break_the_table() -> None:
    table = markdown_table(["", "a|b"], [["one\ntwo", "3"], ["|", ""]])
    assert table.split("\n") == ["| | a\\|b |", "|---|---:|", "| one two | 3 |", "| \\| | |"]

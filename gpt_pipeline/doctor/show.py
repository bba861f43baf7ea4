"""The findings to read: a line each, its remedy below it, in colour on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from gpt_pipeline.doctor.finding import Finding

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_STATUS, _CHECK = 9, 17


def print_rich(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings for a terminal."""
    for finding in findings:
        status = (f"{finding.status:{_STATUS}}", _STYLES[finding.status])
        console.print(Text.assemble(status, (f"{finding.check:{_CHECK}}", "bold"), finding.text), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':{_STATUS}}{'':{_CHECK}}{_arrow(finding)}", "dim"), soft_wrap=True)
    console.print(conclusion(findings), style="bold red" if count(findings, "problem") else "green")


def plain_text(findings: Sequence[Finding]) -> str:
    """Return the findings as plain lines."""
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.status:{_STATUS}}{finding.check:{_CHECK}}{finding.text}")
        lines += [f"{'':{_STATUS}}{'':{_CHECK}}{_arrow(finding)}"] if finding.remedy else []
    return "\n".join([*lines, conclusion(findings)]) + "\n"


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as JSON values: how many problems, and each finding with its fields."""
    return {
        "problems": count(findings, "problem"),
        "notes": count(findings, "note"),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def count(findings: Sequence[Finding], status: str) -> int:
    """Return how many findings have this status."""
    return sum(finding.status == status for finding in findings)


def conclusion(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    problems = count(findings, "problem")
    if not problems:
        return "This machine can do the work."
    return f"{problems} problem{'s' if problems > 1 else ''} to solve."


def _arrow(finding: Finding) -> str:
    return f"-> {finding.remedy}"

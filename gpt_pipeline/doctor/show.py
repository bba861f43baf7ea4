"""The findings to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_pipeline.findings import Finding, count_of, problems_in_words
from gpt_pipeline.sheet import Sheet, findings_sheet


def sheets(findings: Sequence[Finding]) -> list[Sheet]:
    """Return the findings in the order in which they were found, and what they come to."""
    if count_of(findings, "problem"):
        return [findings_sheet(findings, [(f"{problems_in_words(findings)}.", "bold red")])]
    return [findings_sheet(findings, [("This machine can run the pipeline.", "green")])]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as JSON values: how many problems and notes, and each finding."""
    return {
        "problems": count_of(findings, "problem"),
        "notes": count_of(findings, "note"),
        "findings": [
            {"check": each.key, "status": each.severity, "text": each.text, "remedy": each.remedy} for each in findings
        ],
    }

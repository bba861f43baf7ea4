"""SYNTH's columns, and what stands between the parts of a document made of them."""

from __future__ import annotations

SYNTH_COLUMNS = (
    "synth_id",
    "language",
    "exercise",
    "model",
    "query",
    "query_seed_url",
    "query_seed_text",
    "additional_seed_url",
    "seed_license",
    "constraints",
    "script",
    "synthetic_reasoning",
    "synthetic_answer",
    "words",
)

QUERY_MARK = "Q: "
REASONING_MARK = "\n\nReasoning:\n"
ANSWER_MARK = "\n\nA: "
ENGLISH = "en"
FAILED_CONSTRAINT = "result:Failed after maximum attempts"  # SYNTH's note on rows whose generation was given up


def is_blank(text: str | None) -> bool:
    """Whether `text` is null, empty or only whitespace."""
    return text is None or not text.strip()

"""What the Dagster UI shows of a materialization."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from gpt_pipeline.data.formats.synth_text import ENGLISH
from gpt_pipeline.sheet import markdown_table
from gpt_pipeline.shown import as_code
from gpt_pipeline.storage.manifest import StageResult

_EXAMPLE_CHARACTERS = 600


def stage_metadata(stage: StageResult) -> dict[str, Any]:
    """Return a data stage's facts: numbers, which the UI plots; counts as tables; examples as text."""
    facts = dict(stage.manifest.facts)
    own = sum(record.size for record in stage.manifest.files.values())
    size = facts.pop("bytes", own)  # of the source files, where the stage itself keeps but notes of them
    metadata: dict[str, Any] = {
        "folder": dg.MetadataValue.path(str(stage.folder)),
        "fingerprint": stage.fingerprint,
        "already_finished": stage.reused,
        "files": len(stage.manifest.files),
        "megabytes": round(size / 1e6, 3),
    }
    if (made := stage.made) is not None:
        metadata["made_at"] = made.at
    if (read := facts.pop("exercises_read", None)) is not None:
        metadata["exercises"] = in_and_out(read, facts.pop("exercises"))
        kept = stage.manifest.config.get("languages", [ENGLISH])
        if kept is not None and len(kept) == 1:  # of several it is not known how many each gave
            metadata["languages"] = in_and_out(facts.pop("languages"), {kept[0]: facts["documents"]})
    if (by_kind := facts.pop("tokens_by_exercise", None)) is not None:
        facts["tokens_by_kind"] = by_kind  # only SYNTH calls kinds exercises
    for name, value in facts.items():
        metadata[name] = _lengths(value) if name == "document_lengths" else fact(value)
    return metadata


def in_and_out(rows: Mapping[str, int], documents: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """Return the rows read and the documents made of them as a table by name, the most frequent first."""
    total = ("all", sum(rows.values()), sum(documents.values()))
    each = [(name, count, documents.get(name, 0)) for name, count in rows.items()]
    lines = [
        (name, f"{count:,}", f"{out:,}", f"{out / max(count, 1):.2%}")
        for name, count, out in [total, *sorted(each, key=lambda line: -line[1])]
    ]
    return dg.MetadataValue.md(markdown_table(("", "rows in", "documents out", "kept"), lines))


def _lengths(counts: Sequence[int]) -> dg.MarkdownMetadataValue:
    """Return the histogram of the documents' lengths as a picture, and where the middle of them lies."""
    from gpt_pipeline.data.tokens.lengths import LENGTH_EDGES, quantile
    from gpt_pipeline.report.charts import histogram_svg

    picture = picture_markdown("documents by length", histogram_svg(counts, LENGTH_EDGES, title="documents by tokens"))
    spread = " · ".join(f"{share:.0%}: {quantile(counts, share):,}" for share in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    return dg.MetadataValue.md(f"{picture}\n\nTokens of a document that so many do not exceed, about: {spread}")


def picture_markdown(name: str, svg: str) -> str:
    """Return an SVG document as markdown that the UI shows without a network."""
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def fact(value: Any) -> Any:
    """Return one JSON value as the metadata that reads best."""
    if isinstance(value, Mapping) and value and all(isinstance(count, int | float) for count in value.values()):
        return counts_table(value)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return dg.MetadataValue.md("\n\n---\n\n".join(quoted(text) for text in value))
    if isinstance(value, Mapping | list):
        return dg.MetadataValue.json(value)
    return value


def counts_table(counts: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    """Return counts by name as a table, the largest first, with shares of the sum."""
    total = sum(counts.values()) or 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rows = [(name, f"{count:,}", f"{count / total:.2%}") for name, count in ordered]
    return dg.MetadataValue.md(markdown_table(("", "count", "share"), rows))


def quoted(text: str) -> str:
    """Return the start of `text` as a markdown code block that the text itself cannot end."""
    shown = text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + " …"
    return as_code(shown)

"""Documents on their way to the model, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from gpt_pipeline.cli.common import tell
from gpt_pipeline.data.preview import Preview
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.shown import on_terminal

_SHOWN = 300  # characters of a value
_INDENT = " " * 4


def tell_previews(found: Sequence[Preview], tokenizer: Tokenizer) -> None:
    """Print rows with what becomes of each.

    Between two tokens of a document stands `|`; in `[[` and `]]` stand those that an answer-only loss trains on.
    """
    for preview in found:
        width = max(len(name) for name in (*preview.values, "document")) + 2
        tell(f"{preview.file}, row {preview.row}")
        for column, value in preview.values.items():
            tell(f"  {column:<{width}}{_short(value)}")
        if preview.dropped is not None:
            tell(f"  {'dropped':<{width}}{preview.dropped}")
        else:
            size = f"{len(preview.text.encode()):,} bytes, {len(preview.tokens):,} tokens"
            tell(f"  {'document':<{width}}for {'validation' if preview.held_out else 'training'}, {size}")
            tell(f"  {'tokens':<{width}}{_counting(preview)}")
            tell(textwrap.indent(on_terminal(_cut(preview, tokenizer)), _INDENT, lambda line: True))
        tell("")


def _short(value: str | None) -> str:
    if value is None:
        return "null"
    line = on_terminal(" ".join(value.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ... ({len(value):,} characters)"


def _counting(preview: Preview) -> str:
    if not preview.spans:
        return "<|endoftext|>, then these; all count"
    count = sum(last - first for first, last in preview.spans)
    return (
        f"<|endoftext|>, then these; all count in pre-training, "
        f"the {count:,} in [[ ]] and the end where answers alone are trained on"
    )


def _cut(preview: Preview, tokenizer: Tokenizer) -> str:
    """Return the text of the tokens with a mark between two; where a character lies in several, they stay together."""
    firsts, lasts = ({span[side] for span in preview.spans} for side in (0, 1))
    pieces: list[str] = []
    held, mark = b"", ""
    for place, token in enumerate(preview.tokens):
        held += tokenizer.bytes_of(token)
        mark += "[[" if place in firsts else ""
        is_last = place + 1 == len(preview.tokens)
        try:
            text = held.decode(errors="replace" if is_last else "strict")
        except UnicodeDecodeError:
            continue
        pieces.append(f"{mark}{text}{']]' if place + 1 in lasts else ''}")
        held, mark = b"", ""
    return "|".join(pieces)

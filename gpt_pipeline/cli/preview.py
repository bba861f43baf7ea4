"""Documents on their way to the model, as text."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from gpt_pipeline.cli.common import tell
from gpt_pipeline.data.preview import Preview
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.shown import on_terminal

_SHOWN = 300  # characters of a value
_INDENT = " " * 4


def tell_previews(found: Sequence[Preview], tokenizer: Tokenizer) -> None:
    """Print rows with what becomes of each; between two tokens of a document stands `|`."""
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
            tell(textwrap.indent(on_terminal(_cut(preview.tokens, tokenizer)), _INDENT, lambda line: True))
        tell("")


def _short(value: str | None) -> str:
    if value is None:
        return "null"
    line = on_terminal(" ".join(value.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ... ({len(value):,} characters)"


def _counting(preview: Preview) -> str:
    if preview.answer_from is None:
        return "<|endoftext|>, then these; all count"
    return (
        f"<|endoftext|>, then these; all count in pre-training. "
        f"Reasoning and answer: the last {len(preview.tokens) - preview.answer_from:,}"
    )


def _cut(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of the tokens with a mark between two; where a character lies in several, they stay together."""
    pieces: list[str] = []
    held = b""
    for token in tokens:
        held += tokenizer.bytes_of(token)
        try:
            pieces.append(held.decode())
        except UnicodeDecodeError:
            continue
        held = b""
    return "|".join(itertools.chain(pieces, [held.decode(errors="replace")] if held else []))

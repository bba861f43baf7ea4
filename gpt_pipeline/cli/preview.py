"""Documents on their way to the model, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from gpt_pipeline.cli.common import tell
from gpt_pipeline.data.formats.forms import with_names
from gpt_pipeline.data.formats.rules import with_hints
from gpt_pipeline.data.preview import Preview
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.shown import on_terminal

_SHOWN = 300  # characters of a value
_BEGINNING = 60  # characters of a document in a sequence
_INDENT = " " * 4
_AND_THE_END = " and the end"
_UNKNOWN = "not known yet: a run makes or fetches the tokenizer; the text:"


def tell_previews(
    found: Sequence[Preview],
    tokenizer: Tokenizer | None,
    *,
    has_turns: bool,
    answers_within: int | None = None,
) -> None:
    """Print rows with what becomes of each.

    Between two tokens of a document stands `|`; in `[[` and `]]` stand those that an answer-only loss trains on.
    Without a tokenizer, which is made or fetched by a run, the text stands alone. `has_turns`: documents are in ChatML.
    `answers_within`: only answers are trained on, in so many targets from a document's beginning on; None: everything.
    """
    for preview in found:
        width = max(len(_short(name)) for name in (*preview.values, "document")) + 2
        tell(f"{preview.file}, row {preview.row}")
        for column, value in preview.values.items():
            tell(f"  {_short(column):<{width}}{_short(value)}")
        if preview.dropped is not None:
            tell(f"  {'dropped':<{width}}{with_hints(preview.dropped, [preview.dropped])}")
        else:
            tokens = "" if preview.tokens is None else f", {len(preview.tokens):,} tokens"
            size = f"{len(preview.text.encode()):,} bytes{tokens}"
            tell(f"  {'document':<{width}}for {'validation' if preview.held_out else 'training'}, {size}")
            counting = _UNKNOWN if preview.tokens is None else _counting(preview, answers_within)
            # In ChatML the token that ends an answer is in the text.
            tell(f"  {'tokens':<{width}}{counting.replace(_AND_THE_END, '') if has_turns else counting}")
            text = preview.text if tokenizer is None else _cut(preview, tokenizer)
            shown = on_terminal(with_names(text) if has_turns else text)
            tell(textwrap.indent(shown, _INDENT, lambda line: True))
        tell("")


def tell_sequences(sampler: DocumentSampler, tokenizer: Tokenizer, *, count: int) -> None:
    """Print the first sequences of a training on whole documents: what is in each, where, and how much is padding.

    `sampler` has one sequence a batch.
    """
    T, packing = sampler.sequence_length, sampler.packing
    count = min(count, packing.n_rows)
    sequences = np.concatenate([sampler.sequences_at(step) for step in range(count)])
    rows, placed = sampler.read(sequences, epoch=0), sampler.place(sequences, epoch=0)
    assert rows.weights is not None
    padding = f"{packing.padding:.1%} padding"
    tell(
        f"{packing.n_rows:,} sequences of {T:,} positions an epoch, {padding}; the first {count}, as training has them"
    )
    for number in range(count):
        tell(f"  sequence {number + 1}")
        filled = 0
        for piece in np.flatnonzero(placed.row == number):
            first, length = int(placed.offset[piece]), int(placed.length[piece])
            filled = first + length
            counted = int(np.count_nonzero(rows.weights[number, first:filled]))
            text = tokenizer.decode(rows.inputs[number, first:filled].tolist())
            tell(f"    {first:>6,} to {filled - 1:>6,}  {counted:>6,} count  {_short(text, _BEGINNING)}")
        if filled < T:
            tell(f"    {filled:>6,} to {T - 1:>6,}  padding")
    tell("")


def _short(value: str | None, limit: int = _SHOWN) -> str:
    if value is None:
        return "null"
    line = on_terminal(" ".join(value.split()))
    return line if len(line) <= limit else f"{line[:limit]} ... ({len(value):,} characters)"


def _counting(preview: Preview, answers_within: int | None) -> str:
    if answers_within is not None:
        return f"<|endoftext|>, then these; {_counting_answers(preview, answers_within)}"
    if not preview.spans:
        return "<|endoftext|>, then these; all count"
    count = sum(last - first for first, last in preview.spans)
    return (
        f"<|endoftext|>, then these; all count in pre-training, "
        f"the {count:,} in [[ ]]{_AND_THE_END} where answers alone are trained on"
    )


def _counting_answers(preview: Preview, row_length: int) -> str:
    counted = sum(max(0, min(last, row_length) - first) for first, last in preview.spans)
    tokens = preview.tokens or ()
    if len(tokens) < row_length:
        return f"the {counted:,} in [[ ]]{_AND_THE_END} count"
    return f"the {counted:,} count that are in [[ ]] and among the first {row_length:,} (data.max_length)"


def _cut(preview: Preview, tokenizer: Tokenizer) -> str:
    """Return the text of the tokens with a mark between two; where a character lies in several, they stay together."""
    firsts, lasts = ({span[side] for span in preview.spans} for side in (0, 1))
    tokens = preview.tokens or ()
    pieces: list[str] = []
    held, mark = b"", ""
    for place, token in enumerate(tokens):
        held += tokenizer.bytes_of(token)
        mark += "[[" if place in firsts else ""
        is_last = place + 1 == len(tokens)
        try:
            text = held.decode(errors="replace" if is_last else "strict")
        except UnicodeDecodeError:
            continue
        pieces.append(f"{mark}{text}{']]' if place + 1 in lasts else ''}")
        held, mark = b"", ""
    return "|".join(pieces)

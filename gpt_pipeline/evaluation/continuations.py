"""Let a model go on with held-out documents that ask nothing: what it writes stands beside how they really went on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.document_loss import document_bounds, require_same_documents
from gpt_pipeline.evaluation.generate import Generation, generate
from gpt_pipeline.evaluation.held_out import HeldOutChoice, HeldOutDocument
from gpt_pipeline.evaluation.score import distinct_n
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.row import Watch, unwatched

_LONGEST_CHARACTER = 4  # bytes in UTF-8, and so tokens at most


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A held-out document, cut in two."""

    document: HeldOutDocument
    beginning: Sequence[int]
    """What the model is given behind `<|endoftext|>`: half of the document, at most half of the context."""

    rest: Sequence[int]


def continue_documents(
    model: LanguageModel,
    stream: TokenStream,
    choice: HeldOutChoice,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
    context_length: int,
    watch: Watch = unwatched,
) -> list[dict[str, Any]]:
    """Return the model's greedy continuation of the beginning of each chosen document, as JSON values, in their order.

    Raises:
        DamagedFileError: the stream has not as many documents as the choice was made among.
    """
    if not choice.documents:
        return []
    require_same_documents(stream, choice)
    begun = [_begun(stream, each, tokenizer, context_length) for each in choice.documents]
    generations = generate(
        model,
        [[tokenizer.eot_token, *each.beginning] for each in begun],
        max_new_tokens=max_new_tokens,
        context_length=context_length,
        ends=tokenizer.ends,
        watch=watch,
    )
    return [
        _as_record(each, generation, tokenizer, longest=max_new_tokens)
        for each, generation in zip(begun, generations, strict=True)
    ]


def _begun(stream: TokenStream, document: HeldOutDocument, tokenizer: Tokenizer, context_length: int) -> _Begun:
    start, end = document_bounds(stream, document)
    tokens = stream.read(start + 1, end - start - 1).tolist()
    half = max(1, min(len(tokens) // 2, context_length // 2 - 1))
    ends = range(half, max(0, half - _LONGEST_CHARACTER), -1)
    cut = next((end for end in ends if _is_whole(tokens[:end], tokenizer)), half)
    return _Begun(document=document, beginning=tokens[:cut], rest=tokens[cut:])


def _is_whole(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the last character is there with all its bytes."""
    try:
        tokenizer.decode_bytes(tokens).decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_record(begun: _Begun, generation: Generation, tokenizer: Tokenizer, *, longest: int) -> dict[str, Any]:
    """Return a continuation beside the original, of which as much is kept as the model may write."""
    generated = tokenizer.decode(generation.tokens)
    return {
        "document": begun.document.number,
        "kind": begun.document.exercise,
        "beginning": tokenizer.decode(begun.beginning),
        "generated": generated,
        "original": tokenizer.decode_bytes(begun.rest[:longest]).decode(errors="ignore"),  # the last character's bytes
        "reference_tokens": len(begun.rest),
        "ended": generation.ended,
        "distinct_2": distinct_n(generated.split(), 2),
        "new_tokens": len(generation.tokens),
    }

"""The loss on single held-out documents, each in a context of its own: of the whole text, and of its answer alone.

Shapes: B batch, T tokens of the longest document of a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation.held_out import HeldOutChoice, HeldOutDocument
from gpt_pipeline.evaluation.result import exercise_names
from gpt_pipeline.evaluation.validation import token_losses
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.row import Watch, unwatched

_TOKENS_AT_ONCE = 4096  # padding included; their logits take 0.8 GB in float32

Positions = NDArray[np.int64]
InAnswers = Callable[[Positions], NDArray[np.bool_]]
"""Tells of positions in a stream whether an answer's token stands there."""


@dataclass(frozen=True, kw_only=True)
class DocumentLoss:
    """What one document cost."""

    exercise: str
    nats: float
    """Spent on the text and on the `<|endoftext|>` that ends it."""

    n_tokens: int
    answer_nats: float
    """Spent on the answer's tokens, given question and the document's own reasoning; of a conversation all answers."""

    n_answer_tokens: int
    truncated: bool
    """Whether the document lost its beginning so that it fits the context."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One document as the model is given it."""

    place: int
    """Among the documents asked for."""

    exercise: str
    ids: NDArray[np.int64]
    """From `<|endoftext|>`, or where it was cut, to the `<|endoftext|>` that ends it."""

    is_answer: NDArray[np.bool_]
    """Of each of `ids` but the first whether it is the answer's; the `<|endoftext|>` at the end is not."""

    truncated: bool


def document_losses(
    model: LanguageModel,
    stream: TokenStream,
    choice: HeldOutChoice,
    *,
    context_length: int,
    in_answers: InAnswers | None = None,
    tokens_at_once: int = _TOKENS_AT_ONCE,
    watch: Watch = unwatched,
) -> list[DocumentLoss]:
    """Return what each of the chosen documents costs, in their order.

    A document of more than `context_length` tokens keeps its end, and of an answer that is longer by itself the end is
    scored. Documents of like length share a batch, padded behind their end, where causal attention sees nothing of it:
    `tokens_at_once` changes the result by rounding in the model alone. Which tokens are answers, `in_answers` tells;
    without it, a document is one from where its answer begins.

    Raises:
        DamagedFileError: the stream has not as many documents as the choice was made among.
    """
    if not choice.documents:
        return []
    require_same_documents(stream, choice)
    model.eval()
    losses: dict[int, DocumentLoss] = {}
    in_answers = in_answers or in_last_part(stream)
    rows = [_row(stream, place, each, context_length, in_answers) for place, each in enumerate(choice.documents)]
    for batch in _batches(sorted(rows, key=lambda row: len(row.ids)), tokens_at_once):
        for row, nats in zip(batch, _nats(model, batch), strict=True):
            losses[row.place] = _loss(row, nats)
        watch(len(losses), len(rows))
    return [losses[place] for place in range(len(rows))]


def loss_metrics(
    losses: Sequence[DocumentLoss], names: Mapping[str, str] | None = None, *, have_answers: bool = True
) -> dict[str, float]:
    """Return the means in nats per token, of all documents and by kind, if kinds are known; empty without documents.

    Where documents have no answers, nothing is said of those.
    `names` are those of the exercises, as `exercise_names` gives them; null: of these documents' own.
    """
    if not losses:
        return {}
    groups: dict[str, list[DocumentLoss]] = defaultdict(list)
    for loss in losses:
        groups[loss.exercise].append(loss)
    metrics = {
        **({"answer_loss": _answer_mean(losses)} if have_answers else {}),
        "documents": float(len(losses)),
        "documents_truncated": float(sum(loss.truncated for loss in losses)),
    }
    names = names or exercise_names(groups)
    for exercise, group in sorted(groups.items()) if set(groups) != {"unknown"} else ():
        tokens = sum(loss.n_tokens for loss in group)
        metrics[f"val_loss/{names[exercise]}"] = sum(loss.nats for loss in group) / tokens
        if have_answers:
            metrics[f"answer_loss/{names[exercise]}"] = _answer_mean(group)
    return metrics


def require_same_documents(stream: TokenStream, choice: HeldOutChoice) -> None:
    """Raise `DamagedFileError` if the stream has not as many documents as the choice was made among."""
    found = len(stream.document_starts)
    if found != choice.available:
        raise DamagedFileError(
            f"found {found} documents in the validation shards, need the {choice.available} held-out ones of the "
            "documents; materialize token_shards again with force"
        )


def in_last_part(stream: TokenStream) -> InAnswers:
    """Return what tells which tokens stand where the last answer of a document begins, or behind."""

    def in_answers(positions: Positions) -> NDArray[np.bool_]:
        document = np.searchsorted(stream.document_starts, positions, side="right") - 1
        found: NDArray[np.bool_] = positions >= stream.answer_starts[document]
        return found

    return in_answers


def document_bounds(stream: TokenStream, document: HeldOutDocument) -> tuple[int, int]:
    """Return where a document begins in the stream, with its `<|endoftext|>`, and where it ends."""
    starts, number = stream.document_starts, document.number
    return int(starts[number]), int(starts[number + 1]) if number + 1 < len(starts) else stream.n_tokens


def _row(
    stream: TokenStream, place: int, document: HeldOutDocument, context_length: int, in_answers: InAnswers
) -> _Row:
    start, end = document_bounds(stream, document)
    ids = np.append(stream.read(start, end - start).astype(np.int64), stream.eot_token)
    cut = max(0, len(ids) - (context_length + 1))
    return _Row(
        place=place,
        exercise=document.exercise,
        ids=ids[cut:],
        is_answer=np.append(in_answers(np.arange(start + cut + 1, end)), False),
        truncated=cut > 0,
    )


def _batches(rows: Iterable[_Row], tokens_at_once: int) -> Iterator[list[_Row]]:
    """Yield `rows`, ascending in length, in batches of at most `tokens_at_once` tokens, at least one row each."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row.ids) > tokens_at_once:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _nats(model: LanguageModel, batch: Sequence[_Row]) -> list[NDArray[np.float64]]:
    """Return the nats of each row's tokens but the first."""
    T = max(len(row.ids) for row in batch)
    padded = np.zeros((len(batch), T), dtype=np.int64)
    for place, row in enumerate(batch):
        padded[place, : len(row.ids)] = row.ids
    losses = token_losses(model, torch.from_numpy(padded).to(model.head_weight.device)).cpu().double().numpy()
    return [losses[place, : len(row.ids) - 1] for place, row in enumerate(batch)]


def _loss(row: _Row, nats: NDArray[np.float64]) -> DocumentLoss:
    answer = nats[row.is_answer]
    return DocumentLoss(
        exercise=row.exercise,
        nats=float(nats.sum()),
        n_tokens=len(nats),
        answer_nats=float(answer.sum()),
        n_answer_tokens=len(answer),
        truncated=row.truncated,
    )


def _answer_mean(losses: Iterable[DocumentLoss]) -> float:
    parts = list(losses)
    return sum(loss.answer_nats for loss in parts) / sum(loss.n_answer_tokens for loss in parts)

"""The loss on held-out tokens.

Shapes: B batch, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.data.tokens.batches import sequential_windows
from gpt_pipeline.data.tokens.packing import packed_in_order
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.row import Watch, unwatched

_PIECE = 128  # tokens whose logits are computed together on a CPU: 26 MB stay near it, half the time of 4,096 at once
_MAX_EXPONENT = 700.0  # exp(709.8) is the largest float


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """How well the model predicts held-out tokens."""

    val_loss: float
    """Mean nats per token."""

    n_tokens: int
    """Tokens that were predicted."""

    n_bytes: int
    """UTF-8 bytes of the text that these tokens stand for; `<|endoftext|>` stands for none."""

    @property
    def perplexity(self) -> float:
        """e to the mean loss, cut off at e^700."""
        return math.exp(min(self.val_loss, _MAX_EXPONENT))

    @property
    def val_bpb(self) -> float:
        """Bits per UTF-8 byte: comparable across tokenizers.

        All nats, those spent on `<|endoftext|>` included (the end of a document is information too), over the exact
        bytes of the tokens that were predicted. The manifest's mean bytes per token would be wrong whenever fewer
        tokens than the whole split are evaluated.
        """
        return self.val_loss * self.n_tokens / math.log(2) / max(self.n_bytes, 1)


def mixed_loss(losses: Sequence[ValidationLoss], shares: Sequence[float]) -> ValidationLoss:
    """Return the loss of a mix from those of its parts, of which each counts by its share of the tokens.

    The bytes are those that the tokens would stand for if they had been drawn in these shares.
    """
    if len(losses) == 1:
        return losses[0]
    n_tokens = sum(loss.n_tokens for loss in losses)
    bytes_per_token = sum(share * loss.n_bytes / loss.n_tokens for loss, share in zip(losses, shares, strict=True))
    return ValidationLoss(
        val_loss=sum(share * loss.val_loss for loss, share in zip(losses, shares, strict=True)),
        n_tokens=n_tokens,
        n_bytes=round(n_tokens * bytes_per_token),
    )


def validation_loss(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    max_tokens: int,
    batch_size: int = 8,
    watch: Watch = unwatched,
) -> ValidationLoss:
    """Return the loss on the first `max_tokens` tokens of `stream` that have one before them.

    Window i gives the model tokens [i*T, i*T + T) and asks for the ones that follow each; the last window may be
    shorter. Losses are summed as float64, on the host since not every GPU has it, so that `batch_size` changes the
    result by rounding in the model alone.

    Raises:
        ValueError: the stream has fewer than two tokens.
    """
    model.eval()
    device = model.head_weight.device
    nats, n_tokens, n_bytes = 0.0, 0, 0
    windows = sequential_windows(stream, sequence_length=sequence_length, max_tokens=max_tokens, batch_size=batch_size)
    for inputs, targets in windows:
        losses = _losses(model, torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        nats += float(losses.cpu().double().sum())
        n_tokens += losses.numel()
        n_bytes += int(tokenizer.token_lengths[targets].sum())
        watch(n_tokens, min(stream.n_tokens - 1, max_tokens))
    if n_tokens == 0:
        raise ValueError(f"found {stream.n_tokens} validation tokens, need at least 2")
    return ValidationLoss(val_loss=nats / n_tokens, n_tokens=n_tokens, n_bytes=n_bytes)


def packed_losses(
    model: LanguageModel,
    stream: TokenStream,
    *,
    row_length: int,
    max_tokens: int,
    batch_size: int = 8,
    answers_too: bool = False,
    watch: Watch = unwatched,
) -> dict[str, float]:
    """Return the mean nats per token of the stream's first documents, which are `max_tokens` together, by name.

    `document_loss`: each stands by itself, from its beginning up to `row_length` tokens; the trainer's estimates are
    the same on fewer. With `answers_too`, `completion_loss`: of their reasoning and answers alone; absent if there is
    none among them.
    """
    model.eval()
    device = model.head_weight.device
    names = ["document_loss", *(["completion_loss"] if answers_too else [])]
    nats, counted, read = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0
    # The same rows, of which other targets count.
    sets = [
        packed_in_order(
            stream,
            row_length=row_length,
            max_positions=max_tokens,
            batch_size=batch_size,
            answers_only=name == "completion_loss",
        )
        for name in names
    ]
    for same in zip(*sets, strict=True):
        rows = same[0]
        ids, targets, starts = (
            torch.from_numpy(np.asarray(part, dtype=np.int64)).to(device)
            for part in (rows.inputs, rows.targets, rows.starts)
        )
        losses = _losses(model, ids, targets, starts=starts).cpu().double()
        for name, weights in zip(names, (each.weights for each in same), strict=True):
            assert weights is not None
            nats[name] += float((losses * torch.from_numpy(weights)).sum())
            counted[name] += float(weights.sum())
        read += targets.numel()
        watch(min(read, max_tokens), max_tokens)
    return {name: nats[name] / counted[name] for name in names if counted[name]}


def token_losses(model: LanguageModel, ids: Tensor) -> Tensor:
    """Return the nats of each token of `ids` [B, T + 1] but the first, given those before it: [B, T], float32."""
    return _losses(model, ids[:, :-1], ids[:, 1:])


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _losses(model: LanguageModel, ids: Tensor, targets: Tensor, *, starts: Tensor | None = None) -> Tensor:
    """Return the nats of each target, [B, T], float32."""
    x = model.hidden(ids, starts=starts).flatten(0, 1)
    piece = len(x) if devices.on_gpu(x) else _PIECE
    losses = [
        F.cross_entropy(model.logits(some).float(), wanted, reduction="none")
        for some, wanted in zip(x.split(piece), targets.flatten().split(piece), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)

"""Causal attention of H query heads over G heads of keys and values, and the cache of generation.

Shapes: B batch, T tokens of this call, S positions in the cache, H query heads, G key and value heads, which divide H,
D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.hardware import devices
from gpt_pipeline.model.attention_dropout import causal_attention_with_dropout
from gpt_pipeline.model.config import CPU_ATTENTION_QUERIES, ModelConfig
from gpt_pipeline.model.dropout import draws_here


class KVCache:
    """Keys and values of all positions seen so far, for generation.

    Prompts of different lengths are padded on the left, with any token, so that all rows end together; `padding` [B]
    counts the padding of each row. Padded positions are invisible to the others, and the first real token of each row
    stands at position 0.
    """

    def __init__(self, config: ModelConfig, *, capacity: int, padding: Tensor | None = None) -> None:
        if capacity > config.context_length:
            raise ValueError(f"capacity={capacity} must be at most context_length={config.context_length}")
        self.capacity = capacity
        self.padding = padding
        self.length = 0
        """Positions filled so far, padding included."""
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layer

    @classmethod
    def of_rows(cls, config: ModelConfig, rows: Sequence[tuple[KVCache, int]], *, room: int) -> KVCache:
        """Return a cache of some rows of others, padded anew to end together, with `room` for more positions.

        Each row is a cache and a number in it; the same one may come more than once. There is less room where the
        longest row would leave the model's context.
        """
        paddings = {id(cache): cache.paddings for cache, _ in rows}
        skipped = [paddings[id(cache)][row] for cache, row in rows]
        lengths = [cache.length - skip for (cache, _), skip in zip(rows, skipped, strict=True)]
        chosen = cls(config, capacity=min(max(lengths) + room, config.context_length))
        chosen.length = max(lengths)
        for layer in range(config.n_layer):
            kept = [cache.kept(layer) for cache, _ in rows]
            k, v = (
                chosen._aligned(
                    [each[which][row, :, skip:] for each, (_, row), skip in zip(kept, rows, skipped, strict=True)]
                )
                for which in (0, 1)
            )
            chosen._layers[layer] = (k, v)
        if min(lengths) < chosen.length:
            chosen.padding = torch.tensor([chosen.length - each for each in lengths], device=rows[0][0].device)
        return chosen

    def _aligned(self, rows: Sequence[Tensor]) -> Tensor:
        """Return the keys or values [G, T, D] of rows, all ending at this cache's length: [rows, G, capacity, D]."""
        G, _, D = rows[0].shape
        aligned = rows[0].new_empty((len(rows), G, self.capacity, D))
        for place, own in enumerate(rows):
            begin = self.length - own.size(1)
            aligned[place, :, :begin] = 0.0  # what memory held may be NaN, which a weight of 0 does not hide
            aligned[place, :, begin : self.length] = own
        return aligned

    @property
    def paddings(self) -> list[int]:
        """The padding of each row.

        Raises:
            ValueError: nothing is cached yet.
        """
        return [0] * self.kept(0)[0].size(0) if self.padding is None else self.padding.tolist()

    @property
    def device(self) -> torch.device:
        """Of what is cached.

        Raises:
            ValueError: nothing is.
        """
        return self.kept(0)[0].device

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all positions of a layer, [B, G, S, D].

        Raises:
            ValueError: there are none yet.
        """
        kept = self._layers[layer]
        if kept is None:
            raise ValueError(f"nothing is cached in layer {layer} yet")
        return kept[0][:, :, : self.length], kept[1][:, :, : self.length]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values [B, G, T, D] of new positions; return those of all positions, [B, G, S, D]."""
        end = self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit in a cache of {self.capacity}")
        kept = self._layers[layer]
        if kept is None:  # made here because autocast decides the dtype
            shape = (k.size(0), k.size(1), self.capacity, k.size(3))
            kept = self._layers[layer] = (k.new_empty(shape), v.new_empty(shape))
        kept[0][:, :, self.length : end] = k
        kept[1][:, :, self.length : end] = v
        return kept[0][:, :, :end], kept[1][:, :, :end]

    def mask(self, ids: Tensor) -> Tensor | None:
        """Return which positions the tokens `ids` [B, T] may see, bool [1 or B, 1, T, S]; None: all of them."""
        T, S = ids.size(1), self.length + ids.size(1)
        if T == 1 and self.padding is None:
            return None
        query = torch.arange(self.length, S, device=ids.device)[:, None]
        key = torch.arange(S, device=ids.device)[None, :]
        visible = (key <= query)[None]
        if self.padding is not None:
            # Padding sees itself: a softmax over nothing would be NaN, which 0 * NaN carries into real rows.
            visible = visible & ((key[None] >= self.padding[:, None, None]) | (key == query)[None])
        return visible[:, None]


Visible: TypeAlias = Tensor | list[int] | None
"""What positions see: by a mask; of their document alone, given the documents' lengths, one row after the other; or
all before them."""


def visible_to(ids: Tensor, cache: KVCache | None, starts: Tensor | None = None) -> Visible:
    """Return what the tokens `ids` [B, T] see: with a cache, of its positions; else of their documents.

    `starts` [B, T] says where in its row the document of each token begins; None: rows are not divided.
    """
    if cache is not None:
        return cache.mask(ids)
    if starts is None:
        return None
    position = torch.arange(ids.size(1), device=ids.device)
    if devices.on_gpu(starts) or torch.compiler.is_compiling():  # the same operations for any documents
        return ((position <= position[:, None]) & (position >= starts[:, :, None]))[:, None]
    begins = (starts == position).flatten().nonzero().flatten().tolist()
    return [end - begin for begin, end in zip(begins, [*begins[1:], ids.numel()], strict=True)]


def positions_of(ids: Tensor, cache: KVCache | None, starts: Tensor | None = None) -> Tensor:
    """Return the positions of the tokens `ids` [B, T], in their documents where `starts` [B, T] divides the rows:
    [1, T], or [B, T] with padding or documents."""
    start = 0 if cache is None else cache.length
    positions = torch.arange(start, start + ids.size(1), device=ids.device)[None]
    if starts is not None:
        return positions - starts
    if cache is None or cache.padding is None:
        return positions
    return (positions - cache.padding[:, None]).clamp_min(0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, layer: int, cache: KVCache | None, mask: Visible, dropout: float = 0.0
) -> Tensor:
    """Return what the positions of `q` [B, H, T, D] see of `k` and `v` [B, G, T, D]: [B, T, H * D].

    With a `cache`, of all its positions, these included. `mask` is what `visible_to` gives.
    """
    B, H, T, _ = q.shape
    if cache is not None:
        k, v = cache.append(layer, k, v)
    k, v = _one_for_each(q, k, v)
    if isinstance(mask, list):
        y = _within_documents(q, k, v, mask, dropout=dropout)
    elif mask is None and cache is None:
        y = _causal_attention(q, k, v, dropout=dropout)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return y.transpose(1, 2).reshape(B, T, H * q.size(3))


def _one_for_each(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values with one head for each of the queries', [B, H, S, D], that of its group."""
    group = q.size(1) // k.size(1)
    return (k, v) if group == 1 else (k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))


def _within_documents(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], *, dropout: float) -> Tensor:
    """[B, H, T, D] each -> [1, H, B * T, D]: what each position sees of its document up to itself.

    On the CPU, where small products cost little more than their arithmetic, one document after the other is less work
    than T x T with a mask.
    """
    rows = (part.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for part in (q, k, v))
    documents = zip(*(part.split(lengths, dim=2) for part in rows), strict=True)
    return torch.cat([_causal_attention(*document, dropout=dropout) for document in documents], dim=2)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    """[B, H, T, D] each -> [B, H, T, D]: what each position sees of itself and those before it."""
    # Short documents gain nothing from it (docs/benchmarks.md).
    if dropout > 0 and q.size(2) > CPU_ATTENTION_QUERIES and draws_here(q):
        return causal_attention_with_dropout(q, k, v, rate=dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)

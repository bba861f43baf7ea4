"""More tokens for a model: rows that a trained model lacks, or has and never met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_BY_TOKEN = ("wte.weight", "embed_tokens.weight", "lm_head.weight")
"""How the names of the matrices with a row for each token end."""


def with_new_tokens(weights: Mapping[str, Tensor], ids: Sequence[int]) -> Mapping[str, Tensor]:
    """Return the weights with rows for new tokens: in each matrix by tokens, the mean of the other rows.

    So a new token is at first as likely as tokens are on average (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"). The mean is taken in double precision, row after row, and so is the same anywhere.
    """
    if not ids:
        return weights
    return {
        name: _with_mean_rows(tensor, ids) if name.endswith(_BY_TOKEN) else tensor for name, tensor in weights.items()
    }


def _with_mean_rows(matrix: Tensor, ids: Sequence[int]) -> Tensor:
    """Return `matrix` [V, C] with the mean of its other rows at `ids`, which may lie behind its last row."""
    is_known = torch.ones(len(matrix), dtype=torch.bool)
    is_known[[id_ for id_ in ids if id_ < len(matrix)]] = False
    mean = torch.from_numpy(matrix[is_known].double().numpy().sum(axis=0)) / int(is_known.sum())
    grown = matrix.new_zeros(max(len(matrix), *(id_ + 1 for id_ in ids)), matrix.size(1))
    grown[: len(matrix)] = matrix
    grown[list(ids)] = mean.to(matrix.dtype)
    return grown

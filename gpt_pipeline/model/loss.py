"""The loss from hidden states, without the logits of all tokens in memory at once.

The logits of GPT-2 are 50,257 numbers a token: in float32 more than all activations of the 12 layers together. Each
piece of tokens is therefore taken to its loss and, while its logits are at hand, to the gradients of hidden states and
head (as in Liger Kernel, Hsu et al. 2024): three matrix products, as many as with all logits kept, none done again.

Shapes: N tokens, n tokens of a piece, C channels, V vocabulary, P vocabulary padded.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.hardware import devices
from gpt_pipeline.model.linear import as_products_read, linear

_CACHED_NUMBERS = 2**18  # logits for each core: 1 MB, which its second cache holds (docs/benchmarks.md)


def summed_loss(
    x: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    padded_vocab_size: int,
    piece: int | None,
    soft_cap: float | None = None,
) -> Tensor:
    """Return the cross entropy, in nats, summed over the tokens `targets` [N], of `x` [N, C] times `head` [V, C].

    `weights`: how much each target counts, float32 [N]; None: all the same, 1. Without gradients also [S, N], for as
    many sums of the same losses, [S], to which a target of weight 0 adds nothing, be its loss infinite or NaN.
    `piece`: tokens whose logits are in memory together; None for all of them, which a compiler can fuse.
    `soft_cap`: see `soft_capped`.
    """
    vocab_size = head.size(0)
    if devices.on_gpu(x):
        # Tensor cores want a multiple of 64 columns. The zero rows live inside this product only: no parameter,
        # no gradient, no probability (their logits are cut off), nothing to keep out of checkpoints.
        head = F.pad(head, (0, 0, 0, padded_vocab_size - vocab_size))
    # On the CPU, unless compiled, a single piece too takes less time and memory than autograd's own passes.
    at_once = devices.on_gpu(x) or torch.compiler.is_compiling()
    in_pieces = piece is not None and (len(x) > piece or not at_once)
    if in_pieces and torch.is_grad_enabled():
        nats: Tensor = _LossInPieces.apply(x, head, targets, weights, (vocab_size, piece, soft_cap))
        return nats
    size = piece or len(x)
    pieces = [part.split(size) for part in (x, targets)]
    pieces.append([None] * len(pieces[0]) if weights is None else weights.split(size, dim=-1))
    of_piece = _plain if at_once or torch.is_grad_enabled() else _without_gradients
    nats = (
        of_piece(some, head, wanted, count, (vocab_size, soft_cap)) for some, wanted, count in zip(*pieces, strict=True)
    )
    return sum(nats, x.new_zeros(()).float())


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(logits / cap), which lies between -cap and cap (Gemma 2, Riviere et al. 2024); None: as is.

    Overwrites `logits`: no matrix product needs its result again.
    """
    if cap is None:
        return logits
    if torch.compiler.is_compiling():
        return cap * torch.tanh(logits / cap)
    if not logits.requires_grad:
        return logits.div_(cap).tanh_().mul_(cap)
    capped: Tensor = _SoftCap.apply(logits, cap)
    return capped


class _SoftCap(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by the type checker
    """The numbers of torch's own functions, to the bit, with one more tensor in each direction instead of three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, cap: float) -> Tensor:
        """[..., V] -> [..., V]."""
        tanh = logits.div_(cap).tanh_()
        ctx.save_for_backward(tanh)
        ctx.cap = cap
        return tanh * cap

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[..., V] -> [..., V]."""
        (tanh,) = ctx.saved_tensors
        error = gradient * ctx.cap
        torch.ops.aten.tanh_backward.grad_input(error, tanh, grad_input=error)
        return error.div_(ctx.cap), None


def _plain(
    x: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None, bounds: tuple[int, float | None]
) -> Tensor:
    """[N, C], [P, C], [N], [N] -> [], or with weights [S, N] -> [S]; `bounds`: vocabulary, soft cap."""
    vocab_size, soft_cap = bounds
    logits = soft_capped(linear(x, head)[..., :vocab_size].float(), soft_cap)
    if weights is None:
        return F.cross_entropy(logits.float(), targets, reduction="sum")
    return _weighted(F.cross_entropy(logits.float(), targets, reduction="none"), weights)


def _without_gradients(
    x: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None, bounds: tuple[int, float | None]
) -> Tensor:
    """As `_plain`, in the memory of the logits alone."""
    losses = _losses_in_place(linear(x, head), targets[:, None], None, bounds)[:, 0]
    return losses.sum() if weights is None else _weighted(losses, weights)


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """[N], [N] -> [], or with weights [S, N] -> [S]: the sums of weighted losses."""
    if weights.dim() == 1:
        return (losses * weights).sum()
    # Tokens that only fill up a batch may overflow in fp16, and 0 times that is NaN.
    return torch.stack([(losses * each).where(each != 0, 0.0).sum() for each in weights])


def _losses_in_place(
    product: Tensor, targets: Tensor, weights: Tensor | None, bounds: tuple[int, float | None]
) -> Tensor:
    """Return losses [n, 1]; turn `product` [n, P], the logits before their cap, into the gradient of their sum by it.

    `targets`, `weights`: [n, 1]; `bounds`: vocabulary, soft cap.
    """
    rows = _rows_at_a_time(product)
    losses = torch.empty_like(targets, dtype=torch.float32)
    for start in range(0, len(product), rows):
        part = slice(start, start + rows)
        count = None if weights is None else weights[part]
        losses[part] = _row_losses_in_place(product[part], targets[part], count, bounds)
    return losses


def _rows_at_a_time(product: Tensor) -> int:
    """Return how many rows of logits to turn into their gradients at a time: on the CPU, what its cache holds."""
    if devices.on_gpu(product) or torch.compiler.is_compiling():
        return len(product)
    cached: int = _CACHED_NUMBERS * torch.get_num_threads() // product.size(1)
    return max(1, cached)


def _row_losses_in_place(
    product: Tensor, targets: Tensor, weights: Tensor | None, bounds: tuple[int, float | None]
) -> Tensor:
    """As `_losses_in_place`, of some rows."""
    vocab_size, soft_cap = bounds
    logits = product.float()
    slope = None if soft_cap is None else _soft_cap_in_place(logits, soft_cap)
    logits[:, vocab_size:] = -torch.inf
    logits -= logits.amax(1, keepdim=True)
    wanted = logits.gather(1, targets)
    total = logits.exp_().sum(1, keepdim=True)
    losses = total.log() - wanted
    error = logits.div_(total)  # probabilities, and with the next line the loss's gradient
    error.scatter_add_(1, targets, error.new_full((1, 1), -1.0).expand_as(targets))
    for factor in (weights, slope):
        if factor is not None:
            error *= factor
    product.copy_(error)  # nothing to do in float32, where they are the same
    return losses if weights is None else losses * weights


def _soft_cap_in_place(logits: Tensor, cap: float) -> Tensor:
    """Turn `logits` into `soft_capped(logits, cap)`; return the slope of that, 1 - tanh^2."""
    tanh = logits.div_(cap).tanh_()
    slope = torch.addcmul(tanh.new_ones(()), tanh, tanh, value=-1)
    tanh.mul_(cap)
    return slope


class _LossInPieces(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by the type checker
    """The summed loss; its forward pass computes the gradients already."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes them by position
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        bounds: tuple[int, int, float | None],
    ) -> Tensor:
        """[N, C], [P, C], [N], [N] -> []; `bounds`: vocabulary, piece, soft cap."""
        vocab_size, piece, soft_cap = bounds
        device = x.device.type
        inputs, matrix = as_products_read(x), as_products_read(head)
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            grad_x, grad_head = torch.empty_like(inputs), torch.empty(0)
            nats = torch.zeros((), device=x.device)
            for start in range(0, len(x), piece):
                part = slice(start, start + piece)
                some, count = inputs[part], None if weights is None else weights[part, None]
                product = linear(some, matrix)
                nats += _losses_in_place(product, targets[part, None], count, (vocab_size, soft_cap)).sum()
                grad_x[part] = linear(product, matrix.t())
                own = linear(product.t(), some.t())
                grad_head = own.to(head.dtype) if start == 0 else grad_head.add_(own)  # in the precision of the weights
                del product, own  # before the next logits are made
        ctx.save_for_backward(grad_x.to(x.dtype), grad_head)
        return nats

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of `factor` times the loss, in the memory of what was kept."""
        grad_x, grad_head = ctx.saved_tensors
        return grad_x.mul_(factor.to(grad_x.dtype)), grad_head.mul_(factor), None, None, None

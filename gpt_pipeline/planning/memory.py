"""What training holds in memory, term by term, from the shapes alone.

The activations are those that autograd keeps for the backward pass of our model, as `saved_tensors_hooks` counts them
(the tests compare). They follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 4.1, but for what differs here: the residual stream stays in float32 under autocast, and attention
keeps its scores only on the CPU with dropout, where torch has no fused kernel.

Legend: N tokens of a micro-batch, T tokens of a sequence, C channels, H heads, V vocabulary, P vocabulary padded.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.experiment.sizes import parameter_count
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import OptimizerName

_QUERIES = 128  # `model.gpt`: of which the CPU computes the attention at a time, with dropout
_FLOAT32, _BFLOAT16 = 4, 2
_LOGITS = 3  # such matrices at once: logarithms of the probabilities, the gradient of the loss, that of the logits
_ADAMW_STATES, _MUON_STATES = 2, 1  # float32 numbers for each parameter
_RUNTIME_CPU = 350_000_000  # Python, torch and its libraries, as a process that has imported them shows
_RUNTIME_CUDA = 600_000_000  # the CUDA context and the libraries' workspaces, an order of magnitude


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How the forward pass computes."""

    cuda: bool
    bf16: bool
    compiled: bool
    loss_piece: int | None
    """Tokens whose logits are in memory together; None: all. See `training.device.Compute.loss_piece`."""

    @property
    def item(self) -> int:
        """Bytes of a number that a matrix product reads."""
        return _BFLOAT16 if self.bf16 else _FLOAT32


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that training holds on its device, and in the computer's own memory for checkpoints."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass of one micro-batch. Eager: a compiled model keeps less."""

    loss: int
    """Logits and their gradients, at the moment when they are largest."""

    spare: int
    """On a CPU: what is freed stays with the process, for speed, and is not used again to the last byte. Seen: between
    nothing and 1.4 times the loss (see `training.device.prepare_process`); counted as once."""

    runtime: int
    """Libraries and their workspaces; an order of magnitude."""

    checkpoint_copy: int
    """In the computer's memory, from which a checkpoint is written while training goes on."""

    on_host: bool
    """Whether the device's memory is the computer's, as on a CPU."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer: exact, and needed whatever the micro-batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> int:
        """All that lies in the device's memory at the peak."""
        total = self.state + self.activations + self.loss + self.spare + self.runtime
        return total + self.checkpoint_copy if self.on_host else total


def memory_need(
    model: ModelConfig, *, optimizer: OptimizerName, micro_batch_size: int, max_length: int, precision: Precision
) -> MemoryNeed:
    """Return what one process holds that trains `model` on micro-batches of sequences of `max_length` tokens."""
    weights = _FLOAT32 * parameter_count(model)
    states = optimizer_bytes(model, optimizer)
    tokens = micro_batch_size * max_length
    activations = saved_bytes(model, tokens=tokens, max_length=max_length, precision=precision)
    loss = _loss_bytes(model, tokens=tokens, precision=precision)
    return MemoryNeed(
        weights=weights,
        gradients=weights,
        optimizer=states,
        activations=activations,
        loss=loss,
        spare=0 if precision.cuda else loss,
        runtime=_RUNTIME_CUDA if precision.cuda else _RUNTIME_CPU,
        checkpoint_copy=weights + states,
        on_host=not precision.cuda,
    )


def optimizer_bytes(model: ModelConfig, optimizer: OptimizerName) -> int:
    """Return the bytes of the optimizer's state; Muon keeps one number for each weight of the blocks' matrices."""
    parameters = parameter_count(model)
    if optimizer == "adamw":
        return _FLOAT32 * _ADAMW_STATES * parameters
    hidden = model.n_layer * 12 * model.n_embd**2
    return _FLOAT32 * (_ADAMW_STATES * (parameters - hidden) + _MUON_STATES * hidden)


def checkpoint_bytes(model: ModelConfig, optimizer: OptimizerName) -> int:
    """Return about the bytes of one checkpoint file: the weights and the optimizer's state."""
    return _FLOAT32 * parameter_count(model) + optimizer_bytes(model, optimizer)


def saved_bytes(model: ModelConfig, *, tokens: int, max_length: int, precision: Precision) -> int:
    """Return the bytes that autograd keeps of a forward pass over N `tokens`, without the loss."""
    C, item = model.n_embd, precision.item
    mask = _mask_bytes(model, precision)
    blocks = model.n_layer * (_block_bytes(model, max_length, precision) + 2 * mask * C)
    rest = mask * C + (_FLOAT32 + item) * C + 2 * _FLOAT32 + 2 * 8  # embeddings, final norm, ids and targets
    # Autocast casts each matrix once for all micro-batches of a pass and keeps the copy.
    casts = _BFLOAT16 * (model.n_layer * 12 * C**2 + model.vocab_size * C) if precision.bf16 else 0
    return tokens * (blocks + rest) + casts


def _mask_bytes(model: ModelConfig, precision: Precision) -> int:
    """Return the bytes that dropout keeps for each activation: a bit in a byte on CUDA, a factor on the CPU."""
    if model.dropout == 0:
        return 0
    return 1 if precision.cuda else precision.item


def _block_bytes(model: ModelConfig, max_length: int, precision: Precision) -> int:
    """Return the bytes that one block keeps for each token, masks left out."""
    C, H, item = model.n_embd, model.n_head, precision.item
    norms = 2 * (_FLOAT32 * C + 2 * _FLOAT32 + item * C)  # input, mean and deviation; output as the product reads it
    mlp = 2 * 4 * C * item  # before and after the GELU
    if model.dropout == 0 or precision.cuda:
        return norms + mlp + 4 * C * item + _FLOAT32 * H  # queries, keys, values, output; a normaliser a head
    starts = range(0, max_length, _QUERIES)
    ends = [min(start + _QUERIES, max_length) for start in starts]
    # The keys that each query is compared with, hidden ones of its own block included; the mean over queries.
    keys = sum(end * (end - start) for start, end in zip(starts, ends, strict=True)) / max_length
    copies = _FLOAT32 * C * (1 + 2 * sum(ends) / max_length)  # of queries once, of keys and values for each block
    scores = 3 * _FLOAT32 * H * keys  # probabilities, what is dropped, what is left
    return norms + mlp + C * item + round(copies + scores)


def _loss_bytes(model: ModelConfig, *, tokens: int, precision: Precision) -> int:
    C, V, item = model.n_embd, model.vocab_size, precision.item
    columns = model.padded_vocab_size if precision.cuda else V
    if precision.compiled:  # fused: only the logits and their gradients, in the product's precision
        return 2 * item * columns * tokens
    piece = precision.loss_piece
    if piece is None or tokens <= piece:
        cast = item if precision.bf16 else 0
        return (_LOGITS * _FLOAT32 + cast) * columns * tokens
    gradients = _FLOAT32 * V * C + (_FLOAT32 + item) * C * tokens  # of the head and of the hidden states
    return gradients + (_LOGITS * _FLOAT32 + (2 * item if precision.bf16 else 0)) * columns * piece

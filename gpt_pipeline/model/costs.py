"""What a model costs, from its shape alone: parameters, FLOPs, memory, checkpoint bytes. Imports no torch.

The tests compare each figure with the model itself: FLOPs with torch's counter, activations with the tensors that
autograd saves (`saved_tensors_hooks`), optimizer state and checkpoints with what is there after a step.

Legend: N tokens of a micro-batch, T tokens of a sequence, C channels, H heads, V vocabulary, P vocabulary padded.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.model.anatomy import anatomy
from gpt_pipeline.model.config import CPU_ATTENTION_QUERIES, ModelConfig

_FLOAT32, _BFLOAT16 = 4, 2
_LOGITS = 3  # such matrices at once: log-probabilities, the gradient of the loss, the gradient of the logits
_DRAWN = 3  # such rows at once: logits, probabilities, the distribution function
_RUNTIME_CPU = 350_000_000  # Python, torch and its libraries: the size of a process that has imported them
_RUNTIME_CUDA = 600_000_000  # the CUDA context and the libraries' workspaces; an order of magnitude


@dataclass(frozen=True, kw_only=True)
class _States:
    """How many float32 numbers an optimizer keeps for each parameter."""

    blocks: int
    """For the weights of the blocks' matrices."""

    others: int
    """For embeddings, an untied head, biases and norms."""

    update: float = 0.0
    """What an update takes for a moment, at most, as a multiple of the blocks' matrices. Measured: 0.75 to 1.0 with
    Muon."""


_OPTIMIZER_STATES = {
    "adamw": _States(blocks=2, others=2),
    "muon": _States(blocks=1, others=2, update=1.0),  # the momentum; AdamW updates the others
}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How the forward pass computes. The names are keys of `plan --json`, older than other GPUs and fp16."""

    cuda: bool
    """Whether on a GPU, of any kind."""

    bf16: bool
    """Whether products read numbers of 16 bits, bf16 or fp16."""

    compiled: bool
    loss_piece: int | None
    """Tokens whose logits are in memory together; None: all. See `training.device.Compute.loss_piece`."""

    @property
    def item(self) -> int:
        """Bytes of a number that a matrix product reads."""
        return _BFLOAT16 if self.bf16 else _FLOAT32


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that training holds on its device, and in host memory for checkpoints."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    """The mean of the weights, where it is kept."""

    reference: int
    """The start weights, where the distance from them costs reward."""

    activations: int
    """Saved for the backward pass of one micro-batch, in eager mode; a compiled model saves less."""

    loss: int
    """Logits and their gradients, when they are largest."""

    update: int
    """For a moment, when activations and logits are no longer there: what the optimizer computes with."""

    asking: int
    """For a moment, before an update: what the start weights compute with, where they are kept."""

    sampling: int
    """For a moment, before an update: keys and values of the answers that are sampled together, and their logits."""

    spare: int
    """On the CPU, the process keeps the memory that it frees, for speed, and does not reuse all of it. Measured:
    between nothing and 1.4 times the loss (see `training.device.prepare_process`); estimated as the loss."""

    runtime: int
    """Libraries and their workspaces; an order of magnitude."""

    checkpoint_copy: int
    """In host memory: the copy from which a checkpoint is written while training goes on."""

    on_host: bool
    """Whether the device's memory is the host's, as on a CPU."""

    @property
    def state(self) -> int:
        """Weights, gradients, optimizer, mean and start weights: exact, and the same for every micro-batch size."""
        return self.weights + self.gradients + self.optimizer + self.average + self.reference

    @property
    def device(self) -> int:
        """Everything in the device's memory at the peak."""
        passing = max(self.activations + self.loss, self.update, self.asking, self.sampling)
        total = self.state + passing + self.spare + self.runtime
        return total + self.checkpoint_copy if self.on_host else total


def parameter_count(model: ModelConfig) -> int:
    """Return the parameters of a model of this shape, without the vocabulary's padding; a tied matrix counts once."""
    parts = anatomy(model)
    vocabulary = (1 if model.tie_weights else 2) * model.vocab_size * model.n_embd
    blocks = model.n_layer * (parts.matrices + parts.vectors)
    return vocabulary + parts.positions + blocks + parts.final_vectors


def flops_per_token(model: ModelConfig, *, max_length: int) -> float:
    """Return the FLOPs of one training token, forward and backward, without recomputation.

    6 for each weight of a matrix product and 12 * n_layer * n_embd * T for attention (PaLM, Chowdhery et al. 2022,
    appendix B). Position embeddings take part in no product, nor does an untied token embedding.
    """
    looked_up = anatomy(model).positions + (0 if model.tie_weights else model.vocab_size * model.n_embd)
    products = parameter_count(model) - looked_up
    return 6.0 * products + 12.0 * model.n_layer * model.n_embd * max_length


def weight_bytes(model: ModelConfig) -> int:
    """Return the bytes of the weights; their gradients take as many."""
    return _FLOAT32 * parameter_count(model)


def optimizer_bytes(model: ModelConfig, optimizer: str) -> int:
    """Return the bytes of the optimizer's state after its first step; `optimizer`: `TrainingConfig.optimizer`.

    Raises:
        ValueError: this module does not know what the optimizer keeps.
    """
    states = _states(optimizer)
    blocks = _block_matrices(model)
    return _FLOAT32 * (states.blocks * blocks + states.others * (parameter_count(model) - blocks))


def _states(optimizer: str) -> _States:
    states = _OPTIMIZER_STATES.get(optimizer)
    if states is None:
        raise ValueError(
            f"optimizer: found {optimizer!r}, need one whose state is known: {', '.join(_OPTIMIZER_STATES)}"
        )
    return states


def checkpoint_bytes(model: ModelConfig, optimizer: str, *, averaged: bool = False) -> int:
    """Return the bytes of the tensors in one checkpoint file: weights, optimizer state, the mean where it is kept."""
    return (2 if averaged else 1) * weight_bytes(model) + optimizer_bytes(model, optimizer)


def memory_need(
    model: ModelConfig,
    *,
    optimizer: str,
    micro_batch_size: int,
    max_length: int,
    precision: Precision,
    recompute: bool = False,
    averaged: bool = False,
    asked_tokens: int = 0,
    sampled: int = 0,
) -> MemoryNeed:
    """Return what one process holds that trains `model` on micro-batches of sequences of `max_length` tokens.

    `recompute`: whether the blocks' activations are computed again in the backward pass;
    `averaged`: whether the mean of the weights is kept; `asked_tokens`: those about which the start weights are asked
    at once, 0 where they are not kept; `sampled`: answers that are sampled together.
    """
    tokens = micro_batch_size * max_length
    loss = loss_bytes(model, tokens=tokens, precision=precision)
    return MemoryNeed(
        weights=weight_bytes(model),
        gradients=weight_bytes(model),
        optimizer=optimizer_bytes(model, optimizer),
        average=weight_bytes(model) if averaged else 0,
        reference=weight_bytes(model) if asked_tokens else 0,
        activations=activation_bytes(
            model, tokens=tokens, max_length=max_length, precision=precision, recompute=recompute
        ),
        loss=loss,
        update=round(_FLOAT32 * _states(optimizer).update * _block_matrices(model)),
        asking=_asking_bytes(model, tokens=asked_tokens, precision=precision),
        sampling=_sampling_bytes(model, rows=sampled, length=max_length, precision=precision),
        spare=0 if precision.cuda else loss,
        runtime=_RUNTIME_CUDA if precision.cuda else _RUNTIME_CPU,
        checkpoint_copy=checkpoint_bytes(model, optimizer, averaged=averaged),
        on_host=not precision.cuda,
    )


def activation_bytes(
    model: ModelConfig, *, tokens: int, max_length: int, precision: Precision, recompute: bool = False
) -> int:
    """Return the bytes that autograd saves of a forward pass over N `tokens`, without the loss.

    With `recompute`, what is there when the backward pass is in a block: the inputs of all, and what that one keeps.

    As Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1, count
    them, with two differences: the residual stream stays in float32 under autocast, and attention saves its scores
    only on the CPU with dropout, where torch has no fused kernel.
    """
    C, item = model.n_embd, precision.item
    mask = _mask_bytes(model)
    block = _block_bytes(model, max_length, precision) + 2 * mask * C
    blocks = model.n_layer * _FLOAT32 * C + block if recompute else model.n_layer * block
    parts = anatomy(model)
    norms = _FLOAT32 * parts.kept_outside + item * C  # the last one's output as the product reads it
    rest = mask * C + norms + 2 * 8  # the mask of the embeddings; ids and targets
    # Autocast casts each matrix once for all micro-batches of a pass and keeps the copy.
    casts = _cast_bytes(model, precision)
    return tokens * (blocks + rest) + max_length * item * parts.kept_angles + casts


def loss_bytes(model: ModelConfig, *, tokens: int, precision: Precision) -> int:
    """Return the bytes of the logits over N `tokens` and of their gradients, when they are largest."""
    C, V, item = model.n_embd, model.vocab_size, precision.item
    columns = _columns(model, precision)
    if precision.compiled:  # fused: only the logits and their gradients, in the product's precision
        return 2 * item * columns * tokens
    piece = precision.loss_piece
    cast = item if precision.bf16 else 0
    cap = 0 if model.soft_cap is None else _FLOAT32  # the tanh, kept for its slope
    if piece is None or (precision.cuda and tokens <= piece):
        return (_LOGITS * _FLOAT32 + cast + cap) * columns * tokens
    gradients = _FLOAT32 * V * C + (_FLOAT32 + item) * C * tokens  # of the head and of the hidden states
    if precision.cuda:  # more than is computed in place, since none was measured
        return gradients + (_LOGITS * _FLOAT32 + 2 * cast) * columns * piece
    # Logits become their gradient in place. The head's gradient by one piece lies beside the sum, or beside its cast.
    one = item * V * C if tokens > piece or precision.bf16 else 0
    return gradients + one + item * columns * min(tokens, piece)


def _asking_bytes(model: ModelConfig, *, tokens: int, precision: Precision) -> int:
    """Return the bytes of the logits over N `tokens`, of their log-probabilities, and of the matrices as the products
    read them; 0 for no token."""
    return 2 * _FLOAT32 * _columns(model, precision) * tokens + _cast_bytes(model, precision) if tokens else 0


def _sampling_bytes(model: ModelConfig, *, rows: int, length: int, precision: Precision) -> int:
    """Return the bytes of the keys and values of `rows` texts of `length` tokens, of the logits of a token of each and
    of what is drawn by, and of the matrices as the products read them; 0 for no row."""
    repeated = model.n_head if model.kv_heads < model.n_head else 0  # in one block: a head for each of the queries'
    cached = 2 * (model.n_layer * model.kv_heads + repeated) * model.head_size * length * precision.item
    drawn = _DRAWN * _FLOAT32 * model.vocab_size
    return rows * (cached + drawn) + _cast_bytes(model, precision) if rows else 0


def _columns(model: ModelConfig, precision: Precision) -> int:
    """Return how many logits a token has."""
    return model.padded_vocab_size if precision.cuda else model.vocab_size


def _cast_bytes(model: ModelConfig, precision: Precision) -> int:
    """Return the bytes of the copies of matrices that products of 16 bits read."""
    return _BFLOAT16 * (_block_matrices(model) + model.vocab_size * model.n_embd) if precision.bf16 else 0


def _block_matrices(model: ModelConfig) -> int:
    """Return the weights in the matrices of all blocks."""
    return model.n_layer * anatomy(model).matrices


def _mask_bytes(model: ModelConfig) -> int:
    """Return the bytes that dropout saves for each activation: a bit in a byte."""
    return 0 if model.dropout == 0 else 1


def _block_bytes(model: ModelConfig, max_length: int, precision: Precision) -> int:
    """Return the bytes that one block saves for each token, without the masks."""
    C, H, item = model.n_embd, model.n_head, precision.item
    parts = anatomy(model)
    own = _FLOAT32 * parts.kept_stream + item * parts.kept_products
    if model.dropout == 0 or precision.cuda:
        return own + 4 * C * item + _FLOAT32 * H  # queries, keys, values, output; a normaliser a head
    starts = range(0, max_length, CPU_ATTENTION_QUERIES)
    ends = [min(start + CPU_ATTENTION_QUERIES, max_length) for start in starts]
    # The keys that each query is compared with, hidden ones of its own block included; the mean over queries.
    keys = sum(end * (end - start) for start, end in zip(starts, ends, strict=True)) / max_length
    short = max_length <= CPU_ATTENTION_QUERIES  # torch's own function: see `model.attention`
    copies = (3 if short else 4) * _FLOAT32 * C  # of queries, keys and values, and with ours of the output, in float32
    scores = (3 if short else 2) * _FLOAT32 * H * keys  # the weights of the keys, those left, and torch's mask
    return own + C * item + round(copies + scores)

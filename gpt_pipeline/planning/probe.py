"""A few real updates in a process of their own: `python -m gpt_pipeline.planning.probe`, with a request on stdin.

It runs the trainer's own updater on random tokens, since speed does not depend on them, and writes one JSON object per
line: the device, then each update as it finishes, so that its parent may stop it at any time. Nothing is saved.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.rollouts import RecordedDraws, target_log_probabilities
from gpt_pipeline.storage.atomic import only_known_fields
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig
from gpt_pipeline.training.device import (
    Compute,
    choose_compute,
    explained_order_of_sums,
    peak_memory_bytes,
    prepare_process,
)
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.update import Updater

_WHOLE = 4  # larger updates are computed from updates of one and of this many micro-batches
_ROUNDS = 4  # of each size, at least
_LEAST_SECONDS = 5.0  # of updates, so that short ones are repeated often
_MOST_UPDATES = 200
_WRITING_STEPS = 8  # tokens generated one by one, as answers are
_SAMPLED_PROMPT, _SAMPLED_STEPS = 32, 64  # tokens: reading a prompt is a small part of sampling

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure."""

    model: ModelConfig
    training: TrainingConfig
    hardware: HardwareConfig
    layout: StepLayout
    """Of one process: its share of the update."""

    answers: int
    """Rows generated in one batch; 0: none."""

    samples: int = 0
    """Rows sampled in one batch, as a training on sampled answers does; 0: none."""

    rl: RlConfig = field(default_factory=RlConfig)
    """How they are sampled, and whether the distance from the start weights costs reward."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        """Return the request whose fields `dataclasses.asdict` gave as `value`."""
        return cls(
            model=ModelConfig(**value["model"]),
            training=TrainingConfig(**only_known_fields(TrainingConfig, value["training"])),
            hardware=HardwareConfig(**value["hardware"]),
            layout=StepLayout(**value["layout"]),
            answers=int(value["answers"]),
            samples=int(value["samples"]),
            rl=RlConfig(**value["rl"]),
        )


def sizes_of(layout: StepLayout) -> tuple[int, ...]:
    """Return how many micro-batches the updates have: all of them, or two sizes from which to extrapolate."""
    count = layout.grad_accum_steps
    return (count,) if count <= _WHOLE else (1, _WHOLE)


def probe(request: Request, emit: Emit) -> None:
    """Make updates of each size in turn, then a forward pass without gradients, then generate and sample a few tokens.

    Raises:
        UserError: the device or the compiler that the request asks for is missing.
    """
    notes: list[str] = []
    compute = choose_compute(request.hardware, request.training, ranks=Ranks(), say=notes.append)
    prepare_process(compute, same_sizes=request.training.objective != "rl")
    torch.manual_seed(0)
    model = make_model(request.model).to(compute.device)
    updater = Updater(model, request.training, layout=request.layout, compute=compute, ranks=Ranks(), say=notes.append)
    reference = make_model(request.model).to(compute.device) if request.rl.kl else None  # held to the end, as it trains
    emit({"kind": "device", "text": compute.describe(), "peak_flops": compute.peak_flops})
    batch = _batches(request, compute.device)
    sizes = sizes_of(request.layout)
    emit({"kind": "first", "micro_batches": sizes[0], "seconds": _update(updater, 0, batch, sizes[0])})
    if reference is not None:
        _ask(reference, request, compute)
    step, spent = 1, 0.0
    while step < _MOST_UPDATES and (step <= _ROUNDS * len(sizes) or spent < _LEAST_SECONDS):
        size = sizes[step % len(sizes)]
        seconds = _update(updater, step, batch, size)
        step, spent = step + 1, spent + seconds
        emit({"kind": "update", "micro_batches": size, "seconds": seconds, "memory": peak_memory_bytes(compute.device)})
    _probe_reading(updater, batch(1), emit, autocast=compute.autocast)
    if request.answers:
        _probe_writing(model, request.answers, emit)
    if request.samples:
        with compute.autocast():
            _probe_sampling(model, request, emit)
    for note in notes:
        emit({"kind": "note", "text": note})


def _ask(reference: LanguageModel, request: Request, compute: Compute) -> None:
    """Ask what stands for the start weights as many tokens as a training asks them at once, beside the optimizer."""
    length = request.layout.max_length
    tokens = request.rl.asked_tokens(length)
    ids = torch.zeros((tokens // length, length), dtype=torch.int64, device=compute.device)
    with compute.autocast():
        target_log_probabilities(reference, ids, ids, at_once=tokens)


def _batches(request: Request, device: torch.device) -> Callable[[int], Batch]:
    """Return a function that gives inputs and targets of a number of micro-batches, int64 [B, T]."""
    layout = request.layout
    count = max(sizes_of(layout)) * layout.micro_batch_size
    ids = torch.randint(0, request.model.vocab_size, (count, layout.max_length + 1)).to(device)

    def batch(micro_batches: int) -> Batch:
        rows = ids[: micro_batches * layout.micro_batch_size]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    return batch


def _update(updater: Updater, step: int, batch: Callable[[int], Batch], micro_batches: int) -> float:
    inputs = batch(micro_batches)
    start = time.perf_counter()
    updater.update(step, inputs).result()  # which waits for the device
    return time.perf_counter() - start


def _probe_reading(updater: Updater, batch: Batch, emit: Emit, *, autocast: Callable[[], Any]) -> None:
    """Time the loss of a micro-batch as validation computes it; the second time, since the first may compile."""
    updater.evaluator.eval()
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad(), autocast():
            float(updater.evaluator(*batch.tensors))
    emit({"kind": "reading", "tokens": batch[0].numel(), "seconds": time.perf_counter() - start})


def _probe_writing(model: LanguageModel, rows: int, emit: Emit) -> None:
    """Generate some tokens after prompts of half the context, one per row."""
    length = max(1, model.config.context_length // 2)
    ids = torch.zeros((rows, length), dtype=torch.int64, device=model.head_weight.device)
    cache = KVCache(model.config, capacity=min(model.config.context_length, length + 1 + _WRITING_STEPS))
    steps = min(_WRITING_STEPS, cache.capacity - ids.size(1))
    model.eval()
    with torch.inference_mode():
        ids = model.forward_cached(ids, cache).argmax(-1)[:, None]
        start = time.perf_counter()
        for _ in range(steps):
            ids = model.forward_cached(ids, cache).argmax(-1)[:, None]
        ids.tolist()  # waits for the device
    if steps > 0:
        emit({"kind": "writing", "tokens": rows * steps, "seconds": time.perf_counter() - start})


def _probe_sampling(model: LanguageModel, request: Request, emit: Emit) -> None:
    """Sample answers that do not end early, by the training's own draws; the second time, since the first warms up."""
    half = max(1, request.layout.max_length // 2)
    steps = min(request.rl.max_new_tokens, _SAMPLED_STEPS, half)
    for length in (1, steps):
        start = time.perf_counter()
        answers = generate(
            model,
            [[0] * min(half, _SAMPLED_PROMPT)] * request.samples,
            max_new_tokens=length,
            context_length=request.layout.max_length,
            batch_size=request.samples,
            ends=(),
            draws=_draws(request, length),
        )
    tokens = sum(len(answer.tokens) for answer in answers)
    emit({"kind": "sampling", "tokens": tokens, "seconds": time.perf_counter() - start})


def _draws(request: Request, length: int) -> RecordedDraws:
    sampling = Sampling(temperature=request.rl.temperature, top_k=request.rl.top_k)
    return RecordedDraws([str(row) for row in range(request.samples)], sampling, length=length)


def main() -> int:
    """Carry out the request on stdin; return the exit code."""
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what compilers and libraries print is not a record

    def emit(record: Mapping[str, Any]) -> None:
        print(json.dumps(record), file=records, flush=True)

    carry_out(Request.from_json(json.load(sys.stdin)), emit)
    return 0


def carry_out(request: Request, emit: Emit) -> None:
    """Probe; where that cannot be done, or the memory is full, emit that."""
    try:
        with explained_order_of_sums():
            probe(request, emit)
    except UserError as error:
        emit({"kind": "refused", "text": str(error)})
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        emit({"kind": "out_of_memory"})


if __name__ == "__main__":
    sys.exit(main())

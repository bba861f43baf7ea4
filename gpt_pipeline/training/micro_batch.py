"""How many sequences go through the model together: tried before the first update, so that memory fails then or never.

The largest batch of a training is known beforehand: all its rows have the same length, on a GPU documents that are
packed into a row are a mask of one size, and estimates read batches of the same shape. So a rehearsal of one update and
one estimate, which changes nothing, beside all that the feed holds, asks for all the memory that the training will.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt_pipeline.data.config import DOCUMENTS
from gpt_pipeline.errors import UserError
from gpt_pipeline.hardware import devices
from gpt_pipeline.shown import Say, counted
from gpt_pipeline.storage.atomic import read_kept, write_json
from gpt_pipeline.training.config import StepLayout, cpu_micro_batch_size, divisors
from gpt_pipeline.training.device import Compute, out_of_memory
from gpt_pipeline.training.feed import Batch, Feed
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.seeds import random_states, restore_random_states
from gpt_pipeline.training.stopping import OTHERS_SECONDS, GoesOn
from gpt_pipeline.training.update import Updater

RESERVE = 0.03
"""Of the memory, left free by `auto`: later allocations fall less densely than the first."""

_TOO_FAR = 2.0  # times the memory: an estimate above it is not tried; a compiled model needs less than estimated


def fit_micro_batch(
    updater: Updater,
    feed: Feed,
    job: TrainingJob,
    *,
    compute: Compute,
    ranks: Ranks,
    estimate: Callable[[int], int],
    say: Say,
    goes_on: GoesOn,
) -> StepLayout:
    """Return the layout whose micro-batches fit the memory, the same in all processes, and give it to `updater`.

    With `micro_batch_size: auto`, the largest that divides the update; it is remembered in the experiment's folder,
    with the device and the model that it was found on. Any other size is tried, and kept. On a CPU, whose system kills
    rather than refuses, nothing is tried, and `auto` takes what is as fast as more (`cpu_micro_batch_size`).
    `feed` holds all that it will; `estimate`: bytes that a size is thought to need.

    Raises:
        UserError: the memory does not hold it; with `auto`, not even one sequence.
    """
    layout, auto = updater.layout, job.training.micro_batch_size == "auto"
    if not devices.refuses_memory(compute.device):
        if auto:
            size = cpu_micro_batch_size(layout.share, max_length=layout.max_length)
            updater.layout = dataclasses.replace(layout, micro_batch_size=size)
        return updater.layout
    fitted = partial(_first_that_fits, updater, feed, job=job, compute=compute, ranks=ranks, goes_on=goes_on)
    if not auto:
        return fitted([layout.micro_batch_size])
    facts, total = _facts(job, layout, compute), devices.memory_of(compute.device)[1]
    sizes = [size for size in divisors(layout.share) if estimate(size) <= _TOO_FAR * total] or [1]
    held = int(ranks.sum(torch.tensor(devices.held_by_others(compute.device))).item())
    known = ranks.from_first(_remembered(job.folder.micro_batch, facts) if ranks.is_first else None)
    if known is not None and held > known.held - RESERVE * total:
        sizes = [size for size in sizes if size <= known.size]
    found = _Found(fitted(sizes).micro_batch_size, held)
    if ranks.is_first:
        say(f"The memory of {devices.name_of(compute.device)} holds {counted(found.size, 'sequence')} at a time.")
        _keep(job.folder.micro_batch, found, known, facts=facts, slack=RESERVE * total, say=say)
    return updater.layout


class _Found(NamedTuple):
    """What fits."""

    size: int
    """Sequences at a time."""

    held: int
    """Bytes that other programs then held of the memory, of all processes' GPUs together."""


def _keep(path: Path, found: _Found, known: _Found | None, *, facts: dict[str, Any], slack: float, say: Say) -> None:
    """Remember what was found, but not what is less for a time: while other programs hold more than before."""
    if known is not None and found.size < known.size and found.held > known.held + slack:
        say(
            f"{known.size} fitted before; other programs hold {(found.held - known.held) / 1e9:.1f} GB more of it now. "
            "The next start tries them first."
        )
    elif known is None or found.size != known.size or found.held < known.held:
        write_json(path, {"micro_batch_size": found.size, "held_by_others": found.held, "found_on": facts})


def _first_that_fits(
    updater: Updater,
    feed: Feed,
    sizes: Sequence[int],
    *,
    job: TrainingJob,
    compute: Compute,
    ranks: Ranks,
    goes_on: GoesOn,
) -> StepLayout:
    auto = job.training.micro_batch_size == "auto"
    layout = updater.layout
    for size in sizes:
        layout = updater.layout = dataclasses.replace(layout, micro_batch_size=size)
        fits = _fits(updater, feed, job, compute, reserved=auto)
        goes_on(OTHERS_SECONDS)  # one may still compile
        if not ranks.any(not fits):
            return layout
        if compute.compile:
            torch.compiler.reset()  # torch allows for few graphs, and keeps each
    raise UserError(out_of_memory(layout, job.training))


def _fits(updater: Updater, feed: Feed, job: TrainingJob, compute: Compute, *, reserved: bool) -> bool:
    device, layout = compute.device, updater.layout
    with _leaving_no_trace(updater, device):
        try:
            reserve = int(RESERVE * devices.memory_of(device)[1]) if reserved else 0
            spare = torch.empty(reserve, dtype=torch.uint8, device=device)
            updater.rehearse(_largest_batch(job, layout, device))
            feed.rehearse()
            devices.synchronize()
            del spare
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            return False
    return True


def _largest_batch(job: TrainingJob, layout: StepLayout, device: torch.device) -> Batch:
    """Return a micro-batch of the shapes of all micro-batches; of packed rows, each one document."""
    shape = layout.micro_batch_size, layout.max_length
    # Each a tensor of its own: what is compiled for one that is given twice does not fit others.
    inputs, targets, starts = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(3))
    packed = job.packing == DOCUMENTS or job.training.answers_only
    weights = torch.ones(shape, device=device)
    if job.rollouts is not None:
        return Batch(inputs, targets, weights)
    return Batch(inputs, targets, weights, starts) if packed else Batch(inputs, targets)


@contextmanager
def _leaving_no_trace(updater: Updater, device: torch.device) -> Iterator[None]:
    """Leave generators, optimizer, gradients and memory as they are before the block."""
    states, fresh = random_states(), updater.optimizer.is_fresh
    try:
        yield
    finally:
        if fresh:
            updater.optimizer.forget()
        updater.model.zero_grad(set_to_none=True)
        gc.collect()
        devices.release_memory(device)
        restore_random_states(states)


def _facts(job: TrainingJob, layout: StepLayout, compute: Compute) -> dict[str, Any]:
    """Return what decides how much fits, as JSON values."""
    gpu = compute.device
    return {
        "device": devices.name_of(gpu),
        "memory": devices.memory_of(gpu)[1],
        "torch": str(torch.__version__),
        "compute": [compute.precision, compute.compile, compute.deterministic],
        "model": dataclasses.asdict(job.model),
        "update": [layout.share, layout.max_length, layout.world_size, job.packing],
        "training": [job.training.optimizer, job.training.gradient_checkpointing, job.training.objective],
        "average": job.training.average_weights.is_wanted,
    }


def _remembered(path: Path, facts: dict[str, Any]) -> _Found | None:
    """Return what was found on the same; None: nothing, or by a version that did not ask what others held."""
    found = read_kept(path, dict, otherwise="the micro-batch size is found anew")
    if found is None or found.get("found_on") != facts:
        return None
    size, held = found.get("micro_batch_size"), found.get("held_by_others")
    return _Found(size, held) if isinstance(size, int) and size > 0 and isinstance(held, int) else None

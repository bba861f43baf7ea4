"""A plan as lines, with its findings at the end, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from gpt_pipeline.findings import problems_in_words
from gpt_pipeline.model.costs import MemoryNeed
from gpt_pipeline.planning.disk import Disk
from gpt_pipeline.planning.plan import Length, Plan
from gpt_pipeline.planning.speed import Speed
from gpt_pipeline.progress.show import stage_text
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Sheet, findings_sheet
from gpt_pipeline.shown import counted


def sheets(plan: Plan) -> list[Sheet]:
    """Return the plan by sections, then what is wrong with it, and whether it can be run."""
    sections: dict[str, Iterable[tuple[str, str]]] = {
        "model": _model_rows(plan),
        "data": _data_rows(plan),
        "training": _training_rows(plan),
        "disk": _disk_rows(plan),
        "memory": _memory_rows(plan),
        "time": _time_rows(plan),
        "done": _done_rows(plan),
    }
    rows = [
        (("" if number else section, "bold"), (label, "dim"), text)
        for section, lines in sections.items()
        for number, (label, text) in enumerate(lines)
    ]
    return [
        Sheet(heading=((plan.name, "bold"), str(plan.folder)), rows=rows, indent=2),
        findings_sheet(plan.findings, [conclusion(plan)]),
    ]


def conclusion(plan: Plan) -> tuple[str, str]:
    """Return the last line: whether it can be run."""
    if plan.problems:
        return f"{problems_in_words(plan.findings)} before it can run.", "bold red"
    return "The training is finished." if plan.start.kind == "finished" else "Ready to run.", "green"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values, with figures in full: the fields of `plan.Plan`, and what follows from them."""
    value = dataclasses.asdict(plan)
    value["trainable_parameters"] = plan.parameters
    value["tokens_per_parameter"] = plan.tokens_per_parameter
    value["mfu"] = plan.mfu
    value["tokens"]["tokens"] = plan.tokens.tokens
    if plan.length is not None:
        value["length"] |= {"epochs": plan.length.epochs, "tokens": plan.length.tokens, "flops": plan.length.flops}
    if plan.memory is not None:
        value["memory"] |= {"state": plan.memory.state, "device": plan.memory.device}
    for disk, own in zip(plan.disks, value["disks"], strict=True):
        own["to_write"] = disk.to_write
    value["findings"] = [
        {"level": each.severity, "key": each.key, "text": each.text, "remedy": each.remedy} for each in plan.findings
    ]
    value["can_run"] = not plan.problems
    return value


def _model_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{plan.parameters:,}, all trained"


def _data_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    tokens = plan.tokens
    about = "" if tokens.exact else "about "
    yield "documents", f"{tokens.documents:,}" if tokens.documents else "not known"
    yield (
        "tokens",
        f"{about}{wording.count(tokens.train_tokens)} to train on, {wording.count(tokens.validation_tokens)} held out",
    )
    yield "", tokens.source
    if tokens.epochs:
        yield "an epoch takes", ", ".join(f"{name} {times:.2f} times" for name, times in tokens.epochs.items())


def _training_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    length = plan.length
    if length is None:
        return
    if plan.place:
        yield "trains", plan.place
    yield "tokens per step", f"{length.tokens_per_step:,} {_cut(plan, length)}"
    if length.padding != 0:
        share = "some" if length.padding is None else f"{length.padding:.1%}"
        yield "", f"whole documents in each sequence, {share} padding"
    if plan.objective == "sft":
        row_length = length.tokens_per_step // length.sequences_per_step
        yield "loss", "only answers count" if length.answers is None else length.answers.in_words(row_length)
    about = "" if plan.tokens.exact else "about "
    if length.epochs is None:
        yield "steps", f"{length.steps:,}"
        yield "tokens trained on", f"{wording.count(length.tokens)} if each sequence is full"
    else:
        yield "steps", f"{about}{length.steps:,}, {length.epochs:.2f} epochs"
        each = f"{plan.tokens_per_parameter or 0:.3g} per parameter (compute-optimal: about 20, Hoffmann et al. 2022)"
        yield "tokens trained on", f"{wording.count(length.tokens)}, {each}"
    yield "FLOPs", f"{length.flops:.2e}, {wording.count(length.flops_per_token)} per token"


def _cut(plan: Plan, length: Length) -> str:
    gpus = f" on each of {length.world_size} {_processes(plan)}" if length.world_size > 1 else ""
    sequences = counted(length.sequences_per_step, "sequence")
    return f"({sequences}, in {length.grad_accum_steps:,} x {length.micro_batch_size:,}{gpus})"


def _processes(plan: Plan) -> str:
    on_cpu = plan.device is not None and not plan.device.precision.cuda
    return "processes" if plan.place or on_cpu else "GPUs"


def _disk_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    for disk in plan.disks:
        yield from _rows_of_disk(disk)


def _rows_of_disk(disk: Disk) -> Iterator[tuple[str, str]]:
    for need in disk.needs:
        part = "exists" if need.room == 0 else f"{wording.size(need.present)} of it exists"
        there = part if need.present else ""
        yield need.what, f"{wording.size(need.size):>8}{f'  {there}' if there else ''}"
    yield "to be written", f"{wording.size(disk.to_write):>8}  of {wording.size(disk.free)} free for {disk.folder}"


def _memory_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield (
        "device",
        f"not {'of' if plan.place else 'on'} this machine; estimated for a GPU"
        if plan.device is None
        else plan.device.description,
    )
    if plan.memory is not None:
        for label, size in _terms(plan.memory):
            yield label, f"{wording.size(size):>8}"
        has = "" if plan.device is None else _has(plan.device.memory_free, plan.device.memory_total)
        yield "at the peak", f"{wording.size(plan.memory.device):>8}  {'estimated' if not has else f'estimated; {has}'}"
    if plan.speed is not None and plan.speed.peak_memory is not None:
        yield "", f"{wording.size(plan.speed.peak_memory):>8}  measured in {_of(plan.speed)}"


def _terms(need: MemoryNeed) -> Iterator[tuple[str, int]]:
    yield "weights", need.weights
    yield "gradients", need.gradients
    yield "optimizer", need.optimizer
    if need.average:
        yield "mean of weights", need.average
    if need.reference:
        yield "start weights", need.reference
    yield "activations", need.activations
    yield "loss", need.loss
    yield "libraries, spare", need.runtime + need.spare
    where = "copy for checkpoints" if need.on_host else "checkpoints, in RAM"
    yield where, need.checkpoint_copy


def _has(free: int | None, total: int | None) -> str:
    if total is None:
        return ""
    return f"{wording.size(total)} here" + ("" if free is None else f", {wording.size(free)} free")


def _of(speed: Speed) -> str:
    texts = {"measured": "real updates", "running": "the running training", "earlier": "an earlier run"}
    return texts[speed.source]


def _time_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    speed, time = plan.speed, plan.duration
    if speed is not None:
        mfu = "" if plan.mfu is None else f", {wording.percent(plan.mfu)} of the peak FLOP/s"
        count = f" ({counted(speed.updates, 'update')})" if speed.updates else ""
        yield "speed", f"{speed.tokens_per_second:,.0f} tokens/s{mfu}, from {_of(speed)}{count}"
        for note in speed.notes:
            yield "", note
    if plan.not_measured is not None:
        yield "" if speed else "speed", plan.not_measured
    if time is None:
        return
    if time.training_seconds is not None and plan.length is not None and plan.length.steps_left:
        known = "without" if time.validation_seconds is None else f"{wording.duration(time.validation_seconds)} of it"
        steps = f"{counted(plan.length.steps_left, 'step')}, {known} validation"
        yield "training", f"about {wording.duration(time.training_seconds)} ({steps})"
    if time.evaluation_seconds is not None and time.evaluations:
        each = wording.duration(time.evaluation_seconds / time.evaluations)
        text = f"about {wording.duration(time.evaluation_seconds)}: {time.evaluations} of {each}, during training"
        yield "evaluations", text
    elif time.evaluations:
        yield "evaluations", f"{time.evaluations}"


def _done_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    for stage in plan.stages:
        yield stage.label, stage_text(stage, finished="finished, used again")
    yield "training", start_text(plan)


def start_text(plan: Plan) -> str:
    """Return where the training starts from."""
    start = plan.start
    if plan.is_running:
        return f"running, step {start.step:,}"
    if start.kind == "finished":
        return f"finished at step {start.step:,}, used again"
    if start.checkpoint is not None:
        moved = "; newer checkpoints are moved to previous/" if start.moves_checkpoints else ""
        at = f", step {start.step:,}" if start.step else ""
        return f"continues from {start.checkpoint.name}{at}{moved}"
    moved = "; existing checkpoints are moved to previous/" if start.moves_checkpoints else ""
    if start.kind == "weights" and not plan.start_is_ready:
        return f"starts at step 0 when its weights are there: {plan.start_from}"
    weights = f" from {plan.start_from}" if start.kind == "weights" else ""
    return f"starts at step 0{weights}{moved}"

"""Training on a GPU against a plain nanoGPT-style loop and transformers: `python3 -m benchmarks.cuda_step`.

GPT-2 124M, T = 1024, bf16, updates of 524,288 tokens. Ours is the trainer itself but for checkpoints: batches from a
token file that this command makes, through the trainer's own feed, results looked at one update later. Needs torch and
numpy (and filelock, which torch brings), no Dagster; transformers takes part where it is installed. `--tiny` goes
through all of it on a CPU in a minute, to see that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.contest import Contestant, Step, Times, compete, describe_machine, print_table
from benchmarks.nanogpt_style import make_nanogpt_style
from benchmarks.peers import make_transformers
from benchmarks.steps import StepSettings, make_updater
from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.data.tokens.stream import TokenStream, new_shard
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import flops_per_token
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline.training.device import choose_compute
from gpt_pipeline.training.feed import BatchFeed
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.trainer import quiet_garbage_collection
from gpt_pipeline.training.update import PendingUpdate

OURS = "gpt_pipeline"
TARGET = "480,000 to 560,000 tokens/s on one H200"
_SHARD = "train_000001.bin"
TECHNIQUES = {
    "compile": "torch.compile",
    "bf16": "bf16 (float32 with TF32 instead)",
    "tf32": "bf16 and TF32 (float32 throughout)",
    "flash": "flash attention (plain attention instead)",
    "padding": "vocabulary padded to 50,304",
    "late look": "results looked at one update later",
    "gc": "garbage collected at boundaries only",
    "whole loss": "loss fused over all logits (in pieces instead)",
    "dropout": "dropout (what it costs)",
}


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """What a contestant that reads the token file computes."""

    settings: StepSettings
    folder: Path


def main() -> None:
    options = _options()
    settings = _settings(options)
    print(describe_machine())
    print(f"{settings.sequences} x {settings.length} tokens a step, {settings.micro_batch_size} sequences at a time")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder, settings)
        times = compete([ours(settings, folder), *rivals(settings)], turns=options.turns, steps=options.steps)
        print_table(times, tokens=settings.tokens, ours=OURS)
        _print_speed(times, settings)
        if options.techniques:
            _print_techniques(settings, folder, options)


def ours(settings: StepSettings, folder: Path, *, name: str = OURS) -> Contestant:
    """Return our trainer's step on the token file in `folder`."""
    return Contestant(name=name, make=make_ours_from_file, settings=FromFile(settings=settings, folder=folder))


def rivals(settings: StepSettings) -> list[Contestant]:
    """Return the others that can take part here, with a word on those that cannot."""
    found = [Contestant(name="nanoGPT-style loop", make=make_nanogpt_style, settings=settings)]
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed here and does not take part")
        return found
    for name, compiled in (("eager", False), ("compiled", True)):
        if settings.compile or not compiled:
            theirs = dataclasses.replace(settings, compile=compiled)
            found.append(Contestant(name=f"transformers, {name}", make=make_transformers, settings=theirs))
    return found


def make_ours_from_file(task: FromFile) -> Step:
    """Return a step of our trainer on batches of the token file, without what `task.settings.without` names."""
    settings = task.settings
    stack = ExitStack()  # for the rest of the process
    without = settings.without
    if without == "flash":
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
    if without == "padding":
        ModelConfig.padded_vocab_size = ModelConfig.vocab_size  # type: ignore[assignment,method-assign]
    if without != "gc":
        stack.enter_context(quiet_garbage_collection())
    updater = make_updater(settings)
    if without == "tf32":
        torch.set_float32_matmul_precision("highest")
    if without == "whole loss":
        updater.model.loss_piece = settings.length * max(1, settings.layout().micro_batch_size // 4)
    device = updater.model.head_weight.device
    stream = TokenStream(task.folder, (_SHARD,))
    sampler = BatchSampler(stream=stream, sequence_length=settings.length, batch_size=settings.sequences, seed=0)
    feed = BatchFeed(sampler, ranks=Ranks(), device=device)
    in_flight: list[PendingUpdate] = []
    step = 0

    def update() -> float:
        nonlocal step, stack
        in_flight.append(updater.update(step, feed.batch_at(step)))
        step += 1
        if len(in_flight) == 1 and without != "late look" and step > 1:
            return 0.0
        return in_flight.pop(0).result().train_loss

    return update


def _print_speed(times: dict[str, Times], settings: StepSettings) -> None:
    flops = flops_per_token(settings.model, max_length=settings.length)
    speed = settings.tokens / times[OURS].median
    training = settings.training()
    peak = choose_compute(HardwareConfig(device=settings.device), training, ranks=Ranks(), say=print).peak_flops  # type: ignore[arg-type]
    used = "peak of the chip unknown" if peak is None else f"{speed * flops / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
    print(f"\n{speed:,.0f} tokens/s; {speed * flops / 1e12:.3g} TFLOP/s, {used} (target: {TARGET})")


def _print_techniques(settings: StepSettings, folder: Path, options: argparse.Namespace) -> None:
    print("\nWhat each technique contributes: the time of a step without it, over the time with all, in turns")
    turns, steps = max(2, options.turns // 2), max(1, options.steps // 2)
    for name, words in TECHNIQUES.items():
        ratio, memory = contribution(name, settings, folder, turns=turns, steps=steps)
        print(f"{ratio:6.2f}  {words}, {memory / 1e9:.1f} GB without it")


def contribution(technique: str, settings: StepSettings, folder: Path, *, turns: int, steps: int) -> tuple[float, int]:
    """Return the time of a step without the technique over that with all, and the peak bytes without it."""
    without = ours(_leave_out(settings, technique), folder, name=f"without {technique}")
    times = compete([ours(settings, folder), without], turns=turns, steps=steps)
    return times[without.name].median / times[OURS].median, times[without.name].memory_bytes


def _leave_out(settings: StepSettings, name: str) -> StepSettings:
    change: Callable[..., StepSettings] = partial(dataclasses.replace, settings, without=name)
    if name == "compile":
        return change(compile=False)
    if name in ("bf16", "tf32"):
        return change(precision="fp32")
    if name == "dropout":
        return change(model=dataclasses.replace(settings.model, dropout=0.0))
    return change()


def write_tokens(folder: Path, settings: StepSettings) -> None:
    """Write the token file that our steps read: random, as speed does not depend on what the tokens are."""
    random = np.random.default_rng(0)
    with new_shard(folder / _SHARD) as shard:
        for _ in range(8):
            shard.append(random.integers(0, settings.model.vocab_size, 2 * settings.tokens).astype(np.uint16))


def tiny_settings() -> StepSettings:
    """Return a step that a CPU makes in milliseconds."""
    model = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64, qkv_bias=True)
    return StepSettings(model=model, sequences=4, micro_batch_size=2, length=64, compile=False, device="cpu", threads=1)


def _settings(options: argparse.Namespace) -> StepSettings:
    if options.tiny:
        return tiny_settings()
    return StepSettings(
        model=ModelConfig(qkv_bias=True, dropout=options.dropout),
        sequences=options.tokens_per_step // options.length,
        micro_batch_size=options.micro_batch_size,
        length=options.length,
        compile=True,
        device=devices.find_gpu() or "cuda",
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.cuda_step")
    parser.add_argument("--micro-batch-size", type=int, default=32, help="sequences in one forward pass")
    parser.add_argument("--tokens-per-step", type=int, default=524_288)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in one turn")
    parser.add_argument("--techniques", action="store_true", help="the table of what each technique contributes too")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: shows that the command runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()

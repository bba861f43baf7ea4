"""A step of our trainer against transformers' own class on the CPU: `python -m benchmarks.cpu_step`.

GPT-2 124M or another architecture of its shape (`--architecture`), T = 512, the same dropout in both (0.1 for GPT-2,
else 0), fused AdamW in both, the same threads. transformers runs eager and, where there is a C compiler, compiled; the
ratio is that to its best. Takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from typing import get_args

from benchmarks.contest import Contestant, compete, describe_machine, print_table
from benchmarks.peers import make_transformers
from benchmarks.steps import StepSettings, make_ours
from gpt_pipeline.model.config import Architecture, ModelConfig

OURS = "gpt_pipeline"


def main() -> None:
    options = _options()
    model = ModelConfig(
        architecture=options.architecture,
        qkv_bias=options.architecture == "gpt2",
        n_layer=options.layers,
        dropout=options.dropout,
    )
    settings = StepSettings(
        model=model,
        sequences=options.sequences,
        length=options.length,
        precision=options.precision,
        threads=options.threads,
    )
    eager, compiled = (dataclasses.replace(settings, compile=compiled) for compiled in (False, True))
    contestants = [
        Contestant(name=OURS, make=make_ours, settings=settings),
        Contestant(name="transformers, eager", make=make_transformers, settings=eager),
    ]
    if options.ours_bf16:
        bf16 = dataclasses.replace(settings, precision="bf16")
        contestants.append(Contestant(name=f"{OURS}, bf16", make=make_ours, settings=bf16))
    if options.ours_recomputed:
        recomputed = dataclasses.replace(settings, gradient_checkpointing=True)
        contestants.append(Contestant(name=f"{OURS}, blocks recomputed", make=make_ours, settings=recomputed))
    has_compiler = any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    if has_compiler and not options.eager_only:
        contestants.append(Contestant(name="transformers, compiled", make=make_transformers, settings=compiled))
        if options.ours_compiled:
            contestants.append(Contestant(name=f"{OURS}, compiled", make=make_ours, settings=compiled))
    print(f"{describe_machine()}; {options.layers} layers, {settings.sequences} x {settings.length} tokens a step")
    times = compete(contestants, turns=options.turns, steps=1)
    print_table(times, tokens=settings.tokens, ours=OURS)
    best = min(one.median for name, one in times.items() if name.startswith("transformers"))
    print(f"\nRATIO to the best of transformers: {best / times[OURS].median:.2f} (target: at least 1.5)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_step")
    parser.add_argument("--architecture", choices=get_args(Architecture), default="gpt2")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, help="default: the architecture's own")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each contestant; default: torch's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--ours-compiled", action="store_true", help="ours compiled besides")
    parser.add_argument("--ours-recomputed", action="store_true", help="ours with gradient checkpointing besides")
    parser.add_argument("--ours-bf16", action="store_true", help="ours in bf16 besides")
    return parser.parse_args()


if __name__ == "__main__":
    main()

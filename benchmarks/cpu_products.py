"""Which library multiplies fastest on this processor: `python -m benchmarks.cpu_products`.

The matrix products of a layer of GPT-2 124M over 1,024 tokens, forward and both backward, by MKL and by oneDNN in
float32 and in bf16. They take turns in one process on one thread; the processor's own seconds count. Printed with what
tells processors apart, since `model/linear.py` decides by that and never by a stopwatch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contest import describe_machine
from gpt_pipeline.model.linear import product_by_onednn

_TOKENS = 1024
_SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # of weights: inputs, outputs
_TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_BY_MKL, _BY_ONEDNN, _IN_BF16 = "MKL", "oneDNN", "in bf16"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_products")
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    print(f"{describe_machine()}; {_in_words()}")
    print(f"{'product':<24}{_BY_MKL:>10}{_BY_ONEDNN:>10}{_IN_BF16:>10}   CPU ms, medians")
    totals = dict.fromkeys((_BY_MKL, _BY_ONEDNN, _IN_BF16), 0.0)
    for name, ways in _products().items():
        seconds = _in_turns(ways, turns=turns)
        print(f"{name:<24}" + "".join(f"{1000 * own:>10.2f}" for own in seconds.values()))
        totals = {way: totals[way] + own for way, own in seconds.items()}
    print(f"RATIO of MKL's time to oneDNN's: {totals[_BY_MKL] / totals[_BY_ONEDNN]:.2f}")
    print(f"RATIO of the faster one's to bf16's: {min(totals[_BY_MKL], totals[_BY_ONEDNN]) / totals[_IN_BF16]:.2f}")


def _products() -> dict[str, Mapping[str, Callable[[], Tensor]]]:
    """Return the products by name, each in all ways: of x [N, I] and a weight [O, I] -> [N, O]."""
    products = {}
    for inputs, outputs in _SHAPES:
        x, weight, gradient = (
            torch.randn(shape) for shape in ((_TOKENS, inputs), (outputs, inputs), (_TOKENS, outputs))
        )
        operands = {
            "forward": (x, weight),
            "to the input": (gradient, weight.t()),
            "to the weight": (gradient.t(), x.t()),
        }
        for name, (one, other) in operands.items():
            products[f"{inputs} x {outputs} {name}"] = {
                _BY_MKL: partial(torch.nn.functional.linear, one, other),
                _BY_ONEDNN: partial(product_by_onednn, one, other),
                _IN_BF16: partial(torch.nn.functional.linear, one.bfloat16(), other.bfloat16()),
            }
    return products


def _in_turns(ways: Mapping[str, Callable[[], Tensor]], *, turns: int) -> dict[str, float]:
    """Return the median CPU seconds of each way; the first turn, which allocates, is left out."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns + 1):
        for way, multiply in ways.items():
            started = time.process_time()
            multiply()
            seconds[way].append(time.process_time() - started)
    return {way: statistics.median(own[1:]) for way, own in seconds.items()}


def _in_words() -> str:
    """Return what tells this processor from others, as far as Linux does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "its instructions and caches are unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    told = [f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"]
    told += [name for name in _TELLING if name in facts.get("flags", "").split()]
    for cache in (2, 3):
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{cache}/size")
        told += [f"L{cache} {size.read_text().strip()}"] if size.is_file() else []
    return ", ".join(told)


if __name__ == "__main__":
    main()

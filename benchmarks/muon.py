"""An update of our Muon against torch's: `python -m benchmarks.muon`.

Both have the blocks' matrices of a GPT-2 with random gradients, in one process, and take turns. On the CPU the
processor's time counts, on one thread: other programs disturb it least.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from benchmarks.contest import describe_machine
from gpt_pipeline.hardware import devices
from gpt_pipeline.training.config import MuonConfig
from gpt_pipeline.training.device import Compute, prepare_process
from gpt_pipeline.training.muon import Muon


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    device = torch.device(devices.find_gpu() or "cpu")
    prepare_process(Compute(device=device, compile=False, peak_flops=None))  # as the trainer does
    parameters = _parameters(options.layers, options.width, device)
    ours = Muon([(each, 1) for each in parameters], MuonConfig(), learning_rate=1e-3, weight_decay=0.1)
    theirs = torch.optim.Muon(parameters, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    divisor, skip = (torch.full((), value, device=device) for value in (1.0, 0.0))
    seconds: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(options.turns + 1):
        started = _now()
        ours.step(momentum=0.95, divisor=divisor, skip=skip)
        between = _now()
        torch._foreach_mul_([each.grad for each in parameters], divisor.reciprocal())  # ours divides by it, too
        theirs.step()
        seconds["ours"].append(between - started)
        seconds["torch's"].append(_now() - between)
    print(f"{describe_machine()}; {sum(each.numel() for each in parameters):,} parameters")
    for name, taken in seconds.items():
        del taken[0]  # which allocates the state
        print(f"{name:8} {statistics.median(taken):.3f} s an update ({min(taken):.3f} to {max(taken):.3f})")
    medians = [statistics.median(taken) for taken in seconds.values()]
    print(f"RATIO of torch's time to ours: {medians[1] / medians[0]:.2f}")


def _parameters(layers: int, width: int, device: torch.device) -> list[nn.Parameter]:
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    parameters = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def _now() -> float:
    if devices.find_gpu() is None:
        return time.process_time()
    devices.synchronize()
    return time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()

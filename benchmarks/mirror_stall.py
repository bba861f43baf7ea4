"""What a mirror costs a training: `python -m benchmarks.mirror_stall`.

Checkpoints of GPT-2 124M with AdamW, 1.5 GB, are sent by the agent while updates go on; between two of them, updates
go on alone. Printed: how much slower updates are meanwhile, in clock and in CPU seconds, and what a checkpoint every
1,000 updates costs. The mirror is a folder on the same disk, unless `--mirror` names another: a bucket needs its
credentials in the environment. Training hands the agent nothing, so all it can cost are the machine's processors and
disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stalls import EVERY, TimedTraining, Took, measured, parser
from benchmarks.steps import StepSettings
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.mirror.order import Order, read_state_of, start_agent, write_order


def main() -> None:
    options = _options()
    with measured(options) as (settings, folder):
        (folder / "mirror").mkdir()
        mirror = options.mirror or (folder / "mirror").as_uri()
        _Measurement(settings, folder, mirror).run(sends=options.sends, steps=options.steps)


class _Measurement:
    def __init__(self, settings: StepSettings, folder: Path, mirror: str) -> None:
        self._training = TimedTraining(settings, folder / "experiment")
        self._folder = self._training.job.folder
        self._order = Order(mirror=mirror, keep_last=1, fingerprint=self._training.job.fingerprint)
        self._alone: list[Took] = []
        self._during: list[Took] = []

    def run(self, *, sends: int, steps: int) -> None:
        self._training.update()
        took, cpu, size = [], [], 0
        for _ in range(sends):
            self._alone += [self._training.update() for _ in range(steps)]
            size = save_checkpoint(self._folder.checkpoints, self._training.snapshot()).size
            seconds, agent_cpu = self._send()
            took.append(seconds)
            cpu.append(agent_cpu)
        self._tell(size, statistics.median(took), statistics.median(cpu))

    def _tell(self, size: int, took: float, agent_cpu: float) -> None:
        step, step_cpu = _medians(self._alone)
        during, during_cpu = _medians(self._during)
        print(f"a checkpoint: {size / 1e9:.2f} GB; an update: {step:.3f} s, {step_cpu:.3f} CPU seconds")
        print(f"sent in {took:.1f} s by an agent that used {agent_cpu:.2f} CPU seconds")
        times, cpu_times = during / step, during_cpu / step_cpu
        print(f"meanwhile updates take {times:.2f} times their time, {cpu_times:.2f} times their CPU seconds")
        lost = max(0.0, 1 - 1 / times) * took
        print(f"RATIO at one in {EVERY} updates: {lost / (EVERY * step):.3%} of the time of training")
        print(f"RATIO of CPU seconds: {agent_cpu / (EVERY * step_cpu):.3%} of those of the training")

    def _send(self) -> tuple[float, float]:
        """Have the newest checkpoint sent while updates go on; return how long that took, and the agent's CPU time."""
        write_order(self._folder, self._order)
        began, agent = time.perf_counter(), start_agent(self._folder)
        while True:
            pid, _, usage = os.wait4(agent.pid, os.WNOHANG)
            if pid:
                break
            self._during.append(self._training.update())
        agent.returncode = 0
        state = read_state_of(self._folder)
        if state is None or not state.complete_at:
            raise SystemExit(f"not sent: {'the agent said nothing' if state is None else state.in_words}")
        return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def _medians(updates: Sequence[Took]) -> tuple[float, float]:
    """Return the median of the seconds, and of the CPU seconds."""
    seconds, cpu_seconds = zip(*((each.seconds, each.cpu_seconds) for each in updates), strict=True)
    return statistics.median(seconds), statistics.median(cpu_seconds)


def _options() -> argparse.Namespace:
    options = parser("mirror_stall")
    options.add_argument("--sends", type=int, default=3)
    options.add_argument("--mirror", help="its address; default: a folder beside what is written")
    return options.parse_args()


if __name__ == "__main__":
    main()
